"""What a text may hold: refused at input, or put right where calendars show it."""

import time

import pytest
from hypothesis import given, strategies as st

from services.school.texts import (
    LONGEST_LINE,
    MOST_MARKS,
    clean,
    find_unwanted,
    is_blank,
    normalise,
    shorten,
)

FAMILY = "👩‍👩‍👧‍👦"
ZALGO = "e" + "\u0301\u0327" * 15_000
anything = st.text(st.characters(codec=None))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Zähneputzen, Teil 1\nmit Frau Müller\t(A1)", ""),
        (f"שלום \u200f(abc) {FAMILY} Zu\u00adcker\u200bbrot", ""),
        ("a\x1bb", "contains the control character U+001B; remove it"),
        ("a\x0bb", "contains the control character U+000B; replace it by a line break or a space"),
        ("a\x85b", "contains the control character U+0085; replace it by a line break or a space"),
        ("a\udc80b", "is not UTF-8; save the file as UTF-8"),
        ("a\u202eb", "contains U+202E, which reorders the text around it; remove it"),
        ("a\u2066b", "contains U+2066, which reorders the text around it; remove it"),
        (ZALGO, "has more than 30 accents on one letter; remove them"),
        (
            "\u200b \u200b",
            "shows nothing (U+0020, U+200B); write what readers shall see, or leave it empty",
        ),
        ("\u3164", "shows nothing (U+3164); write what readers shall see, or leave it empty"),
    ],
)
def test_unwanted_text_is_named_with_its_fix(text: str, wrong: str) -> None:
    assert find_unwanted(text) == wrong


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("a\r\nb\rc\nd\u2028e\u2029f", "a\nb\nc\nd\ne\nf"),
        ("a\x0bb\x0cc\x1cd\x1de\x1ef\x85g", "a\nb\nc\nd\ne\nf\ng"),
        ("a\tb\x1fc", "a b c"),
        ("\x00a\x1bb\x7fc\x9fd", "abcd"),
        ("a\ud83db\udc00", "ab"),
        ("\ufeffa\ufffe\uffff\ufdd0\U0001ffff", "a"),
        ("\u202eabc\u202c \u2067d\u2069", "abc d"),
        (f"{FAMILY} שלום \u200f", f"{FAMILY} שלום \u200f"),
        ("e" + "\u0301" * 100 + "x", "e" + "\u0301" * MOST_MARKS + "x"),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(anything)
def test_clean_text_is_accepted_and_stays(text: str) -> None:
    cleaned = clean(text)

    assert clean(cleaned) == cleaned
    assert cleaned.encode().decode() == cleaned
    assert is_blank(cleaned) or not find_unwanted(cleaned)


@pytest.mark.parametrize(
    "text", ["", " \n", "\u200b\u2060\ufeff", "\u202e", "\u3164\u2800", "\u0301"]
)
def test_text_that_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["x", "\u200bא\u200b", "…", "\ue000", "\U000323b0", "e\u0301"])
def test_text_that_shows_something_is_not_blank(text: str) -> None:
    assert not is_blank(text)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("x" * 10, "x" * 10),
        ("x" * 11, "xxxxxxxxx…"),
        ("eins zwei drei", "eins zwei…"),
        ("12345678e\u0301 und mehr", "12345678…"),
        ("1234567890", "1234567890"),
        ("1234567" + FAMILY, "1234567…"),
    ],
)
def test_text_is_shortened_between_characters(text: str, short: str) -> None:
    assert shorten(text, 10) == short


@given(anything)
def test_shortened_text_is_never_longer(text: str) -> None:
    assert len(shorten(text * 3, LONGEST_LINE)) <= LONGEST_LINE


def test_sixty_kilobytes_of_accents_take_no_time() -> None:
    """Composing them takes seconds."""
    began = time.process_time()  # other processes do not count

    normalise(ZALGO)
    find_unwanted(ZALGO)
    cleaned = clean(ZALGO)

    assert len(ZALGO.encode()) > 60_000
    assert len(cleaned) == 1 + MOST_MARKS
    assert time.process_time() - began < 1
