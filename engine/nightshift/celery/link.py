"""The link between a worker's processes and its keeper: short lines over one socket pair.

The worker says that it lives, and what its processes cannot write into the ledger themselves: the
main process forks, so it must not connect to the database, and a child may have lost it. The keeper
answers with a sign of life of its own.
"""

import socket
from contextlib import suppress
from enum import StrEnum
from uuid import UUID

LONGEST_READ = 65_536


class Word(StrEnum):
    """What is said. All words but the first, which both sides say, are followed by an id."""

    ALIVE = "alive"
    # A job's: its task was revoked; its kind is not known to this worker.
    REVOKED = "revoked"
    UNKNOWN = "unknown"
    # A claim's: its answer was lost; it came after all; the run will not start; the run has ended,
    # and its end could not be written.
    UNSURE = "unsure"
    SURE = "sure"
    UNSTARTED = "unstarted"
    UNENDED = "unended"


class Link:
    """One end of the pair. Nothing here waits, and a peer that is away raises nothing."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        end.setblocking(False)
        self._rest = b""

    def say(self, word: Word, about: UUID | None = None) -> None:
        """Send one line. It is lost where the peer has not read for very long."""
        line = word.value if about is None else f"{word.value} {about}"
        with suppress(OSError):
            self.socket.send(f"{line}\n".encode())

    def hear(self) -> list[tuple[Word, UUID | None]]:
        """Return the lines that have arrived. What is not one of ours is dropped."""
        with suppress(OSError):
            self._rest += self.socket.recv(LONGEST_READ)
        *lines, self._rest = self._rest.split(b"\n")
        heard = []
        for line in lines:
            # The first line after a keeper that died may be the end of one.
            with suppress(ValueError):
                word, _, about = line.decode().partition(" ")
                heard.append((Word(word), UUID(about) if about else None))
        return heard


def open_pair() -> tuple[Link, socket.socket]:
    """Return the worker's link, and the socket that becomes the keeper's standard input."""
    ours, theirs = socket.socketpair()
    return Link(ours), theirs
