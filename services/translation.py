"""Texts in the readers' languages.

They are English in the code; the other languages are in `locales/*/messages.po`, which a
translator edits.
"""

from enum import StrEnum
from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path

from babel import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po


class Locale(StrEnum):
    GERMAN = "de"
    FRENCH = "fr"
    ENGLISH = "en"


def negotiate(accepted: str) -> Locale:
    """Return the language that an Accept-Language header asks for; German if it is none of ours."""
    asked = [part.partition(";")[0].strip() for part in accepted.split(",")]
    return Locale(negotiate_locale(asked, list(Locale), sep="-") or Locale.GERMAN)


LOCALES = Path(__file__).parent / "locales"


@cache
def translations(locale: Locale) -> NullTranslations:
    """Return the texts of a language. A text without a translation stays English."""
    catalogue = LOCALES / locale / "messages.po"
    if locale == Locale.ENGLISH or not catalogue.exists():
        return NullTranslations()
    # Compiled here, in a few milliseconds: what a translator edits is used at once, without a
    # build.
    compiled = BytesIO()
    with catalogue.open("rb") as source:
        write_mo(compiled, read_po(source, locale=locale, abort_invalid=True))
    compiled.seek(0)
    return GNUTranslations(compiled)
