"""Texts in the school's languages: English in the code, the others in catalogues (`locales/*/nightshift.po`) that a translator edits."""

from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from services.school.models import Locale

LOCALES = Path(__file__).parent / "locales"


@cache
def translations(locale: Locale) -> NullTranslations:
    """Return the texts of a language, by `gettext` and its relatives; a text that nobody translated stays English."""
    catalogue = LOCALES / locale / "nightshift.po"
    if locale == Locale.ENGLISH or not catalogue.exists():
        return NullTranslations()
    # Compiled here, in a few milliseconds: what a translator edits is what runs, and no build step can be forgotten.
    compiled = BytesIO()
    with catalogue.open("rb") as source:
        write_mo(compiled, read_po(source, locale=locale, abort_invalid=True))
    compiled.seek(0)
    return GNUTranslations(compiled)
