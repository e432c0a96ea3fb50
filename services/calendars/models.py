"""The calendars' tables: revisions of events, their rendered bytes, feeds, changes and runs."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from nightshift.database import Base, UtcDateTime, choice
from sqlalchemy import JSON, BigInteger, ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from services.translation import Locale


class FeedKind(StrEnum):
    USER = "user"
    CLASS = "class"
    DEPARTMENT = "department"


class EventRevision(Base):
    """What feeds said of an event last.

    `source` is a digest of the renderer's input: while it is the same, the event is not rendered
    again. `digest` is that of the rendered bytes in every locale, without the stamps: when it
    changes, `sequence` and `modified_at` rise. `error` says why the event could not be rendered;
    such an event is in no feed until it is corrected.
    """

    __tablename__ = "event_revision"

    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), primary_key=True
    )
    sequence: Mapped[int] = mapped_column(default=0)
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime)
    source: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    error: Mapped[str | None] = mapped_column(Text)


class EventRendering(Base):
    """One event's VEVENT in one locale: CRLF, folded, stamped. A feed is these, joined."""

    __tablename__ = "event_rendering"

    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event_revision.event_id", ondelete="CASCADE"), primary_key=True
    )
    locale: Mapped[Locale] = mapped_column(choice(Locale), primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class EventStamp(Base):
    """The highest stamps that an event had before its revision was deleted or written over.

    Triggers write the rows (migration 0008). An event that is written again under its id goes on
    from here, since calendar programs ignore what has a lower SEQUENCE than they remember. A sync
    deletes the rows when they are older than any program's memory.
    """

    __tablename__ = "event_stamp"

    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int]
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime)
    gone_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class OwnWrite(Base):
    """A mark in a transaction: what it writes leaves no notes (see notes.py). Never committed."""

    __tablename__ = "own_write"

    id: Mapped[UUID] = mapped_column(primary_key=True)


class Feed(Base):
    """One calendar file.

    `token` is its secret address; files are named by kind and owner, never by the token.
    `fingerprint`, `etag` and `size` say what was written, and `stamp` how the store knows it again.
    A file with another stamp was touched by another program: the next build compares its bytes, and
    writes it again where they differ. `error` says why the last build failed; the last good file
    stays. `modified_at` is the date that subscribers are
    given: each write raises it by at least a second. A feed with `revoked_at` has no address.
    `left_out` events had no room in the file (see ics.MOST_BYTES).
    """

    __tablename__ = "feed"
    __table_args__ = (UniqueConstraint("kind", "owner_id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[FeedKind] = mapped_column(choice(FeedKind))
    owner_id: Mapped[int]
    token: Mapped[str] = mapped_column(String(64), unique=True)
    fingerprint: Mapped[bytes | None] = mapped_column(LargeBinary)
    etag: Mapped[str | None] = mapped_column(String(64))
    event_count: Mapped[int] = mapped_column(default=0)
    left_out: Mapped[int] = mapped_column(default=0, server_default="0")
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    stamp: Mapped[str | None] = mapped_column(Text)
    # Read by the release before, which writes a file once more where it is wrong.
    mtime_ns: Mapped[int] = mapped_column(BigInteger, default=0)
    built_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    built_by: Mapped[UUID | None]
    error: Mapped[str | None] = mapped_column(Text)
    modified_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ChangeLog(Base):
    """A change of something that calendars depend on.

    Triggers write the rows (migrations 0002 and 0008), so every program's changes are noted. `kind`
    and `key` name what may look different: a class, a class group, a department (or only its own
    calendar), a lesson, a user, an event, the revision of one, or all. `event_id` is the event that
    names it, or no longer does.
    """

    __tablename__ = "change_log"
    # Rows are deleted by id, so an id must not be used again.
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    key: Mapped[str | None] = mapped_column(String(50))
    event_id: Mapped[UUID | None]


class SyncRun(Base):
    """The record of one `calendars.sync`, under the job's id.

    `inputs` is a digest of all that the calendars were made from.
    """

    __tablename__ = "sync_run"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    built: Mapped[int] = mapped_column(default=0)
    unchanged: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    removed: Mapped[int] = mapped_column(default=0)
    errors: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    inputs: Mapped[bytes | None] = mapped_column(LargeBinary)
