"""A folder of calendar feeds."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from services.calendars.models import FeedKind
from services.calendars.store import (
    FOLDERS,
    A,
    B,
    Owner,
    StoreAway,
    StoreUnavailable,
    name_file,
    read_name,
)

LEAST_FREE_BYTES = 200_000_000

# Calendars are for those who know their addresses, and not for this machine's other users.
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


class FolderStore:
    """A feed store in a folder. A stamp is made of a file's size and the time of its last write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders = {kind: str(root / folder) for kind, folder in FOLDERS.items()}

    def path(self, kind: FeedKind, owner_id: int) -> Path:
        """Return a feed's file."""
        return self.root / name_file(kind, owner_id)

    def locate(self, kind: FeedKind, owner_id: int) -> str:
        """Return a feed's path."""
        return str(self.path(kind, owner_id))

    def write(self, kind: FeedKind, owner_id: int, content: bytes) -> str:
        """Replace a feed's file, and return its stamp.

        The file is not forced to the disk: after a power cut it may be missing or short. The next
        sync sees that by its stamp, and writes it again.
        """
        path = self.path(kind, owner_id)
        # A new name for each write: a worker that was taken for dead may be writing the same feed.
        part = path.with_name(f".{owner_id}.{uuid4().hex}.part")
        try:
            try:
                handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
            except FileNotFoundError:
                path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
                handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(handle, view) :]
                status = os.fstat(handle)
            finally:
                os.close(handle)
            part.replace(path)
        except OSError as error:
            with suppress(OSError):  # A folder that cannot be written refuses this too.
                part.unlink()
            raise StoreUnavailable(
                f"the feed store at {self.root} cannot be written: {error.strerror}"
            ) from error
        return f"{status.st_size}-{status.st_mtime_ns}"

    def read(self, kind: FeedKind, owner_id: int) -> bytes | None:
        """Return a file's bytes, or None when there is none. They are of one file, and whole."""
        try:
            return self.path(kind, owner_id).read_bytes()
        except OSError:
            return None

    def find_stamps(self, owners: Collection[Owner]) -> dict[Owner, str]:
        """Return the stamps of those of these files that exist."""
        found = {}
        for kind, owner_id in owners:
            with suppress(OSError):
                # Not by a Path: a run asks for thousands, and a Path takes longer than the disk.
                status = os.stat(f"{self._folders[kind]}/{owner_id}.ics")  # noqa: PTH116
                found[kind, owner_id] = f"{status.st_size}-{status.st_mtime_ns}"
        return found

    def remove(self, kind: FeedKind, owner_id: int) -> None:
        """Remove a feed's file, if there is one."""
        try:
            self.path(kind, owner_id).unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"the feed store at {self.root} cannot be written: {error.strerror}"
            ) from error

    def list_owners(self) -> set[Owner]:
        """Return kind and owner of every feed that has a file."""
        found: set[Owner] = set()
        for name, folder in zip(FOLDERS.values(), self._folders.values(), strict=True):
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as files:
                owners = (read_name(f"{name}/{file.name}") for file in files)
                found.update(owner for owner in owners if owner is not None)
        return found

    def each(self, act: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Yield what `act` returns for each item. A disk is not waited for: one after the other."""
        return map(act, items)

    def remove_leftovers(self, *, before: datetime) -> None:
        """Remove half-written files that were last written before then."""
        for part in self.root.glob("*/.*.part"):
            with suppress(OSError):  # Its writer has just finished, or the next run finds it again.
                if part.stat().st_mtime < before.timestamp():
                    part.unlink()

    def check_readable(self) -> str:
        """Return the folder's path."""
        root = self.root.absolute()
        # The first feed makes the folder.
        if root.exists() and not os.access(root, os.R_OK | os.X_OK):
            raise StoreAway(f"{root} cannot be read")
        return str(root)

    def check_writable(self) -> str:
        """Return the folder's path and the room on its disk."""
        root = self.root.absolute()
        folder = next(path for path in (root, *root.parents) if path.exists())
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
        detail = f"{root}, {free // 10**6} MB free"
        if not os.access(folder, os.W_OK | os.X_OK) or disk.f_flag & os.ST_RDONLY:
            raise StoreAway(f"{detail}, not writable")
        if free <= LEAST_FREE_BYTES:
            raise StoreAway(detail)
        return detail
