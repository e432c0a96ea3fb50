"""The outbox's tables."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from nightshift.database import Base, UtcDateTime, choice, partial_index
from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String, Text, false, true
from sqlalchemy.orm import Mapped, mapped_column


class MailState(StrEnum):
    QUEUED = "queued"
    HELD = "held"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SUPPRESSED = "suppressed"
    CANCELLED = "cancelled"


ENDED = (
    MailState.SENT,
    MailState.FAILED,
    MailState.UNKNOWN,
    MailState.SUPPRESSED,
    MailState.CANCELLED,
)


class BounceKind(StrEnum):
    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    COMPLAINT = "complaint"
    OTHER = "other"


class Mail(Base):
    """One message to one recipient. See the drawing in services/mail/__init__.py.

    `body` is the finished MIME message; that of a `sensitive` message is erased as soon as it is
    not needed. `claim_id` is the claim of the job that sends the message and may record what became
    of it. `resend` says whether a message that may have been sent is sent again, and `repeats` how
    often that happened. `reply` is the server's last answer, without addresses, or why the message
    was not sent.

    `about` names the object that the message is about, `version` the object's state, and
    `reader_id` the reader; the noun that queues the message knows what they are. Messages with one
    `about` and `reader_id` say what this reader was told about this object.
    """

    __tablename__ = "mail"
    __table_args__ = (
        partial_index("ix_mail_queued", "priority", "due_at", where="state = 'queued'"),
        # Not by the state: then Postgres would sort these rows instead of using the index above.
        partial_index("ix_mail_deadline", "expires_at", where="ended_at is null"),
        partial_index("ix_mail_sending", "claim_id", where="state = 'sending'"),
        partial_index("ix_mail_ended", "ended_at", where="ended_at is not null"),
        # What comes back names the message.
        partial_index("ix_mail_message_id", "message_id", where="ended_at is not null"),
        partial_index("ix_mail_about", "about", "reader_id", where="about is not null"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(50))
    dedupe_key: Mapped[str] = mapped_column(String(200), unique=True)
    message_id: Mapped[str] = mapped_column(String(300))
    recipient: Mapped[str] = mapped_column(String(320))
    about: Mapped[str | None] = mapped_column(String(100))
    reader_id: Mapped[int | None]
    version: Mapped[int | None] = mapped_column(BigInteger)
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
    """What the workers share about a mail server: its pause, and when the rate allows more.

    `failures` counts since the server last took a message; `error` is its last answer. `rate_at` is
    the end of the slots that were given out.
    """

    __tablename__ = "mail_server"

    name: Mapped[str] = mapped_column(String(300), primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    paused_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    error: Mapped[str | None] = mapped_column(Text)
    rate_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Suppression(Base):
    """An address, in lower case, that servers refused. Once suppressed, it gets no mail."""

    __tablename__ = "mail_suppression"

    address: Mapped[str] = mapped_column(String(320), primary_key=True)
    refusals: Mapped[int] = mapped_column(default=0)
    refused_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    suppressed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class MailBounce(Base):
    """A report of another server on a message that it took. See bounces.py.

    `digest` is the SHA-256 of the report's bytes, which are not kept. `mail_id` is the message that
    it answers, None for a report that answers none of ours. `status` is RFC 3463's code, or empty.
    """

    __tablename__ = "mail_bounce"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    mail_id: Mapped[int | None] = mapped_column(
        ForeignKey("mail.id", ondelete="CASCADE"), index=True
    )
    kind: Mapped[BounceKind] = mapped_column(choice(BounceKind))
    status: Mapped[str] = mapped_column(String(20))
    reply: Mapped[str] = mapped_column(Text)
    received_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
