"""Letters as they are written: golden files of every kind in every language.

Two parsers read them back.
"""

import re
from email import message_from_bytes
from email.policy import SMTP, default
from pathlib import Path

import mailparser
import pytest

from services.letters.examples import EXAMPLES, make_example
from services.letters.kinds import LETTERS
from services.letters.rules import LetterRules
from services.translation import Locale
from tests.conftest import ZONE
from tests.reading import Page, read_bodies, unflow

GOLDEN = Path(__file__).parents[2] / "golden" / "mail"
RULES = LetterRules(
    "Gymnasium Muster <noreply@school.example>",
    "Gymnasium Muster",
    "https://calendar.school.example",
    ZONE,
    "a secret",
)

every_mail = pytest.mark.parametrize(
    ("kind", "locale"), [(kind, locale) for kind in EXAMPLES for locale in Locale]
)


def written(kind: str, locale: Locale) -> bytes:
    """Return an example's bytes, with numbers in place of its random boundaries."""
    mail = make_example(kind, locale, RULES)
    for number, part in enumerate(part for part in mail.walk() if part.is_multipart()):
        part.set_boundary(f"=-boundary-{number}-=")
    return mail.as_bytes(policy=SMTP.clone(cte_type="7bit"))


def words(*texts: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"(?:https?|webcal)://\S+", " ", " ".join(texts))))


@every_mail
def test_mail_is_as_in_its_golden_file(kind, locale):
    assert written(kind, locale) == (GOLDEN / f"{kind}.{locale}.eml").read_bytes()


def test_golden_files_are_all_in_use():
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{kind}.{locale}.eml" for kind in EXAMPLES for locale in Locale
    }


def test_every_kind_has_an_example():
    assert set(EXAMPLES) == set(LETTERS)


@every_mail
def test_both_parsers_read_what_was_composed(kind, locale):
    mail = make_example(kind, locale, RULES)
    text, html = read_bodies(mail)

    read = message_from_bytes(written(kind, locale), policy=default)
    other = mailparser.parse_from_bytes(written(kind, locale))

    assert (read["Subject"], read["From"], read["To"]) == (
        mail["Subject"],
        mail["From"],
        mail["To"],
    )
    assert tuple(body.replace("\r\n", "\n") for body in read_bodies(read)) == (text, html)
    assert read.defects == [defect for part in read.walk() for defect in part.defects] == []
    assert (other.subject, other.from_) == (
        mail["Subject"],
        [("Gymnasium Muster", "noreply@school.example")],
    )
    assert other.to == [("Anna Müller", "anna.mueller@school.example")]
    plain, page = (body.replace("\r\n", "\n") for body in (other.text_plain[0], other.text_html[0]))
    assert (unflow(plain), page) == (text, html)
    assert max(len(line) for line in plain.split("\n") if "://" not in line) <= 72


@every_mail
def test_text_and_html_say_the_same(kind, locale):
    text, html = read_bodies(make_example(kind, locale, RULES))
    page = Page(html)

    assert set(page.links) == set(re.findall(r"(?:https?|webcal)://\S+", text))
    assert words(text) - words(*page.words, *page.labels) == set()
    assert words(*page.words) - words(text) == set()


@every_mail
def test_html_is_in_the_readers_language_and_loads_nothing(kind, locale):
    _, html = read_bodies(make_example(kind, locale, RULES))

    assert html.startswith(f'<!DOCTYPE html><html lang="{locale}"')
    assert {"img", "link", "script", "iframe", "form"} & set(Page(html).tags) == set()
    assert re.findall(r"url\(|@import", html) == []
    assert re.findall("@media[^{]*", html) == [
        "@media (max-width: 480px) ",
        "@media (prefers-color-scheme: dark) ",
    ]
    assert '<meta name="color-scheme" content="light dark">' in html


def test_every_language_says_it_in_its_own_words():
    subjects = {
        make_example(kind, locale, RULES)["Subject"] for kind in EXAMPLES for locale in Locale
    }
    assert len(subjects) == len(EXAMPLES) * len(Locale)


if __name__ == "__main__":
    # `PYTHONPATH=engine/tests python -m tests.services.letters.test_examples` writes the golden
    # files again: read what has changed in them.
    for kind, locale in every_mail.args[1]:
        (GOLDEN / f"{kind}.{locale}.eml").write_bytes(written(kind, locale))
