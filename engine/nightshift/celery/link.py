"""What a worker's processes and its keeper say to each other: short lines over socket pairs.

The worker says that it lives, and what its processes cannot write into the ledger themselves: the
main process forks, so it must not connect to the database, and a child may have lost it. The keeper
answers with a sign of life of its own, and repeats each word once the ledger knows it. What the
processes say goes through the worker's main process, which says it again to a keeper that takes the
place of another: words do not die with the keeper that heard them.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from uuid import UUID

LONGEST_READ = 65_536

# What the worker's processes have said and the ledger does not know yet, while the database is
# away.
MOST_WORDS = 10_000


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

    def say(self, word: Word, about: UUID | None = None, since: float | None = None) -> None:
        """Send one line. It is lost where the peer has not read for very long.

        `since`: when it was said first, by `time.monotonic`, which is one clock for all processes
        of a machine; by default now.
        """
        since = time.monotonic() if since is None else since
        line = word.value if about is None else f"{word.value} {about} {since}"
        with suppress(OSError):
            self.socket.send(f"{line}\n".encode())

    def hear(self) -> list[tuple[Word, UUID | None, float]]:
        """Return the lines that have arrived. What is not one of ours is dropped."""
        with suppress(OSError):
            self._rest += self.socket.recv(LONGEST_READ)
        *lines, self._rest = self._rest.split(b"\n")
        heard = []
        for line in lines:
            # The first line after a keeper that died may be the end of one.
            with suppress(ValueError):
                word, *rest = line.decode().split(" ")
                about, since = rest or ("", "0")
                heard.append((Word(word), UUID(about) if about else None, float(since)))
        return heard


class Unrecorded:
    """The words that the ledger does not know yet: about each job or claim, the newest.

    Beyond MOST_WORDS the oldest are dropped. Their jobs end at their time limits.
    """

    def __init__(self) -> None:
        self._words: dict[UUID, tuple[Word, float]] = {}

    def add(self, word: Word, about: UUID, since: float | None = None) -> None:
        """Keep a word that was said first at `since`, as `Link.say` has it."""
        since = time.monotonic() if since is None else since
        # To the end: the words stay in the order they were said.
        before, first = self._words.pop(about, (None, since))
        self._words[about] = (word, min(since, first) if before is word else since)
        if len(self._words) > MOST_WORDS:
            del self._words[next(iter(self._words))]

    def drop(self, word: Word, about: UUID) -> None:
        """Forget a word that is recorded, unless another has been said since."""
        if about in self._words and self._words[about][0] is word:
            del self._words[about]

    def __iter__(self) -> Iterator[tuple[Word, UUID, float]]:
        """Give the words, what they are about, and when they were said first."""
        # A copy, made at once: another thread may add meanwhile.
        return iter([(word, about, since) for about, (word, since) in list(self._words.items())])

    def __bool__(self) -> bool:
        return bool(self._words)


def open_pair() -> tuple[Link, Link]:
    """Return two links that hear each other."""
    ours, theirs = socket.socketpair()
    return Link(ours), Link(theirs)
