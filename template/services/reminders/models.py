"""The reminders' table."""

from datetime import datetime

from nightshift.database import Base, UtcDateTime
from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column


class Reminder(Base):
    """What to remind a person of. `mailed_at` is when the mail was queued."""

    __tablename__ = "reminder"

    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(String(320))
    text: Mapped[str] = mapped_column(Text)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    mailed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
