"""Read a mailbox in which other servers' reports arrive (IMAP, RFC 3501)."""

import imaplib
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from nightshift.errors import InvalidInput

from services.mail.bounces import LARGEST
from services.mail.transport import clean_reply

TIMEOUT = 20.0
# So many a reading; the next one reads on.
MOST_MESSAGES = 200

FORMS = "BOUNCE_MAILBOX must be imaps://USER@HOST/FOLDER or imap://USER@HOST/FOLDER (STARTTLS)"
NEAR = ("localhost", "127.0.0.1", "::1")


class MailboxUnreadable(Exception):
    """The mailbox cannot be read now. The message names no address."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Where reports arrive. `tls` is `implicit`, `starttls` or `none`."""

    host: str
    port: int
    tls: str
    user: str
    password: str
    folder: str


def open_mailbox(url: str, *, password: str) -> Mailbox:
    """Return the mailbox that BOUNCE_MAILBOX names, not yet connected.

    Raises InvalidInput, with what is wrong, for a URL that names none.
    """
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("imap", "imaps") and parts.hostname and parts.port != 0
    except ValueError:  # no host, or no port
        named = False
    if not named or not parts.username:
        raise InvalidInput(FORMS)
    if parts.password is not None:
        raise InvalidInput(
            "BOUNCE_MAILBOX must not hold the password: that is BOUNCE_MAILBOX_PASSWORD"
        )
    in_the_clear = parts.query == "tls=none" and parts.scheme == "imap"
    if (parts.query and not in_the_clear) or (in_the_clear and parts.hostname not in NEAR):
        raise InvalidInput("BOUNCE_MAILBOX takes ?tls=none only, and that for this machine only")
    folder = unquote(parts.path.strip("/")) or "INBOX"
    user = unquote(parts.username)
    if not (user + password + folder).isascii() or re.search(r'[\x00-\x1f"\\]', folder):
        raise InvalidInput(
            "BOUNCE_MAILBOX and BOUNCE_MAILBOX_PASSWORD must be ASCII, the folder without quotes"
        )
    tls = "none" if in_the_clear else "starttls" if parts.scheme == "imap" else "implicit"
    port = parts.port or (993 if tls == "implicit" else 143)
    return Mailbox(str(parts.hostname), port, tls, user, password, folder)


def read_new(box: Mailbox, take: Callable[[bytes], None]) -> int:
    """Give each unread message to `take`, up to its first megabyte, and return how many.

    A message is marked as read after `take` returned. Raises MailboxUnreadable; what was marked
    stays so, and the rest is read the next time.
    """
    if not box.password:
        raise MailboxUnreadable("BOUNCE_MAILBOX_PASSWORD is not given to this process")
    with _connected(box) as imap:
        numbers = _ask(imap, "SEARCH", None, "UNSEEN")[0] or b""
        some = numbers.split()[:MOST_MESSAGES]
        for number in some:
            answer = _ask(imap, "FETCH", number.decode(), f"(BODY.PEEK[]<0.{LARGEST}>)")
            for part in answer:
                if isinstance(part, tuple):
                    take(part[1])
            _ask(imap, "STORE", number.decode(), "+FLAGS.SILENT", r"(\Seen)")
    return len(some)


@contextmanager
def _connected(box: Mailbox) -> Iterator[imaplib.IMAP4]:
    imap: imaplib.IMAP4 | None = None
    try:
        context = ssl.create_default_context()
        if box.tls == "implicit":
            imap = imaplib.IMAP4_SSL(box.host, box.port, ssl_context=context, timeout=TIMEOUT)
        else:
            imap = imaplib.IMAP4(box.host, box.port, timeout=TIMEOUT)
            if box.tls == "starttls":
                imap.starttls(context)
        imap.login(box.user, box.password)
        _expect(imap.select(f'"{box.folder}"'))
        yield imap
    except (imaplib.IMAP4.error, OSError, ValueError) as error:
        said = clean_reply(f"{type(error).__name__}: {error}")
        raise MailboxUnreadable(f"{box.host}:{box.port}: {said}") from None
    finally:
        if imap is not None:
            with suppress(imaplib.IMAP4.error, OSError):
                imap.logout()
            with suppress(OSError):  # a connection that was cut is not closed by that
                imap.shutdown()


def _ask(imap: imaplib.IMAP4, *words: Any) -> list[Any]:
    return _expect(imap.uid(*words))


def _expect(answer: tuple[str, list[Any]]) -> list[Any]:
    said, data = answer
    if said != "OK":
        raise imaplib.IMAP4.error(f"{said} {data[0]!r}")
    return data
