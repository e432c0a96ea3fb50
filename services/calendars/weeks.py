"""One week of a calendar, as its feed's bytes tell it."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from icalendar import Calendar
from nightshift.errors import InvalidInput

from services.school.models import DateState
from services.school.recurrences import DateChange, Series, find_day, find_occurrences

DAYS = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """An event as a subscriber sees it. Instants are in the reader's zone; `ends` is exclusive."""

    title: str
    location: str
    starts: datetime | date
    ends: datetime | date
    cancelled: bool

    @property
    def is_all_day(self) -> bool:
        """Return whether it has no time of day."""
        return not isinstance(self.starts, datetime)

    @property
    def first(self) -> date:
        """Return the day on which it starts."""
        return _day(self.starts)

    @property
    def last(self) -> date:
        """Return the last day on which it takes place."""
        if self.ends <= self.starts:
            return self.first
        smallest = timedelta(microseconds=1) if isinstance(self.ends, datetime) else timedelta(1)
        return _day(self.ends - smallest)


@dataclass(frozen=True, slots=True)
class Week:
    """The seven days from a Monday. `all_day` are days' events, `timed` those with a time by day.

    `next_on` is the first day after the week that has an event which is not in the week.
    """

    monday: date
    all_day: list[Entry] = field(default_factory=list)
    timed: list[list[Entry]] = field(default_factory=lambda: [[] for _ in range(DAYS)])
    next_on: date | None = None

    @property
    def days(self) -> list[date]:
        """Return the week's days."""
        return [self.monday + timedelta(days=index) for index in range(DAYS)]


def read_week(content: bytes, monday: date, zone: ZoneInfo) -> Week:
    """Return the week of a feed that begins on a Monday, in the clock of a zone."""
    [week] = read_weeks(content, monday, zone, number=1)
    return week


def read_weeks(content: bytes, monday: date, zone: ZoneInfo, *, number: int) -> list[Week]:
    """Return so many weeks of a feed from a Monday on. The feed is read once."""
    entries = sorted(_read_entries(content, zone), key=lambda one: (one.first, str(one.starts)))
    return [_make_week(entries, monday + timedelta(weeks=after)) for after in range(number)]


def _make_week(entries: list[Entry], monday: date) -> Week:
    sunday = monday + timedelta(days=DAYS - 1)
    later = [entry.first for entry in entries if entry.first > sunday]
    week = Week(monday, next_on=min(later, default=None))
    for entry in entries:
        first, last = max(entry.first, monday), min(entry.last, sunday)
        if not isinstance(entry.starts, datetime):
            if first <= last:
                week.all_day.append(entry)
            continue
        for index in range((first - monday).days, (last - monday).days + 1):
            week.timed[index].append(entry)
    return week


def _read_entries(content: bytes, zone: ZoneInfo) -> list[Entry]:
    events: list[Any] = Calendar.from_ical(content).walk("VEVENT")
    # Dates of repeated events that have an entry of their own, by UID.
    own: dict[str, set[date]] = defaultdict(set)
    for event in events:
        if "RECURRENCE-ID" in event:
            own[str(event["UID"])].add(find_day(event["RECURRENCE-ID"].dt, zone))
    return [
        Entry(
            title=str(event["SUMMARY"]),
            location=str(event.get("LOCATION", "")),
            starts=_local(starts, zone),
            ends=_local(ends, zone),
            cancelled=event.get("STATUS") == "CANCELLED",
        )
        for event in events
        for starts, ends in _find_times(event, own[str(event["UID"])], zone)
    ]


def _find_times(event: Any, own: set[date], zone: ZoneInfo) -> list[tuple[date, date]]:
    """Return when an entry of a feed takes place, without the dates in `own`."""
    starts, ends = event.start, event.start if event.DTEND is None else event.DTEND
    if "RRULE" not in event:
        return [(starts, ends)]
    left_out = [moment.dt for line in _as_list(event.get("EXDATE")) for moment in line.dts]
    changes = {find_day(moment, zone) for moment in left_out} | own
    if not isinstance(ends, datetime):
        ends -= timedelta(1)  # DTEND is exclusive.
    series = Series(
        starts,
        ends,
        event["RRULE"].to_ical().decode(),
        tuple(DateChange(on, DateState.LEFT_OUT) for on in sorted(changes)),
    )
    after = timedelta(0) if isinstance(ends, datetime) else timedelta(1)
    try:
        found = find_occurrences(series, zone)
    except InvalidInput:
        return []  # Each of its dates has an entry of its own.
    return [(one.starts, one.ends + after) for one in found]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _local(moment: datetime | date, zone: ZoneInfo) -> datetime | date:
    return moment.astimezone(zone) if isinstance(moment, datetime) else moment


def _day(moment: datetime | date) -> date:
    return moment.date() if isinstance(moment, datetime) else moment
