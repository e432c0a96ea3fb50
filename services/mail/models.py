"""The outbox's tables."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, String, Text, false, text, true
from sqlalchemy.orm import Mapped, mapped_column

from services.database import Base, UtcDateTime
from services.school.models import choice


class MailState(StrEnum):
    QUEUED = "queued"
    HELD = "held"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SUPPRESSED = "suppressed"
    CANCELLED = "cancelled"


ENDED = (MailState.SENT, MailState.FAILED, MailState.UNKNOWN, MailState.SUPPRESSED, MailState.CANCELLED)


def _partial(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


class Mail(Base):
    """One message to one recipient. See the drawing in services/mail/__init__.py.

    `body` is the finished MIME message; of a `sensitive` one it is erased as soon as it is not needed. `claim_id` is the claim of the
    job that sends it, and may say what became of it. `resend` says whether it is sent again when nobody knows whether it was sent, and
    `repeats` how often that happened. `reply` is what the server said last, without addresses.
    """

    __tablename__ = "mail"
    __table_args__ = (
        _partial("ix_mail_queued", "priority", "due_at", where="state = 'queued'"),
        # Not by the state: Postgres would rather sort this one's rows than walk the index above.
        _partial("ix_mail_deadline", "expires_at", where="ended_at is null"),
        _partial("ix_mail_sending", "claim_id", where="state = 'sending'"),
        _partial("ix_mail_ended", "ended_at", where="ended_at is not null"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(50))
    dedupe_key: Mapped[str] = mapped_column(String(200), unique=True)
    message_id: Mapped[str] = mapped_column(String(300))
    recipient: Mapped[str] = mapped_column(String(320))
    subject: Mapped[str] = mapped_column(Text)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    sensitive: Mapped[bool] = mapped_column(default=False, server_default=false())
    resend: Mapped[bool] = mapped_column(default=True, server_default=true())
    state: Mapped[MailState] = mapped_column(choice(MailState))
    priority: Mapped[int] = mapped_column(default=5)
    attempt: Mapped[int] = mapped_column(default=0)
    repeats: Mapped[int] = mapped_column(default=0)
    claim_id: Mapped[UUID | None]
    reply: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    claimed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class MailServer(Base):
    """What the workers know together about where mail goes: whether to leave it alone for a while, and when its rate allows the next.

    `failures` counts since it last took a message, `error` is what it said then. `rate_at` is when the slots that were given out end.
    """

    __tablename__ = "mail_server"

    name: Mapped[str] = mapped_column(String(300), primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    paused_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    error: Mapped[str | None] = mapped_column(Text)
    rate_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Suppression(Base):
    """An address, in lower case, that servers say does not exist; nothing is sent to it from `suppressed_at` on."""

    __tablename__ = "mail_suppression"

    address: Mapped[str] = mapped_column(String(320), primary_key=True)
    refusals: Mapped[int] = mapped_column(default=0)
    refused_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    suppressed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EventNotice(Base):
    """What readers were told of an event: one row each time, the highest `version` the last.

    `content` is what the event said, None before anything was told: `publish` writes that row, so that an event without any is one that
    others put there. `readers` are the ids of the users whom it affected, `invited` those whom it names, and `vevents` is
    what these were sent for their calendars, by language.
    """

    __tablename__ = "event_notice"

    event_id: Mapped[UUID] = mapped_column(ForeignKey("event.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    readers: Mapped[list[int]] = mapped_column(JSON, default=list)
    invited: Mapped[list[int]] = mapped_column(JSON, default=list)
    vevents: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    told_at: Mapped[datetime] = mapped_column(UtcDateTime)
