"""Text in a message's headers. A leaf: any module may import it."""

import re

# The beginning of what RFC 2047 calls an encoded word: =?CHARSET?Q?
_ENCODED = re.compile(r"=(?=\?[^?]*\?[bq]\?)", re.IGNORECASE)


def make_header_text(text: str) -> str:
    """Return a text on one line that the package `email` does not decode.

    It decodes whatever looks like an encoded word. What comes out may hold line breaks, and with
    them headers that an attacker chose.
    """
    return _ENCODED.sub("= ", " ".join(text.split()))
