"""Send one message to an SMTP server, or into a folder of `.eml` files.

What a server's refusal means depends on when it comes (RFC 5321, 4.2 and 4.5.4):

    connecting, TLS, AUTH, MAIL FROM   it is about us, not about the recipient, even a 5xx: AWAY,
                                       so that a wrong password fails no message
    RCPT TO, DATA                      4xx or a lost connection: LATER; 5xx: REFUSED
    after the content began            as its code says; a lost connection or no answer: UNKNOWN,
                                       because the server may have the message
"""

import io
import re
import smtplib
import socket
import ssl
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from email.policy import SMTPUTF8
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

from nightshift.errors import InvalidInput

TIMEOUT = 20.0
# Servers take long to scan a message, and a message that we give up on may be sent twice.
TIMEOUT_AFTER_DATA = 3 * TIMEOUT

# The answer to QUIT does not matter.
QUIT_TIMEOUT = 1.0

# In seconds, and in messages. Servers drop connections that are idle, old or busy: an idle one is
# tested with NOOP first, and an old one replaced.
IDLE_AT_MOST = 1.0
OLDEST_CONNECTION = 300.0
MOST_MESSAGES = 100

LONGEST_REPLY = 500
# Matches only from the beginning of a word: otherwise a long word without an @ would be searched
# from each of its letters.
ADDRESS = re.compile(r"<?(?<![^\s<>])[^\s<>]+@[^\s<>]+>?")
# Databases refuse NUL, and terminals obey control characters.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
DEAD_ADDRESS = re.compile(r"5\.1\.(?![78]\b)\d")  # RFC 3463, 3.2; 7 and 8 are about the sender

# At any step these ask for another login. The next one, of Exchange Online, asks for fewer
# connections.
ABOUT_US = (530, 534, 535, 538)
TOO_MANY_CONNECTIONS = 432
SERVICE_ENDS = 421
TOO_LARGE = (523, 552)
PERMANENT = 500
OK = 250


class Verdict(Enum):
    SENT = auto()
    LATER = auto()
    REFUSED = auto()
    UNKNOWN = auto()
    AWAY = auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one message.

    `reply` names no address. `pause`: send nothing to this server for a while. `dead_address`: the
    server says that the address does not exist.
    """

    verdict: Verdict
    reply: str
    pause: bool = False
    dead_address: bool = False


class Transport(Protocol):
    """Sends one message at a time. Never raises for what the server does."""

    @property
    def name(self) -> str:
        """The server's name, by which workers share what they know about it."""

    def send(self, sender: str, recipient: str, content: bytes) -> Answer:
        """Send one message and return what became of it."""

    def close(self) -> None:
        """Close the connection. The next message opens another."""


class _Refused(Exception):
    """A step was not answered with success."""

    def __init__(self, step: str, code: int, reply: bytes) -> None:
        self.step, self.code, self.reply = step, code, reply.decode(errors="replace")

    def answer(self) -> Answer:
        reply = clean_reply(f"{self.step}: {self.code} {self.reply}")
        about_message = self.step != "MAIL FROM" or self.code in TOO_LARGE
        if not about_message or self.code in ABOUT_US:
            return Answer(Verdict.AWAY, reply, pause=True)
        if self.code >= PERMANENT:
            dead = self.step == "RCPT TO" and DEAD_ADDRESS.match(self.reply) is not None
            return Answer(Verdict.REFUSED, reply, dead_address=dead)
        return Answer(Verdict.LATER, reply, pause=self.code == TOO_MANY_CONNECTIONS)


class _Replies(io.RawIOBase):
    """Reads a connection until an instant, however little arrives at a time."""

    def __init__(self, sock: socket.socket, give_up: float) -> None:
        self._sock, self.give_up = sock, give_up

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.give_up - monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not end in time")
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)


class _Smtp(smtplib.SMTP):
    """A connection that waits `timeout` for a whole answer.

    smtplib waits so long for each piece of it: for a server that sends a byte now and then, or ever
    more lines, without end.
    """

    timeout: float

    def getreply(self) -> tuple[int, bytes]:
        assert self.sock is not None
        given, give_up = self.timeout, monotonic() + self.timeout
        if self.file is None:
            self.file = io.BufferedReader(_Replies(self.sock, give_up))
        self.file.raw.give_up = give_up
        try:
            return super().getreply()
        finally:
            if self.sock is not None:
                self.sock.settimeout(given)


class _SmtpTls(_Smtp, smtplib.SMTP_SSL):
    """The same, from the first byte with TLS."""


class SmtpTransport:
    """One connection to an SMTP server, opened when it is needed and used again.

    `tls` is `implicit` (from the first byte), `starttls` (the server must offer STARTTLS) or
    `none`. `tell` is called with each step and the server's answer, for people.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: str,
        user: str = "",
        password: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        self.name = f"{host}:{port}"
        self.tell: Callable[[str, str], None] = lambda _step, _answer: None
        self._host, self._port, self._tls = host, port, tls
        self._user, self._password = user, password
        self._timeout = timeout
        self._smtp: _Smtp | None = None
        self._opened_at = self._used_at = 0.0
        self._messages = 0

    def send(self, sender: str, recipient: str, content: bytes) -> Answer:
        """Send one message and return what became of it."""
        try:
            smtp = self._begin(sender, recipient, len(content))
        except _Refused as refused:
            return self._give_up(refused.answer())
        except smtplib.SMTPNotSupportedError:
            reply = "the server does not take addresses that are not ASCII (SMTPUTF8)"
            return self._give_up(Answer(Verdict.REFUSED, reply))
        except (OSError, ValueError) as error:
            # smtplib's own errors are OSErrors. ValueErrors come from a malformed host name and
            # from a challenge that is not base64.
            return self._give_up(Answer(Verdict.AWAY, clean_reply(_describe(error)), pause=True))
        begun = False
        try:
            self._expect("RCPT TO", smtp.rcpt(recipient), OK)
            self._expect("DATA", smtp.docmd("DATA"), 354)
            begun = True
            smtp.send(_escape_dots(content))
            smtp.timeout = TIMEOUT_AFTER_DATA / TIMEOUT * self._timeout
            code, text = smtp.getreply()
            smtp.timeout = self._timeout
            reply = self._expect("message", (code, text), OK)
        except _Refused as refused:
            return self._give_up(refused.answer(), closed=refused.code == SERVICE_ENDS)
        except OSError as error:
            self._drop()
            return Answer(
                Verdict.UNKNOWN if begun else Verdict.LATER, clean_reply(_describe(error))
            )
        self._used_at = monotonic()
        return Answer(Verdict.SENT, clean_reply(reply))

    def close(self) -> None:
        """Close the connection, if there is one."""
        smtp, self._smtp = self._smtp, None
        if smtp is not None and smtp.sock is not None:
            smtp.timeout = QUIT_TIMEOUT
            smtp.sock.settimeout(QUIT_TIMEOUT)
            with suppress(OSError):
                smtp.quit()
            smtp.close()

    def _begin(self, sender: str, recipient: str, size: int) -> _Smtp:
        """Return a connection on which the server accepted MAIL FROM.

        A connection that the server has closed since its last use is replaced, once.
        """
        while True:
            smtp = self._ensure_connection()
            options = [f"size={size}"] if smtp.has_extn("size") else []
            if not recipient.isascii():
                options += ["SMTPUTF8", "BODY=8BITMIME"]
            # Refused messages count too: servers close a connection after too many unknown
            # addresses.
            used, self._messages = self._messages > 0, self._messages + 1
            try:
                code, reply = smtp.mail(sender, options)
            except smtplib.SMTPServerDisconnected:
                self._drop()
                if not used:
                    raise
                continue
            if used and code == SERVICE_ENDS:
                self._drop()
                continue
            self._expect("MAIL FROM", (code, reply), OK)
            return smtp

    def _ensure_connection(self) -> _Smtp:
        now = monotonic()
        if self._smtp is not None and (
            now - self._opened_at > OLDEST_CONNECTION or self._messages >= MOST_MESSAGES
        ):
            self.close()
        if self._smtp is not None and now - self._used_at > IDLE_AT_MOST:
            self._drop_unless_ok(self._smtp.noop)
        if self._smtp is None:
            self._smtp = self._connect()
            self._opened_at = self._used_at = monotonic()
            self._messages = 0
        return self._smtp

    def _connect(self) -> _Smtp:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self.tell("resolve", ", ".join(sorted({str(address[4][0]) for address in found})))
        if self._tls == "implicit":
            smtp: _Smtp = _SmtpTls(
                self._host, self._port, timeout=self._timeout, context=self._context
            )
        else:
            smtp = _Smtp(self._host, self._port, timeout=self._timeout)
        try:
            self.tell("connect", "220")
            self._expect("EHLO", smtp.ehlo(), OK)
            if self._tls == "starttls":
                if not smtp.has_extn("starttls"):
                    raise smtplib.SMTPException(
                        "the server offers no STARTTLS; for a server on this machine, add ?tls=none"
                        " to MAIL_URL"
                    )
                self._expect("STARTTLS", smtp.starttls(context=self._context), 220)
                self._expect("EHLO", smtp.ehlo(), OK)
            if isinstance(smtp.sock, ssl.SSLSocket):
                self.tell("TLS", f"{smtp.sock.version()}, certificate verified")
            if self._user:
                code, reply = smtp.login(self._user, self._password)
                self.tell("AUTH", f"{code} {reply.decode(errors='replace')}")
        except (_Refused, smtplib.SMTPResponseException, smtplib.SMTPNotSupportedError) as error:
            # Not as an SMTPNotSupportedError: `send` reads that as an address that the server
            # cannot take, and here it is a server without AUTH.
            smtp.close()
            raise smtplib.SMTPException(_describe(error)) from error
        except (OSError, ValueError):
            smtp.close()
            raise
        return smtp

    @cached_property
    def _context(self) -> ssl.SSLContext:
        # Certificates are verified; SSL_CERT_FILE names those of an authority of one's own. Cached,
        # because reading them takes a tenth of a second.
        return ssl.create_default_context()

    def _expect(self, step: str, answer: tuple[int, bytes], wanted: int) -> str:
        code, reply = answer
        text = reply.decode(errors="replace")
        self.tell(step, f"{code} {text}")
        if code == -1:
            raise smtplib.SMTPServerDisconnected(
                "the connection was closed in the middle of an answer"
            )
        # The first digit decides (RFC 5321, 4.2.1): a server that answered 2xx with another code
        # has accepted too, and must not get the message twice.
        if code // 100 != wanted // 100:
            raise _Refused(step, code, reply)
        return f"{code} {text}"

    def _give_up(self, answer: Answer, *, closed: bool = False) -> Answer:
        """Return the answer, after making the connection ready for the next message."""
        self._used_at = monotonic()
        if closed or answer.verdict is Verdict.AWAY:
            self._drop()
        elif self._smtp is not None:
            self._drop_unless_ok(self._smtp.rset)
        return answer

    def _drop_unless_ok(self, command: Callable[[], tuple[int, bytes]]) -> None:
        """Send a command that a good connection answers with OK."""
        with suppress(OSError):
            if command()[0] == OK:
                return
        self._drop()

    def _drop(self) -> None:
        if self._smtp is not None:
            self._smtp.close()
        self._smtp = None


class FolderTransport:
    """A folder that gets an `.eml` file for each message; mail programs open these files.

    A message that is sent again replaces its file.
    """

    name = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def send(self, sender: str, recipient: str, content: bytes) -> Answer:
        """Write one message, whole or not at all."""
        match = re.search(rb"^Message-ID:\s*<([\w.-]+)@", content, re.MULTILINE | re.IGNORECASE)
        name = match[1].decode() if match else uuid4().hex
        part = self.folder / f".{name}.{uuid4().hex}.part"
        try:
            # Mails hold secret addresses: they are not for this machine's other users.
            self.folder.mkdir(0o700, parents=True, exist_ok=True)
            part.touch(0o600)
            part.write_bytes(content)
            part.replace(self.folder / f"{name}.eml")
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            return Answer(
                Verdict.AWAY,
                f"the folder {self.folder} cannot be written: {error.strerror}",
                pause=True,
            )
        return Answer(Verdict.SENT, f"{name}.eml")

    def forget(self, addresses: Collection[str]) -> int:
        """Delete the messages to these addresses, in lower case; return how many there were."""
        gone = 0
        for file in self.folder.glob("*.eml"):
            with suppress(OSError):
                with file.open("rb") as message:
                    to = BytesHeaderParser(policy=SMTPUTF8).parse(message)["To"]
                if to and any(one.addr_spec.lower() in addresses for one in to.addresses):
                    file.unlink()
                    gone += 1
        return gone

    def read(self, reply: str) -> bytes | None:
        """Return the message that was written with this reply, or None when it is not there."""
        try:
            return (self.folder / Path(reply).name).read_bytes()
        except OSError:
            return None

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def open_transport(url: str, *, password: str = "") -> Transport:
    """Return the transport that MAIL_URL names, not yet connected.

    Raises InvalidInput, with what is wrong, for a URL that names none.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "folder" and rest:
        return FolderTransport(Path(rest))
    try:
        parts = urlsplit(url)
        named = scheme in ("smtp", "smtps") and parts.hostname and parts.port != 0
    except ValueError:  # no host, or no port
        named = False
    if not named:
        raise InvalidInput(
            "MAIL_URL must be folder://PATH, smtp://USER@HOST:PORT or smtps://USER@HOST:PORT"
        )
    if parts.password is not None:
        raise InvalidInput("MAIL_URL must not hold the password: that is MAIL_PASSWORD")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    tls = options.pop("tls", "starttls" if scheme == "smtp" else "implicit")
    timeout = options.pop("timeout", f"{TIMEOUT:g}")
    known = {"starttls", "none"} if scheme == "smtp" else {"implicit"}
    if options or tls not in known or not re.fullmatch("[1-9][0-9]{0,2}", timeout):
        raise InvalidInput(
            "MAIL_URL takes ?tls=none, for a server on this machine, and ?timeout=SECONDS, 1 to 999"
        )
    user = unquote(parts.username or "")
    if user and not password:
        raise InvalidInput("MAIL_URL names a user, so MAIL_PASSWORD is needed")
    if not (user + password).isascii():
        raise InvalidInput(
            "MAIL_URL's user and MAIL_PASSWORD must be ASCII: servers read other characters"
            " differently"
        )
    if user and tls == "none":
        raise InvalidInput(
            "MAIL_URL says tls=none and names a user: a password is never sent in the clear"
        )
    port = parts.port or (587 if scheme == "smtp" else 465)
    return SmtpTransport(
        str(parts.hostname), port, tls=tls, user=user, password=password, timeout=float(timeout)
    )


def _escape_dots(content: bytes) -> bytes:
    """Return a message in the form that DATA needs (RFC 5321, 4.5.2)."""
    content = re.sub(rb"(?m)^\.", b"..", content)
    return content + (b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n")


def _describe(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        reply = (
            error.smtp_error.decode(errors="replace")
            if isinstance(error.smtp_error, bytes)
            else error.smtp_error
        )
        return f"{error.smtp_code} {reply}"
    if isinstance(error, _Refused):
        return f"{error.step}: {error.code} {error.reply}"
    return f"{type(error).__name__}: {error}"


def clean_reply(reply: str) -> str:
    """Return a reply on one short line without addresses, which servers like to repeat."""
    return ADDRESS.sub("…", " ".join(CONTROLS.sub(" ", reply).split()))[:LONGEST_REPLY]
