"""An IMAP server in the test's process, with one mailbox: as much of RFC 3501 as reading needs."""

import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

USER, PASSWORD = "bounces@school.example", "correct horse"


class Mailbox:
    """What the server holds, and what it was asked for. A message's flags are `seen` or none.

    `breaks_at` is the word of the command at which it cuts the connection, once.
    """

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.seen: set[int] = set()
        self.commands: list[str] = []
        self.breaks_at: str | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"imap://{USER.replace('@', '%40')}@127.0.0.1:{self.port}/Bounces?tls=none"


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        box: Mailbox = self.server.box  # type: ignore[attr-defined]
        self.say("* OK IMAP4rev1")
        while line := self.rfile.readline():
            tag, _, rest = line.decode().strip().partition(" ")
            word = rest.upper().removeprefix("UID ").split()[0]
            box.commands.append(rest)
            if word == box.breaks_at:
                box.breaks_at = None
                return
            done = self.answer(box, word, rest)
            self.say(f"{tag} {done}")
            if word == "LOGOUT":
                return

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def answer(self, box: Mailbox, word: str, rest: str) -> str:
        match word:
            case "CAPABILITY":
                self.say("* CAPABILITY IMAP4rev1")
            case "LOGIN":
                if PASSWORD not in rest:
                    return f"NO [AUTHENTICATIONFAILED] {USER} is unknown here"
            case "SELECT":
                if "Bounces" not in rest:
                    return "NO there is no such folder"
                self.say(f"* {len(box.messages)} EXISTS")
            case "SEARCH":
                unread = [str(n) for n in range(1, len(box.messages) + 1) if n not in box.seen]
                self.say(f"* SEARCH {' '.join(unread)}".rstrip())
            case "FETCH":
                number, size = map(
                    int, re.search(r"FETCH (\d+) \(BODY\.PEEK\[\]<0\.(\d+)>\)", rest).groups()
                )
                content = box.messages[number - 1][:size]
                self.say(f"* {number} FETCH (UID {number} BODY[]<0> {{{len(content)}}}")
                self.wfile.write(content)
                self.say(")")
            case "STORE":
                box.seen.add(int(re.search(r"STORE (\d+) \+FLAGS\.SILENT \(\\Seen\)", rest)[1]))
            case "LOGOUT":
                self.say("* BYE")
            case _:
                return "BAD"
        return "OK done"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True

    def __init__(self, box: Mailbox) -> None:
        self.box = box
        super().__init__(("127.0.0.1", 0), _Session)

    def handle_error(self, *_about: Any) -> None:
        """Say nothing: a client may go whenever it wants."""


@contextmanager
def serving() -> Iterator[Mailbox]:
    """Yield a mailbox that is served."""
    box = Mailbox()
    with _Server(box) as server:
        box.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield box
        finally:
            server.shutdown()
            thread.join()
