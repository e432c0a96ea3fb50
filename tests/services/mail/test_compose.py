"""Mails from templates, and what people may put into them."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP, default
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from services.mail.compose import Frame, compose, flow, render_page
from services.translation import Locale
from tests.conftest import ZONE
from tests.messages import ENCODED, NAMES
from tests.reading import Page, read_bodies, unflow

FRAME = Frame(
    "Gymnasium Muster <noreply@school.example>",
    "Gymnasium Muster",
    ZONE,
    Path(__file__).parent / "templates",
)
EXPIRES_AT = datetime(2026, 12, 1, 7, 15, tzinfo=UTC)


def greet(frame: Frame = FRAME, *, name: str) -> EmailMessage:
    return compose("greeting", Locale.ENGLISH, frame, name=name)


@pytest.mark.parametrize(
    ("locale", "moment", "day"),
    [
        (Locale.GERMAN, "Dienstag, 1. Dezember 2026, 08:15", "Dienstag, 1. Dezember 2026"),
        (Locale.FRENCH, "mardi 1 décembre 2026, 08:15", "mardi 1 décembre 2026"),
        (Locale.ENGLISH, "Tuesday, 1 December 2026, 08:15", "Tuesday, 1 December 2026"),
    ],
)
def test_moment_is_the_readers_words_and_the_schools_clock(locale, moment, day):
    text, _ = read_bodies(compose("deadline", locale, FRAME, expires_at=EXPIRES_AT))
    assert text.splitlines()[:3] == [moment, "", day]


def test_value_that_nobody_gave_is_an_error():
    with pytest.raises(UndefinedError, match="name"):
        compose("greeting", Locale.ENGLISH, FRAME)


def test_page_looks_as_the_mails_do_and_escapes_values():
    shown = render_page("door", Locale.FRENCH, FRAME, visitor="<b>Anna</b>")
    assert shown.splitlines()[:2] == ["<!doctype html>", '<html lang="fr">']
    assert "<bdi>&lt;b&gt;Anna&lt;/b&gt;</bdi>" in shown


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"calendar_url": "https://x.example/f/1.ics"}, "Your calendar"),
        ({"unsubscribe_url": "https://x.example/u"}, "No more mails like this one"),
    ],
)
def test_foot_shows_only_the_links_that_are_given(given, line):
    with_link = compose("greeting", Locale.ENGLISH, FRAME, name="Anna", **given)
    (url,) = given.values()
    assert f"{line}: {url}" in read_bodies(with_link)[0].splitlines()
    assert url in Page(read_bodies(with_link)[1]).links
    assert line not in "".join(read_bodies(greet(name="Anna")))


@pytest.mark.parametrize("name", NAMES)
def test_name_is_shown_as_it_is_and_means_nothing(name):
    text, html = read_bodies(greet(name=name))
    plain, page = Page(read_bodies(greet(name="Anna"))[1]), Page(html)

    assert text.splitlines()[0] == f"Hello {name},"
    assert f"Hello {name}," in "".join(page.words)
    assert page.tags == plain.tags


@pytest.mark.parametrize("value", NAMES)
def test_value_without_a_wrapping_is_escaped_too(value):
    text, html = read_bodies(greet(replace(FRAME, name=value), name="Anna"))
    page = Page(html)

    assert value in text.splitlines()
    assert value in page.words
    assert page.tags == Page(read_bodies(greet(name="Anna"))[1]).tags


@pytest.mark.parametrize(
    "character", ["\u202e", "\u2067", "\x00", "\x1b", "\u2028", "\udcff", "\ufeff"]
)
def test_character_that_would_turn_or_break_the_line_is_left_out(character):
    text, html = read_bodies(greet(name=f"An{character}na"))
    assert text.splitlines()[0] == "Hello Anna,"
    assert "<bdi>Anna</bdi>" in html


def test_line_breaks_in_a_value_make_no_header():
    frame = replace(FRAME, name="School\r\nBcc: all@school.example")
    mail = greet(frame, name="Anna")
    assert mail["Subject"] == "Welcome to School Bcc: all@school.example"
    assert set(message_from_bytes(mail.as_bytes(), policy=default)) == {
        "From",
        "Subject",
        "MIME-Version",
        "Content-Type",
    }


def test_tab_keeps_words_apart():
    mail = greet(replace(FRAME, name="School\tof Arts"), name="Anna\tMuster")
    text, html = read_bodies(mail)
    assert (mail["Subject"], text.splitlines()[0]) == (
        "Welcome to School of Arts",
        "Hello Anna\tMuster,",
    )
    assert "<bdi>Anna\tMuster</bdi>" in html


@pytest.mark.parametrize("value", ENCODED)
def test_value_that_looks_encoded_is_not_decoded(value):
    mail = greet(replace(FRAME, name=value), name="Anna")
    read = message_from_bytes(mail.as_bytes(policy=SMTP), policy=default)
    assert (
        mail["Subject"].replace("= ?", "=?")
        == read["Subject"].replace("= ?", "=?")
        == f"Welcome to {value}"
    )
    assert set(read) == {"From", "Subject", "MIME-Version", "Content-Type"}
    assert read_bodies(read)[0].startswith("Hello Anna,")


def test_line_break_in_the_sender_is_refused():
    frame = replace(FRAME, sender="School <a@school.example>\r\nBcc: all@school.example")
    with pytest.raises(ValueError, match=r"linefeed|newline"):
        greet(frame, name="Anna")


LINK = f"https://a.example/{'b-' * 60}"


@pytest.mark.parametrize(
    ("text", "flowed"),
    [
        ("", ""),
        ("a\n\nb", "a\n\nb"),
        ("-- \nfoot", "-- \nfoot"),
        ("ends in spaces  \nnext", "ends in spaces\nnext"),
        (f"{'word ' * 15}end", f"{'word ' * 14}\nword end"),
        (f"- {'word ' * 15}end", f"- {'word ' * 13}\nword word end"),
        (f"Your calendar: {LINK}", f"Your calendar: \n{LINK}"),
        (LINK, LINK),
        ("  two\n> quoted\nFrom here", "   two\n > quoted\n From here"),
        ("a\tb", "a\tb"),
    ],
)
def test_text_has_72_columns_where_its_words_allow_it(text, flowed):
    assert flow(text) == flowed
    assert unflow(flowed) == re.sub(" +$", "", text, flags=re.MULTILINE).replace("--\n", "-- \n")
