"""The tables of calendars that are kept elsewhere, apart from what feeds are made from."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from nightshift.database import Base, UtcDateTime
from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column


class EventSource(Base):
    """A calendar that is kept elsewhere.

    `address` is a file's path or a URL, which may be secret. `options` say for whom its events are
    (the names of EventDetails' fields). `etag` and `last_modified` are those of what was imported
    last, and `state` is a digest of it. `nightly`: it is imported every night.
    """

    __tablename__ = "event_source"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    address: Mapped[str] = mapped_column(Text)
    options: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    nightly: Mapped[bool] = mapped_column(default=False, server_default=false())
    etag: Mapped[str | None] = mapped_column(Text)
    last_modified: Mapped[str | None] = mapped_column(Text)
    state: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SourceEntry(Base):
    """An event that came from a source.

    `uid` and `part` name it there. `said` is a digest of what the source said last, and `written`
    of what was written here: where the event has become another, a person has changed it.
    `gone_at` is when the source no longer had it.
    """

    __tablename__ = "event_source_entry"

    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), primary_key=True
    )
    source_id: Mapped[int] = mapped_column(
        ForeignKey("event_source.id", ondelete="CASCADE"), index=True
    )
    uid: Mapped[str] = mapped_column(Text)
    part: Mapped[str] = mapped_column(Text, default="")
    said: Mapped[bytes] = mapped_column(LargeBinary)
    written: Mapped[bytes] = mapped_column(LargeBinary)
    gone_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SourceRun(Base):
    """The record of one import: what was done, or why it failed."""

    __tablename__ = "event_source_run"
    __table_args__ = (Index("ix_event_source_run_source_id_ended_at", "source_id", "ended_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    source_id: Mapped[int] = mapped_column(ForeignKey("event_source.id", ondelete="CASCADE"))
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)
    error: Mapped[str | None] = mapped_column(Text)
    report: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
