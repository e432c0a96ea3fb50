"""The folder of calendar files. A file is replaced as a whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from nightshift.errors import TransientError

from services.calendars.models import FeedKind

FOLDERS = {FeedKind.USER: "users", FeedKind.CLASS: "classes", FeedKind.DEPARTMENT: "departments"}

# Calendars are for those who know their addresses, and not for this machine's other users.
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


class StoreUnavailable(TransientError):
    """The feed store cannot be written: full, read-only, or gone."""


class FileState(NamedTuple):
    """How a file looks. If that is not as its writer recorded it, another program touched it."""

    size: int
    mtime_ns: int

    @property
    def modified_at(self) -> datetime:
        """Return when the file was written, by its disk's clock."""
        return datetime.fromtimestamp(self.mtime_ns / 1e9, UTC)


class FeedStore:
    """A folder of feeds, named by kind and the owner's id.

    They are not named by class, since some disks take 27Ga for 27GA, and never by token.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders = {kind: str(root / folder) for kind, folder in FOLDERS.items()}

    def path(self, kind: FeedKind, owner_id: int) -> Path:
        """Return where a feed is kept."""
        return self.root / FOLDERS[kind] / f"{owner_id}.ics"

    def write(self, kind: FeedKind, owner_id: int, content: bytes) -> FileState:
        """Replace a feed's file, and return how it looks.

        A reader sees the old file or the new one, even when this process is killed. The file is not
        forced to the disk: after a power cut it may be missing or short. The next sync sees that by
        its state, and writes it again. Raises StoreUnavailable when the folder cannot be written.
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
        return FileState(status.st_size, status.st_mtime_ns)

    def state(self, kind: FeedKind, owner_id: int) -> FileState | None:
        """Return how a feed's file looks now, or None when there is none."""
        try:
            # Not by a Path: a run asks for thousands, and a Path takes longer than the disk.
            status = os.stat(f"{self._folders[kind]}/{owner_id}.ics")  # noqa: PTH116
        except OSError:
            return None
        return FileState(status.st_size, status.st_mtime_ns)

    def read(self, kind: FeedKind, owner_id: int) -> bytes | None:
        """Return a feed's bytes, or None when there is no file."""
        found = self.read_with_state(kind, owner_id)
        return None if found is None else found[0]

    def read_with_state(self, kind: FeedKind, owner_id: int) -> tuple[bytes, FileState] | None:
        """Return a feed's bytes and their file's state, or None when there is no file.

        Both are of one file, even while it is replaced.
        """
        try:
            with self.path(kind, owner_id).open("rb") as file:
                content = file.read()
                # After the bytes, so that a write into the file meanwhile shows.
                status = os.fstat(file.fileno())
        except OSError:
            return None
        return content, FileState(status.st_size, status.st_mtime_ns)

    def remove(self, kind: FeedKind, owner_id: int) -> None:
        """Remove a feed's file, if there is one. Raises StoreUnavailable when that fails."""
        try:
            self.path(kind, owner_id).unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"the feed store at {self.root} cannot be written: {error.strerror}"
            ) from error

    def list_owners(self) -> set[tuple[FeedKind, int]]:
        """Return kind and owner of every feed that has a file."""
        found = set()
        for kind, folder in self._folders.items():
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as files:
                for file in files:
                    name, _, suffix = file.name.rpartition(".")
                    if suffix == "ics" and name.isdecimal():
                        found.add((kind, int(name)))
        return found

    def leftovers(self, *, older_than_ns: int) -> Iterator[Path]:
        """Yield half-written files last written before `older_than_ns`, in ns since the epoch.

        Processes that were killed have left them.
        """
        for part in self.root.glob("*/.*.part"):
            with suppress(FileNotFoundError):  # Its writer has just finished.
                if part.stat().st_mtime_ns < older_than_ns:
                    yield part
