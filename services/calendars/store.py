"""Where calendar files are kept: a folder, with files that are replaced whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from services.calendars.models import FeedKind
from services.errors import StoreUnavailable

FOLDERS = {FeedKind.USER: "users", FeedKind.CLASS: "classes", FeedKind.DEPARTMENT: "departments"}


class Stamp(NamedTuple):
    """How a file looked when it was written: a file that looks otherwise was touched by somebody else."""

    size: int
    mtime_ns: int

    @property
    def modified_at(self) -> datetime:
        """Return when the file was written, by its disk's clock."""
        return datetime.fromtimestamp(self.mtime_ns / 1e9, UTC)


class FeedStore:
    """A folder of feeds, named by kind and owner's id: never by a class's name (some disks take 27Ga for 27GA), never by a token."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders = {kind: str(root / folder) for kind, folder in FOLDERS.items()}

    def path(self, kind: FeedKind, owner_id: int) -> Path:
        """Return where a feed is kept."""
        return self.root / FOLDERS[kind] / f"{owner_id}.ics"

    def write(self, kind: FeedKind, owner_id: int, content: bytes) -> Stamp:
        """Replace a feed's file; a reader sees the old one or the new one, also when this process is killed.

        The file is not forced to the disk: after a power cut it may be missing or short, which the next sync sees by its stamp and mends.
        Raises StoreUnavailable when the folder cannot be written.
        """
        path = self.path(kind, owner_id)
        # A name of its own for each write: a worker that was presumed dead may still be writing the same feed.
        part = path.with_name(f".{owner_id}.{uuid4().hex}.part")
        try:
            try:
                handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
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
            raise StoreUnavailable(f"the feed store at {self.root} cannot be written: {error.strerror}") from error
        return Stamp(status.st_size, status.st_mtime_ns)

    def stamp(self, kind: FeedKind, owner_id: int) -> Stamp | None:
        """Return how a feed's file looks now, or None when there is none."""
        try:
            # Not by a Path: a run asks for thousands, and making one takes longer than asking the disk.
            status = os.stat(f"{self._folders[kind]}/{owner_id}.ics")  # noqa: PTH116
        except OSError:
            return None
        return Stamp(status.st_size, status.st_mtime_ns)

    def read(self, kind: FeedKind, owner_id: int) -> bytes | None:
        """Return a feed's bytes, or None when there is no file."""
        try:
            return self.path(kind, owner_id).read_bytes()
        except OSError:
            return None

    def read_stamped(self, kind: FeedKind, owner_id: int) -> tuple[bytes, Stamp] | None:
        """Return a feed's bytes and how their file looked, or None when there is none: both of one file, also while it is replaced."""
        try:
            with self.path(kind, owner_id).open("rb") as file:
                content = file.read()
                # After the bytes: what somebody writes into the file meanwhile shows.
                status = os.fstat(file.fileno())
        except OSError:
            return None
        return content, Stamp(status.st_size, status.st_mtime_ns)

    def remove(self, kind: FeedKind, owner_id: int) -> None:
        """Remove a feed's file, if it is there. Raises StoreUnavailable when it cannot be removed."""
        try:
            self.path(kind, owner_id).unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"the feed store at {self.root} cannot be written: {error.strerror}") from error

    def leftovers(self, *, older_than_ns: int) -> Iterator[Path]:
        """Give the half-written files of processes that were killed before `older_than_ns` (nanoseconds since the epoch)."""
        for part in self.root.glob("*/.*.part"):
            try:
                if part.stat().st_mtime_ns < older_than_ns:
                    yield part
            except FileNotFoundError:
                continue  # Its writer has just finished.
