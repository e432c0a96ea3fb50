"""What the timetable's syncs remember: which source a row is from, and how each sync went."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from nightshift.database import Base, UtcDateTime, choice
from sqlalchemy import JSON, String, Text
from sqlalchemy.orm import Mapped, mapped_column


class Kind(StrEnum):
    """What a source has a claim on."""

    CLASS = "class"
    LESSON = "lesson"
    CHANGE = "change"


class State(StrEnum):
    """How a sync ended."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    FAILED = "failed"


class TimetableClaim(Base):
    """A row of the school that a source has, under its `source_id`.

    `written` has what the source last wrote there, by field: where the row says something else
    now, a person has changed it, and the source does not. It is NULL where a person entered the
    row: then the source only knows it.
    """

    __tablename__ = "timetable_claim"
    kind: Mapped[Kind] = mapped_column(choice(Kind), primary_key=True)
    row_id: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(String(30), index=True)
    source_id: Mapped[str] = mapped_column(String(100))
    written: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class TimetableRun(Base):
    """The record of one sync with one source.

    `counts` says how many rows came, went and changed, by kind; `report` lists them, and what was
    left as it is, with the reason. `error` says why nothing was changed.
    """

    __tablename__ = "timetable_run"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    source: Mapped[str] = mapped_column(String(30))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    finished_at: Mapped[datetime] = mapped_column(UtcDateTime)
    state: Mapped[State] = mapped_column(choice(State))
    counts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    report: Mapped[list[Any]] = mapped_column(JSON, default=list)
    error: Mapped[str | None] = mapped_column(Text)
