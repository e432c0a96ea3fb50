"""The versions of events that readers were told about."""

from datetime import datetime
from typing import Any
from uuid import UUID

from nightshift.database import Base, UtcDateTime
from sqlalchemy import JSON, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column


class EventNotice(Base):
    """A version of an event that its readers are told: one row each time, the newest the highest.

    `content` is what the event said. `readers` are the ids of the users whom the event affected,
    `invited` of those whom it names, and `vevents` is what these get for their calendars, by
    language. What one reader was told last is in the outbox: a mail names the version that it
    tells.

    Version 0 is what calendars showed before the first notice. Its content is None for an event
    that was then published for the first time. When our services change an event that another
    program wrote, `before_id` is the row of `event` that has its former content and links, and
    `before_cancelled` whether it was cancelled; the first notice reads them into this version.
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
    before_id: Mapped[UUID | None]
    before_cancelled: Mapped[bool | None]
