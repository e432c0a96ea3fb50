"""Text in a message's headers. A leaf: any module may import it."""

import re
from email.headerregistry import HeaderRegistry
from email.policy import SMTP, SMTPUTF8, EmailPolicy
from functools import cache
from typing import Any

# The beginning of what RFC 2047 calls an encoded word: =?CHARSET?Q?
_ENCODED = re.compile(r"=(?=\?[^?]*\?[bq]\?)", re.IGNORECASE)


class Headers(HeaderRegistry):
    """Makes the class of a header once: `email` makes a new one for each header of each mail."""

    @cache  # noqa: B019 - there is one registry, and it stays
    def __getitem__(self, name: str) -> Any:
        """Return the class for a header's name."""
        return super().__getitem__(name)


_HEADERS = Headers()
POLICY = EmailPolicy(header_factory=_HEADERS)
# Seven bits: every server on the way can pass that on. The other is for addresses that are not
# ASCII.
SEVEN_BITS = SMTP.clone(cte_type="7bit", header_factory=_HEADERS)
SEVEN_BITS_UTF8 = SMTPUTF8.clone(cte_type="7bit", header_factory=_HEADERS)


def make_header_text(text: str) -> str:
    """Return a text on one line that the package `email` does not decode.

    It decodes whatever looks like an encoded word. What comes out may hold line breaks, and with
    them headers that an attacker chose.
    """
    return _ENCODED.sub("= ", " ".join(text.split()))
