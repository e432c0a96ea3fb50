"""What a text may hold that people write and calendars show.

`find_unwanted` refuses at input what calendars would not show as it is meant. `clean` and `shorten`
put right what another program has written. A leaf: calendars import it.
"""

import re
import unicodedata

# Outlook cuts a title and a place at 255 characters, Google a description at 8,192.
LONGEST_LINE = 255
LONGEST_DESCRIPTION = 8_000

# The limit of Unicode's stream-safe text (UAX #15, section 13). No language needs as many. Sorting
# longer runs takes time by the square of their length.
MOST_MARKS = 30

# What ends a line or sets parts apart, beside \n, \r and the tab. A space or a line break must
# stand in its place, or two words become one.
_SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
# Embeddings, overrides and isolates also reorder what a calendar program writes after the text.
# The marks U+200E, U+200F and U+061C do not, and Hebrew and Arabic texts may need them.
_REORDERING = "\u202a-\u202e\u2066-\u2069"

_REFUSED = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{_REORDERING}]")
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029\x0b\x0c\x1c\x1d\x1e\x85]")
# Controls except the newline, lone surrogates, the byte order mark, and Unicode's noncharacters.
_REMOVED = re.compile(
    f"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff{_REORDERING}"
    + "".join(
        chr(plane + last)
        for plane in range(0x10000, 0x110000, 0x10000)
        for last in (0xFFFE, 0xFFFF)
    )
    + "]"
)
# All marks come later in Unicode, so most texts need no closer look.
_MAY_HAVE_MARKS = re.compile(f"[^\x00-\u02ff]{{{MOST_MARKS + 1},}}")
# Hangul fillers and the empty Braille pattern count as letters and symbols.
_INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0\u2800")
# Not what this Python's Unicode does not know yet: it may be an emoji.
_SHOW_NOTHING = ("Cc", "Cf", "Cs", "Z", "M")
_JOINER = "\u200d"


def find_unwanted(text: str) -> str:
    """Return what is wrong with a text's characters and how to correct it, or an empty string."""
    if text.isascii() and text.isprintable() and not text.isspace():
        return ""
    if found := _REFUSED.search(text):
        return _explain(found[0])
    if _has_long_run_of_marks(text):
        return f"has more than {MOST_MARKS} accents on one letter; remove them"
    if text and is_blank(text):
        codes = ", ".join(f"U+{ord(one):04X}" for one in sorted(set(text))[:3])
        return f"shows nothing ({codes}); write what readers shall see, or leave it empty"
    return ""


def _explain(character: str) -> str:
    """Return what is wrong with one character, and how to correct it."""
    code = f"U+{ord(character):04X}"
    if "\ud800" <= character <= "\udfff":
        return "is not UTF-8; save the file as UTF-8"
    if character > "\x9f":
        return f"contains {code}, which reorders the text around it; remove it"
    fix = "replace it by a line break or a space" if character in _SEPARATORS else "remove it"
    return f"contains the control character {code}; {fix}"


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: only spaces, invisible characters and lone accents."""
    return not text or all(
        one in _INVISIBLE or unicodedata.category(one).startswith(_SHOW_NOTHING) for one in text
    )


def clean(text: str) -> str:
    """Return `text` as every calendar program can read it.

    Newlines are the only control characters. What reorders text, lone surrogates, noncharacters and
    an absurd number of accents on one letter are removed.
    """
    if not text.isprintable():
        text = _LINE_ENDS.sub("\n", text).replace("\t", " ").replace("\x1f", " ")
        text = _REMOVED.sub("", text)
    return _remove_marks(text) if _MAY_HAVE_MARKS.search(text) else text


def normalise(text: str) -> str:
    """Return `text` with composed letters (NFC), unless that would take long.

    Such a text is refused by `find_unwanted`.
    """
    return text if _has_long_run_of_marks(text) else unicodedata.normalize("NFC", text)


def shorten(text: str, longest: int) -> str:
    """Return `text` with at most so many characters; a shortened one ends with an ellipsis."""
    if len(text) <= longest:
        return text
    end = longest - 1
    # Not between a letter and its accents, or between the parts of an emoji.
    while end > longest - MOST_MARKS and (_extends(text[end]) or text[end - 1] == _JOINER):
        end -= 1
    return f"{text[:end].rstrip()}…"


def _extends(character: str) -> bool:
    """Return whether a character belongs to the one before it."""
    category = unicodedata.category(character)
    return category[0] == "M" or category == "Cf"


def _has_long_run_of_marks(text: str) -> bool:
    return _MAY_HAVE_MARKS.search(text) is not None and len(_remove_marks(text)) < len(text)


def _remove_marks(text: str) -> str:
    kept, run = [], 0
    for character in text:
        run = run + 1 if _extends(character) else 0
        if run <= MOST_MARKS:
            kept.append(character)
    return "".join(kept)
