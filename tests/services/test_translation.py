"""The catalogues against the code: each text is there, certain, in use, and can be filled in."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from io import BytesIO
from operator import attrgetter
from pathlib import Path

import pytest
from babel.messages.catalog import PYTHON_FORMAT, Catalog, Message
from babel.messages.pofile import read_po

from services.translation import LOCALES, Locale, translations

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Return the texts of the code and the templates, as `make messages` finds them."""
    template = tmp_path_factory.mktemp("texts") / "messages.pot"
    extract = [
        sys.executable,
        "-m",
        "babel.messages.frontend",
        "-q",
        "extract",
        "--mapping-file",
        "pyproject.toml",
    ]
    subprocess.run(
        [*extract, "--output-file", template, "services", "project"],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    return read_po(BytesIO(template.read_bytes()))


def keys(messages: Iterable[Message]) -> set[tuple[object, object]]:
    return {(message.context, message.id) for message in messages if message.id}


def forms(text: object) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text or ())


def placeholders(text: object) -> set[tuple[str, ...]]:
    return {place for form in forms(text) for place in PYTHON_FORMAT.findall(form)}


def is_filled_in(text: object) -> bool:
    values = {name: 0 for name, *_ in placeholders(text)}
    try:
        return all(form % values for form in forms(text))
    except (TypeError, ValueError):
        return False


def faults(catalogue: Catalog, texts: Catalog) -> Iterator[str]:
    yield from (f"missing: {text}" for _, text in keys(texts) - keys(catalogue))
    yield from (
        f"not in the code: {text}"
        for _, text in keys(catalogue) - keys(texts) | keys(catalogue.obsolete.values())
    )
    for message in filter(attrgetter("id"), catalogue):
        if message.fuzzy:
            yield f"fuzzy: {message.id}"
        if not all(forms(message.string)):
            yield f"not translated: {message.id}"
        elif placeholders(message.string) != placeholders(message.id):
            yield f"other placeholders: {message.id}"
        elif placeholders(message.id) and not is_filled_in(message.string):
            yield f"cannot be filled in: {message.id}"


@pytest.mark.parametrize("locale", [locale for locale in Locale if locale != Locale.ENGLISH])
def test_catalogue_has_every_text_of_the_code(locale: Locale, texts: Catalog) -> None:
    with (LOCALES / locale / "messages.po").open("rb") as source:
        assert list(faults(read_po(source, locale=locale, abort_invalid=True), texts)) == []


def test_catalogues_are_of_languages_that_there_are() -> None:
    assert {folder.name for folder in LOCALES.iterdir()} == set(Locale) - {Locale.ENGLISH}


GOOD = """
msgid "Cancelled: %(title)s"
msgstr "Abgesagt: %(title)s"

msgctxt "answer"
msgid "yes"
msgstr "ja"

msgid "%(num)d event"
msgid_plural "%(num)d events"
msgstr[0] "%(num)d Anlass"
msgstr[1] "%(num)d Anlässe"
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "", []),
        ('msgctxt "answer"\nmsgid "yes"\nmsgstr "ja"\n', "", ["missing: yes"]),
        ('msgctxt "answer"\n', "", ["missing: yes", "not in the code: yes"]),
        (
            'msgid "yes"\nmsgstr "ja"\n',
            'msgid "yes"\nmsgstr "ja"\n\n#~ msgid "no"\n#~ msgstr "nein"\n',
            ["not in the code: no"],
        ),
        ('msgctxt "answer"', '#, fuzzy\nmsgctxt "answer"', ["fuzzy: yes"]),
        ('"ja"', '""', ["not translated: yes"]),
        ('"%(num)d Anlässe"', '""', ["not translated: ('%(num)d event', '%(num)d events')"]),
        (
            "Abgesagt: %(title)s",
            "Abgesagt: %(titel)s",
            ["other placeholders: Cancelled: %(title)s"],
        ),
        ("Abgesagt: %(title)s", "Abgesagt", ["other placeholders: Cancelled: %(title)s"]),
        (
            "Abgesagt: %(title)s",
            "Abgesagt: %(title)d",
            ["other placeholders: Cancelled: %(title)s"],
        ),
        (
            'msgstr[1] "%(num)d Anlässe"\n',
            "",
            ["not translated: ('%(num)d event', '%(num)d events')"],
        ),
        ("Abgesagt: %(title)s", "100%: %(title)s", ["cannot be filled in: Cancelled: %(title)s"]),
    ],
)
def test_a_fault_of_a_catalogue_is_found(old: str, new: str, found: list[str]) -> None:
    assert old in GOOD
    catalogue = read_po(
        BytesIO(GOOD.replace(old, new, 1).encode()), locale="de", abort_invalid=True
    )

    assert list(faults(catalogue, read_po(BytesIO(GOOD.encode())))) == found


def test_translations_speak_the_language() -> None:
    said = {
        locale: translations(locale).gettext("No more mails like this one") for locale in Locale
    }

    assert said == {
        Locale.GERMAN: "Keine solchen Mails mehr",
        Locale.FRENCH: "Ne plus recevoir de tels courriels",
        Locale.ENGLISH: "No more mails like this one",
    }
