"""What the calendars remember between runs: revisions of events, their rendered bytes, feeds and runs."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from services.database import Base, UtcDateTime
from services.school.models import Locale, choice


class FeedKind(StrEnum):
    USER = "user"
    CLASS = "class"
    DEPARTMENT = "department"


class EventRevision(Base):
    """What subscribers were told of an event last.

    `source` is a digest of what the renderer was given: while it is the same, the event is not rendered again. `digest` is one of the
    rendered bytes in every locale, without the stamps: when it changes, `sequence` and `modified_at` rise. `error` says why the
    event could not be rendered; such an event is in no feed until it is mended.
    """

    __tablename__ = "event_revision"

    event_id: Mapped[UUID] = mapped_column(ForeignKey("event.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(default=0)
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime)
    source: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    error: Mapped[str | None] = mapped_column(Text)


class EventRendering(Base):
    """One event's VEVENT in one locale: CRLF, folded, stamped; a feed is these joined."""

    __tablename__ = "event_rendering"

    event_id: Mapped[UUID] = mapped_column(ForeignKey("event_revision.event_id", ondelete="CASCADE"), primary_key=True)
    locale: Mapped[Locale] = mapped_column(choice(Locale), primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class Feed(Base):
    """One calendar file. `token` is its secret address; files are named by kind and owner, never by the token.

    `fingerprint`, `size` and `mtime_ns` say what was written and how the file looked then: a file that looks otherwise was touched by
    somebody else and is written again. `error` is why the last build failed; the last good file stays. `modified_at` is what subscribers
    are told of the file's age: it rises by a second at least whenever a file is written. A feed with `revoked_at` has no address.
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
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    mtime_ns: Mapped[int] = mapped_column(BigInteger, default=0)
    built_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    built_by: Mapped[UUID | None]
    error: Mapped[str | None] = mapped_column(Text)
    modified_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ChangeLog(Base):
    """Something that calendars depend on was touched. Triggers write it (migration 0002), so it holds whoever made the change.

    `kind` and `key` name what has to be looked at: a class, a class group, a department (or only its own calendar), a lesson, a user, an
    event, or all. `event_id` is the event that named it, or no longer names it.
    """

    __tablename__ = "change_log"
    # Rows are deleted by id, so that an id must not come back.
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    key: Mapped[str | None] = mapped_column(String(50))
    event_id: Mapped[UUID | None]


class SyncRun(Base):
    """The record of one `calendars.sync`; its id is the job's. `inputs` is a digest of what the calendars were made from."""

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
