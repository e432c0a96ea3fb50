"""The days around today that feeds show, and the events that overlap them."""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, and_, or_

from services.school.models import Event, EventState


@dataclass(frozen=True, slots=True)
class Window:
    """The days from `first` to `last`, both included, around the instant `now` in a zone."""

    first: date
    last: date
    now: datetime
    zone: ZoneInfo

    @classmethod
    def around(cls, now: datetime, zone: ZoneInfo, *, days_past: int, days_ahead: int) -> "Window":
        """Return the window around the day that `now` is in the school's zone."""
        today = now.astimezone(zone).date()
        return cls(today - timedelta(days=days_past), today + timedelta(days=days_ahead), now, zone)

    def current(self) -> ColumnElement[bool]:
        """Return the condition for published events that overlap the window.

        Without versions of events, and without cancelled events that have passed. Of a repeated
        event it looks at the days between its first and last date only (see `reaches`).
        """
        begins = datetime.combine(self.first, time(), self.zone)
        ends = datetime.combine(self.last + timedelta(days=1), time(), self.zone)
        today = self.now.astimezone(self.zone).date()
        timed = and_(Event.ends_at >= begins, Event.starts_at < ends)
        all_day = and_(Event.ends_on >= self.first, Event.starts_on <= self.last)
        series = and_(Event.last_on >= self.first, Event.first_on <= self.last)
        takes_place = and_(Event.cancelled_at.is_(None), Event.deleted_at.is_(None))
        return and_(
            Event.state == EventState.PUBLISHED,
            Event.version_of_id.is_(None),
            or_(timed, all_day, series),
            or_(
                takes_place,
                Event.ends_at >= self.now,
                Event.ends_on >= today,
                Event.last_on >= today,
            ),
        )

    def reaches(self, starts: datetime | date, ends: datetime | date) -> bool:
        """Return whether one time that an event takes place overlaps the window."""
        if isinstance(starts, datetime) and isinstance(ends, datetime):
            begins = datetime.combine(self.first, time(), self.zone)
            after = datetime.combine(self.last + timedelta(days=1), time(), self.zone)
            return ends >= begins and starts < after
        return ends >= self.first and starts <= self.last
