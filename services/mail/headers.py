"""Text in a message's headers. A leaf: anyone may import it."""

import re

# How RFC 2047 writes other letters in a header, up to where they begin: =?CHARSET?Q?
_ENCODED = re.compile(r"=(?=\?[^?]*\?[bq]\?)", re.IGNORECASE)


def literal(text: str) -> str:
    """Return a text on one line that `email` takes as it stands.

    It would read what looks encoded as what that stands for, which may be line breaks, and so headers of somebody else's choice.
    """
    return _ENCODED.sub("= ", " ".join(text.split()))
