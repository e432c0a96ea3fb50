"""Mails as they are written: golden files of every kind in every language, read back by two parsers; and what people may put into them."""

import re
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP, default
from html.parser import HTMLParser
from pathlib import Path

import mailparser
import pytest
from jinja2 import UndefinedError

from services.mail.compose import MailRules, compose
from services.mail.examples import EXAMPLES, example
from services.mail.kinds import KINDS
from services.mail.outbox import Message, queue
from services.school.models import Locale, User
from tests.conftest import NOW, ZONE

GOLDEN = Path(__file__).parents[2] / "golden" / "mail"
RULES = MailRules(
    "Gymnasium Muster <noreply@school.example>", "Gymnasium Muster", "https://calendar.school.example", ZONE, "a secret"
)
EXPIRES_AT = datetime(2026, 12, 1, 7, 15, tzinfo=UTC)

every_mail = pytest.mark.parametrize(("kind", "locale"), [(kind, locale) for kind in EXAMPLES for locale in Locale])


def written(kind: str, locale: Locale) -> bytes:
    """Give an example's bytes; its boundaries, which are random, are numbered instead."""
    mail = example(kind, locale, RULES)
    for number, part in enumerate(part for part in mail.walk() if part.is_multipart()):
        part.set_boundary(f"=-boundary-{number}-=")
    return mail.as_bytes(policy=SMTP.clone(cte_type="7bit"))


class Page(HTMLParser):
    """What a reader of a page sees: its words, those of its buttons and headings apart, and where its links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.labels, self.words, self.links, self.tags = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag not in ("meta", "br", "hr", "img", "link"):
            self.open.append((tag, attributes.get("class") or ""))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if any(tag in ("style", "title") for tag, _ in self.open):
            return
        if any(tag == "h1" or name == "button" for tag, name in self.open):
            self.labels.append(data)
        else:
            self.words.append(data)


def welcome(rules: MailRules = RULES, *, name: str) -> EmailMessage:
    return compose("welcome", Locale.ENGLISH, rules, name=name, calendar_url="https://calendar.school.example/f/x.ics")


def words(*texts: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"https?://\S+", " ", " ".join(texts))))


def bodies(mail: EmailMessage) -> tuple[str, str]:
    return tuple(mail.get_body((kind,)).get_content() for kind in ("plain", "html"))


@every_mail
def test_mail_is_as_in_its_golden_file(kind, locale):
    assert written(kind, locale) == (GOLDEN / f"{kind}.{locale}.eml").read_bytes()


def test_golden_files_are_all_in_use():
    assert {path.name for path in GOLDEN.iterdir()} == {f"{kind}.{locale}.eml" for kind in EXAMPLES for locale in Locale}


def test_every_kind_has_an_example():
    assert set(EXAMPLES) == set(KINDS)


@every_mail
def test_both_parsers_read_what_was_composed(kind, locale):
    mail = example(kind, locale, RULES)
    text, html = bodies(mail)

    read = message_from_bytes(written(kind, locale), policy=default)
    other = mailparser.parse_from_bytes(written(kind, locale))

    assert (read["Subject"], read["From"], read["To"]) == (mail["Subject"], mail["From"], mail["To"])
    assert tuple(body.replace("\r\n", "\n") for body in bodies(read)) == (text, html)
    assert read.defects == [defect for part in read.walk() for defect in part.defects] == []
    assert (other.subject, other.from_) == (mail["Subject"], [("Gymnasium Muster", "noreply@school.example")])
    assert other.to == [("Anna Müller", "anna.mueller@school.example")]
    assert [body.replace("\r\n", "\n") for body in (other.text_plain[0], other.text_html[0])] == [text, html]


@every_mail
def test_text_and_html_say_the_same(kind, locale):
    text, html = bodies(example(kind, locale, RULES))
    page = Page(html)

    assert set(page.links) == set(re.findall(r"https?://\S+", text))
    assert words(text) - words(*page.words, *page.labels) == set()
    assert words(*page.words) - words(text) == set()


@every_mail
def test_html_is_in_the_readers_language_and_loads_nothing(kind, locale):
    _, html = bodies(example(kind, locale, RULES))

    assert html.startswith(f'<!DOCTYPE html><html lang="{locale}"')
    assert {"img", "link", "script", "iframe", "form"} & set(Page(html).tags) == set()
    assert re.findall(r"url\(|@import", html) == []
    assert re.findall("@media[^{]*", html) == ["@media (max-width: 480px) ", "@media (prefers-color-scheme: dark) "]
    assert '<meta name="color-scheme" content="light dark">' in html


def test_every_language_says_it_in_its_own_words():
    subjects = {example(kind, locale, RULES)["Subject"] for kind in EXAMPLES for locale in Locale}
    assert len(subjects) == len(EXAMPLES) * len(Locale)


@pytest.mark.parametrize(
    ("locale", "moment"),
    [
        (Locale.GERMAN, "Dienstag, 1. Dezember 2026, 08:15"),
        (Locale.FRENCH, "mardi 1 décembre 2026, 08:15"),
        (Locale.ENGLISH, "Tuesday, 1 December 2026, 08:15"),
    ],
)
def test_moment_is_the_readers_words_and_the_schools_clock(locale, moment):
    text, _ = bodies(compose("reset_password", locale, RULES, name="Anna", key_url="https://x.example", expires_at=EXPIRES_AT))
    assert moment in text


def test_value_that_nobody_gave_is_an_error():
    with pytest.raises(UndefinedError, match="key_url"):
        compose("reset_password", Locale.ENGLISH, RULES, name="Anna", expires_at=EXPIRES_AT)


NAMES = [
    '<script>alert("1")</script>',
    "Anna & Söhne <b>bold</b>",
    "%(name)s {{ 7 * 7 }} {% raw %}",
    "عَائِشَة بنت محمد",
    "👩🏽‍🎓 Zoë ✨",
    "x" * 200 + " " + "y" * 200,
    "Robert'); DROP TABLE mail;--",
]


@pytest.mark.parametrize("name", NAMES)
def test_name_is_shown_as_it_is_and_means_nothing(name):
    text, html = bodies(welcome(name=name))
    plain, page = Page(bodies(welcome(name="Anna"))[1]), Page(html)

    assert text.splitlines()[0] == f"Hello {name},"
    assert f"Hello {name}," in "".join(page.words)
    assert page.tags == plain.tags


@pytest.mark.parametrize("value", NAMES)
def test_value_without_a_wrapping_is_escaped_too(value):
    text, html = bodies(welcome(MailRules(RULES.sender, value, RULES.public_url, ZONE), name="Anna"))
    page = Page(html)

    assert value in text.splitlines()
    assert value in page.words
    assert page.tags == Page(bodies(welcome(name="Anna"))[1]).tags


@pytest.mark.parametrize("character", ["\u202e", "\u2067", "\x00", "\x1b", "\u2028", "\udcff", "\ufeff"])
def test_character_that_would_turn_or_break_the_line_is_left_out(character):
    text, html = bodies(welcome(name=f"An{character}na"))
    assert text.splitlines()[0] == "Hello Anna,"
    assert "<bdi>Anna</bdi>" in html


def test_line_breaks_in_a_value_make_no_header():
    rules = MailRules(RULES.sender, "School\r\nBcc: all@school.example", RULES.public_url, ZONE)
    mail = welcome(rules, name="Anna")
    assert mail["Subject"] == "Welcome to School Bcc: all@school.example"
    assert set(message_from_bytes(mail.as_bytes(), policy=default)) == {"From", "Subject", "MIME-Version", "Content-Type"}


def test_tab_keeps_words_apart():
    mail = welcome(MailRules(RULES.sender, "School\tof Arts", RULES.public_url, ZONE), name="Anna\tMuster")
    text, html = bodies(mail)
    assert (mail["Subject"], text.splitlines()[0]) == ("Welcome to School of Arts", "Hello Anna\tMuster,")
    assert "<bdi>Anna\tMuster</bdi>" in html


ENCODED = [
    "=?utf-8?q?x=0D=0ABcc=3A_all=40school.example?=",
    "=?utf-8?b?eA0KDQo8cD5hbm90aGVyIGJvZHk8L3A+?=",
    "a=?UTF-8*en?Q?=00?=b",
    "=?=?x?q?=FF?=",
]


@pytest.mark.parametrize("value", ENCODED)
def test_value_that_looks_encoded_is_not_decoded(value):
    mail = welcome(MailRules(RULES.sender, value, RULES.public_url, ZONE), name="Anna")
    read = message_from_bytes(mail.as_bytes(policy=SMTP), policy=default)
    assert mail["Subject"].replace("= ?", "=?") == read["Subject"].replace("= ?", "=?") == f"Welcome to {value}"
    assert set(read) == {"From", "Subject", "MIME-Version", "Content-Type"}
    assert bodies(read)[0].startswith("Hello Anna,")


def test_line_break_in_the_sender_is_refused():
    rules = MailRules("School <a@school.example>\r\nBcc: all@school.example", "School", RULES.public_url, ZONE)
    with pytest.raises(ValueError, match=r"linefeed|newline"):
        welcome(rules, name="Anna")


@pytest.mark.parametrize("name", [*NAMES, *ENCODED, 'a" <b@school.example>, "c', "Bcc:\r\nall@school.example", "=?utf-8?q?x?="])
def test_any_name_makes_one_recipient(session, name):
    content = welcome(name=name)
    message = Message(
        kind="welcome", dedupe_key="1", recipient="anna@school.example", name=name, content=content, expires_at=EXPIRES_AT
    )
    queue(session, message, now=NOW)

    (address,) = content["To"].addresses
    read = message_from_bytes(content.as_bytes(policy=SMTP), policy=default)

    assert (address.addr_spec, len(read["To"].addresses)) == ("anna@school.example", 1)
    assert read["Bcc"] is None


def test_kinds_name_flags_that_a_user_has():
    assert {kind.wanted_by for kind in KINDS.values()} - {None} <= {column.key for column in User.__table__.columns}


if __name__ == "__main__":
    # `python -m tests.services.mail.test_compose` writes the golden files anew; read what has changed in them.
    for kind, locale in every_mail.args[1]:
        (GOLDEN / f"{kind}.{locale}.eml").write_bytes(written(kind, locale))
