"""What a store of calendar feeds does. A feed is replaced as a whole, or not at all.

There are two: a folder (folders.py) and S3-compatible storage (buckets.py).
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from typing import Protocol, TypeVar, runtime_checkable

from nightshift.errors import TransientError

from services.calendars.models import FeedKind

FOLDERS = {FeedKind.USER: "users", FeedKind.CLASS: "classes", FeedKind.DEPARTMENT: "departments"}
KINDS = {folder: kind for kind, folder in FOLDERS.items()}

# Whose feed it is: names are unique by kind only.
Owner = tuple[FeedKind, int]

A = TypeVar("A")
B = TypeVar("B")


class StoreUnavailable(TransientError):
    """One feed cannot be written or removed: the disk is full, or read-only."""


class StoreAway(TransientError):
    """The store does not answer, or refuses this program: no feed can be read or written.

    The message is one line, which names the setting to look at.
    """


@runtime_checkable
class FeedStore(Protocol):
    """Feeds, named by kind and the owner's id.

    They are not named by class, since some disks take 27Ga for 27GA, and never by token. Each
    method raises StoreAway, and those that write raise StoreUnavailable.
    """

    def locate(self, kind: FeedKind, owner_id: int) -> str:
        """Return where a feed is kept, for people."""

    def write(self, kind: FeedKind, owner_id: int, content: bytes) -> str:
        """Replace a feed, and return its stamp.

        A reader gets the old bytes or the new ones, even when this process is killed.
        """

    def read(self, kind: FeedKind, owner_id: int) -> bytes | None:
        """Return a feed's bytes, or None when there is none."""

    def find_stamps(self, owners: Collection[Owner]) -> dict[Owner, str]:
        """Return the stamps of those of these feeds that exist, without reading them.

        While a feed's stamp is the one that `write` returned, its bytes are those that were
        written. After a copy or a restore the same bytes may have another stamp.
        """

    def remove(self, kind: FeedKind, owner_id: int) -> None:
        """Remove a feed, if there is one."""

    def list_owners(self) -> set[Owner]:
        """Return kind and owner of every feed that exists."""

    def each(self, act: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Yield what `act` returns for each item, in order.

        `act` uses the store. Where that waits for a network, several threads run it. After an
        exception no further item is begun.
        """

    def remove_leftovers(self, *, before: datetime) -> None:
        """Remove what processes that were killed before then have left half-written."""

    def check_readable(self) -> str:
        """Return where the store is, for people. Raises StoreAway when it cannot be read."""

    def check_writable(self) -> str:
        """Return how the store is, for people. Raises StoreAway when it cannot be written."""


def name_file(kind: FeedKind, owner_id: int) -> str:
    """Return a feed's name, relative to its store."""
    return f"{FOLDERS[kind]}/{owner_id}.ics"


def read_name(name: str) -> Owner | None:
    """Return whose feed has this name, or None when it is not the name of a feed."""
    folder, _, file = name.rpartition("/")
    number, _, suffix = file.rpartition(".")
    known = folder in KINDS and suffix == "ics" and number.isascii() and number.isdecimal()
    return (KINDS[folder], int(number)) if known else None
