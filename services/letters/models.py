"""What readers were told about events."""

from datetime import datetime
from typing import Any
from uuid import UUID

from nightshift.database import Base, UtcDateTime
from sqlalchemy import JSON, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column


class EventNotice(Base):
    """What readers were told about an event: one row each time, the newest `version` last.

    `content` is what the event said. It is None before the first notice: `publish` writes that row,
    so an event without a row was written by another program or a CSV file. `readers` are the ids of
    the users whom the event affected, `invited` of those whom it names, and `vevents` is what these
    got for their calendars, by language.
    """

    __tablename__ = "event_notice"

    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    readers: Mapped[list[int]] = mapped_column(JSON, default=list)
    invited: Mapped[list[int]] = mapped_column(JSON, default=list)
    vevents: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    told_at: Mapped[datetime] = mapped_column(UtcDateTime)
