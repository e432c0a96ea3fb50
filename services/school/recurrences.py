"""Repeated events: a rule (RFC 5545 §3.3.10), and the dates on which it does not apply as it is.

A rule has a date once a day at most, so a date of a series is named by its day on the school's
clock. That name stays when the series moves to another hour. A rule always ends, by COUNT or UNTIL,
and UNTIL is kept as a day, which is included.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from dateutil.rrule import rrulestr
from nightshift.errors import InvalidInput

from services.school.models import DateState

# Each of them may be a row, a line in a calendar and an entry in a page.
MOST_DATES = 2_000
LONGEST_RULE = 200
LAST_DAY = date(2199, 12, 31)
# Never change it: the ids of dates' rows depend on it.
DATE_NAMESPACE = UUID("0c7c8d0a-58a4-5a0e-8f52-9a5f2f1f4c11")

_WEEKDAYS = "MO|TU|WE|TH|FR|SA|SU"
_DAY_OF_MONTH = r"[+-]?([1-9]|[12][0-9]|3[01])"


def _listed(member: str) -> str:
    return rf"({member})(,({member}))*"


# What the parts of a rule may be, and an example of each.
_PARTS = {
    "FREQ": ("DAILY|WEEKLY|MONTHLY|YEARLY", "DAILY, WEEKLY, MONTHLY or YEARLY"),
    "INTERVAL": ("[1-9][0-9]{0,2}", "a number from 1 to 999"),
    "COUNT": ("[1-9][0-9]{0,9}", f"a number from 1 to {MOST_DATES:,}"),
    "UNTIL": (r"[0-9]{8}(T[0-9]{6}Z?)?", "a day as 20270131, or a time as 20270131T070000Z"),
    "BYDAY": (
        _listed(rf"([+-]?([1-9]|[1-4][0-9]|5[0-3]))?({_WEEKDAYS})"),
        "weekdays as MO,WE, in a month also as 1MO or -1FR",
    ),
    "BYMONTHDAY": (_listed(_DAY_OF_MONTH), "days of a month as 1,15 or -1"),
    "BYMONTH": (_listed("[1-9]|1[0-2]"), "months as 3,9"),
    "BYYEARDAY": (
        _listed("[+-]?([1-9]|[1-9][0-9]|[12][0-9]{2}|3[0-5][0-9]|36[0-6])"),
        "days of a year as 1,100 or -1",
    ),
    "BYWEEKNO": (_listed("[+-]?([1-9]|[1-4][0-9]|5[0-3])"), "weeks of a year as 20"),
    "BYSETPOS": (
        _listed("[+-]?([1-9]|[1-9][0-9]|[12][0-9]{2}|3[0-5][0-9]|36[0-6])"),
        "positions as 1 or -1",
    ),
    "WKST": (_WEEKDAYS, "a weekday as MO"),
}
_BY_TIME = ("BYHOUR", "BYMINUTE", "BYSECOND")
# RFC 5545 §3.3.10: which parts do not go with which frequency.
_NOT_WITH = {
    "BYMONTHDAY": ("WEEKLY",),
    "BYYEARDAY": ("DAILY", "WEEKLY", "MONTHLY"),
    "BYWEEKNO": ("DAILY", "WEEKLY", "MONTHLY"),
}


class DateChange(NamedTuple):
    """What is otherwise on one date of a series. None: as on every date.

    `on` is the local day that the rule has. A date that is left out is in no calendar; calendars
    show a cancelled one as cancelled.
    """

    on: date
    state: DateState
    starts: datetime | date | None = None
    ends: datetime | date | None = None
    title: str | None = None
    description: str | None = None
    location: str | None = None


class Occurrence(NamedTuple):
    """One time that an event takes place, in UTC or by days, and what is otherwise on that date.

    `on` and `due` are the day and the start that the rule has for it.
    """

    on: date
    due: datetime | date
    starts: datetime | date
    ends: datetime | date
    change: DateChange | None = None


class Series(NamedTuple):
    """When an event takes place: once, or again and again by a rule, except for some dates."""

    starts: datetime | date
    ends: datetime | date
    rrule: str = ""
    changes: tuple[DateChange, ...] = ()


# --- rules ---


def read_rule(text: str, starts: datetime | date, ends: datetime | date, zone: ZoneInfo) -> str:
    """Return a rule in the form that is kept: capitals, and UNTIL as a day on the school's clock.

    Raises:
        ValueError: It is no rule, it has no end or no date, more than MOST_DATES, or its first
            date is not that of `starts`. The message says which part, and how to correct it.
    """
    parts = _split(text)
    _check_parts(parts)
    first = find_day(starts, zone)
    for moment in (starts, ends):
        if isinstance(moment, datetime) and moment.astimezone(zone).fold:
            raise ValueError(
                "cannot begin or end in the hour that the clocks show a second time; choose another"
                " hour"
            )
    if "UNTIL" in parts:
        parts["UNTIL"] = f"{_read_until(parts['UNTIL'], starts, zone):%Y%m%d}"
        if parts["UNTIL"] < f"{first:%Y%m%d}":
            raise ValueError(f"UNTIL={parts['UNTIL']} is before starts ({first}); give a later day")
    rule = ";".join(f"{name}={parts[name]}" for name in _PARTS if name in parts)
    days = _find_days(rule, first)
    if not days:
        raise ValueError(
            f"{rule} has no date from {first} on: no day of the calendar fits all its parts"
        )
    if len(days) > MOST_DATES:
        raise ValueError(
            f"has more than {MOST_DATES:,} dates, which is the limit; give an earlier UNTIL or a"
            " lower COUNT"
        )
    if days[0] != first:
        raise ValueError(
            f"starts ({first}, {first:%A}) is no date of {rule}; its first date is {days[0]},"
            f" {days[0]:%A}: correct starts or the rule"
        )
    if "COUNT" in parts and len(days) < int(parts["COUNT"]):
        raise ValueError(f"COUNT={parts['COUNT']} reaches beyond {LAST_DAY}; give a lower one")
    try:
        _take_place(days[-1], Series(starts, ends), zone)
    except OverflowError as error:
        raise ValueError("its last date is at the edge of the calendar") from error
    return rule


def parse_rule(rrule: str) -> dict[str, str]:
    """Return the parts of a rule that is kept, by name."""
    return dict(part.split("=", 1) for part in rrule.split(";"))


def _split(text: str) -> dict[str, str]:
    text = "".join(text.upper().split()).removeprefix("RRULE:").rstrip(";")
    if len(text) > LONGEST_RULE:
        raise ValueError(f"is {len(text)} characters long; shorten it to {LONGEST_RULE}")
    parts: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(
                f"{part!r} is no part of a rule; write as FREQ=WEEKLY;BYDAY=MO;UNTIL=20270131"
            )
        if name in parts:
            raise ValueError(f"has {name} twice; keep one")
        parts[name] = value
    return parts


def _check_parts(parts: Mapping[str, str]) -> None:
    _check_each(parts)
    frequency = parts.get("FREQ")
    if frequency is None:
        raise ValueError("has no FREQ; write as FREQ=WEEKLY;BYDAY=MO;UNTIL=20270131")
    if "COUNT" in parts and "UNTIL" in parts:
        raise ValueError("has both COUNT and UNTIL; keep one")
    if not {"COUNT", "UNTIL"} & parts.keys():
        raise ValueError("never ends; add UNTIL=20270131 or COUNT=10")
    if int(parts.get("COUNT", 1)) > MOST_DATES:
        raise ValueError(f"COUNT={parts['COUNT']}: the limit is {MOST_DATES:,} dates")
    _check_combinations(parts, frequency)


def _check_each(parts: Mapping[str, str]) -> None:
    for name, value in parts.items():
        if name in _BY_TIME:
            raise ValueError(f"{name}: an event has one time a day, that of starts; leave it out")
        if name not in _PARTS:
            raise ValueError(f"{name} is no part of a rule; the parts are {', '.join(_PARTS)}")
        pattern, example = _PARTS[name]
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{name} must be {example}, not {value!r}")


def _check_combinations(parts: Mapping[str, str], frequency: str) -> None:
    for name, frequencies in _NOT_WITH.items():
        if name in parts and frequency in frequencies:
            raise ValueError(f"{name} does not go with FREQ={frequency}; leave one out")
    if re.search("[0-9]", parts.get("BYDAY", "")) and (
        frequency in ("DAILY", "WEEKLY") or "BYWEEKNO" in parts
    ):
        raise ValueError("BYDAY has numbers, which go with FREQ=MONTHLY and YEARLY; leave them out")
    if "BYSETPOS" in parts and not any(
        name.startswith("BY") for name in parts.keys() - {"BYSETPOS"}
    ):
        raise ValueError("BYSETPOS needs another part to choose from, as BYDAY=MO,TU")


def _read_until(text: str, starts: datetime | date, zone: ZoneInfo) -> date:
    """Return the last day that a rule may have a date on."""
    try:
        day = datetime.strptime(text[:8], "%Y%m%d").date()  # noqa: DTZ007 - a day
        if len(text) > len("20270131"):
            clock = time(int(text[9:11]), int(text[11:13]), int(text[13:15]))
            moment = datetime.combine(day, clock, UTC if text.endswith("Z") else zone)
            local = moment.astimezone(zone)
            day = local.date()
            if isinstance(starts, datetime) and local < _at(day, starts, zone):
                day -= timedelta(days=1)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"UNTIL={text} is not in the calendar ({error})") from error
    if day > LAST_DAY:
        raise ValueError(f"UNTIL={text}: the year must not be after {LAST_DAY.year}")
    return day


@lru_cache(maxsize=500)
def _find_days(rrule: str, first: date) -> tuple[date, ...]:
    """Return a rule's days, one more than MOST_DATES at most.

    The library would look for a day that does not exist until the year 9999. So it is always given
    an end, and counts nothing itself.
    """
    parts = parse_rule(rrule)
    count = min(int(parts.pop("COUNT", MOST_DATES + 1)), MOST_DATES + 1)
    parts.setdefault("UNTIL", f"{LAST_DAY:%Y%m%d}")
    text = ";".join(f"{name}={value}" for name, value in parts.items())
    rule = rrulestr(text, dtstart=datetime.combine(first, time()))
    return tuple(moment.date() for moment in islice(rule, count))


# --- the times ---


def find_day(moment: datetime | date, zone: ZoneInfo) -> date:
    """Return the local day of a moment."""
    return moment.astimezone(zone).date() if isinstance(moment, datetime) else moment


def find_local_days(
    starts: datetime | date, ends: datetime | date, zone: ZoneInfo
) -> tuple[date, date]:
    """Return the first and the last local day of an event.

    An event that ends at midnight does not reach into the next day.
    """
    if not isinstance(starts, datetime) or not isinstance(ends, datetime):
        return starts, ends
    last = max(ends - timedelta(microseconds=1), starts)
    return starts.astimezone(zone).date(), last.astimezone(zone).date()


def find_rule(series: Series, zone: ZoneInfo) -> str:
    """Return a series' rule in the form that is kept.

    Raises InvalidInput for a rule that another program has written and that is none.
    """
    try:
        return read_rule(series.rrule, series.starts, series.ends, zone)
    except ValueError as error:
        raise InvalidInput(f"repeats: {error}") from error


def find_days(series: Series, zone: ZoneInfo) -> tuple[date, ...]:
    """Return the days that a series' rule has, without regard to what is otherwise on some.

    Raises InvalidInput for a rule that another program has written and that is none.
    """
    first = find_day(series.starts, zone)
    if not series.rrule:
        return (first,)
    return _find_days(find_rule(series, zone), first)


# A series may have thousands of dates, so few are kept.
@lru_cache(maxsize=500)
def find_occurrences(series: Series, zone: ZoneInfo) -> tuple[Occurrence, ...]:
    """Return all times that an event takes place, also cancelled ones, by the rule's days.

    The end has the same distance on the clock from the start, as calendar programs do it. What is
    otherwise on a day that the rule does not have counts for nothing.

    Raises:
        InvalidInput: Another program has written a rule that is none, or that has no date left.
    """
    changes = {change.on: change for change in series.changes}
    found = []
    for day in find_days(series, zone):
        change = changes.get(day) if series.rrule else None
        starts, ends = _take_place(day, series, zone)
        due = starts
        if change is not None and change.state == DateState.CHANGED and not _says_anything(change):
            change = None
        if change is not None:
            if change.state == DateState.LEFT_OUT:
                continue
            # Not where the event has become one of whole days since, or no longer is.
            if _is_timed(change.starts) == _is_timed(starts):
                starts, ends = change.starts or starts, change.ends or ends
        found.append(Occurrence(day, due, starts, ends, change))
    if not found:
        raise InvalidInput("repeats: every date is left out; keep one, or delete the event")
    return tuple(found)


def _is_timed(moment: datetime | date | None) -> bool:
    return isinstance(moment, datetime)


def _says_anything(change: DateChange) -> bool:
    return any(value is not None for value in change[2:])


def find_occurrences_or_first(series: Series, zone: ZoneInfo) -> tuple[Occurrence, ...]:
    """Return what `find_occurrences` does; of a rule that is none, the first date alone."""
    try:
        return find_occurrences(series, zone)
    except InvalidInput:
        on = find_day(series.starts, zone)
        return (Occurrence(on, series.starts, series.starts, series.ends),)


def find_span(series: Series, zone: ZoneInfo) -> tuple[date, date]:
    """Return the first and the last local day on which an event takes place."""
    days = [
        find_local_days(one.starts, one.ends, zone)
        for one in find_occurrences_or_first(series, zone)
    ]
    return min(first for first, _ in days), max(last for _, last in days)


def find_due(day: date, series: Series, zone: ZoneInfo) -> datetime | date:
    """Return when a series begins on a day of its rule."""
    return _take_place(day, series, zone)[0]


def _take_place(
    day: date, series: Series, zone: ZoneInfo
) -> tuple[datetime | date, datetime | date]:
    starts, ends = series.starts, series.ends
    if not isinstance(starts, datetime) or not isinstance(ends, datetime):
        return day, day + (ends - starts)
    if not series.rrule:
        return starts, ends
    local, end = (moment.astimezone(zone).replace(tzinfo=None) for moment in (starts, ends))
    begin = _at(day, starts, zone)
    finish = (begin.replace(tzinfo=None) + (end - local)).replace(tzinfo=zone)
    utc = begin.astimezone(UTC)
    return utc, max(finish.astimezone(UTC), utc)


def _at(day: date, starts: datetime, zone: ZoneInfo) -> datetime:
    """Return the local time of `starts` on another day.

    A time that the clocks skip is as long after midnight as they would have it (RFC 5545 §3.3.5).
    """
    return datetime.combine(day, starts.astimezone(zone).time(), zone)


# --- rows of single dates ---


def make_date_id(event_id: UUID, on: date) -> UUID:
    """Return the id of the row that says what is otherwise on a date of an event."""
    return uuid5(DATE_NAMESPACE, f"{event_id} {on.isoformat()}")


def make_change(on: date, says: Mapping[str, Any]) -> DateChange:
    """Return the change of a date, of values by the names of its fields."""
    state = says.get("state") or DateState.CHANGED
    return DateChange(on, state, *map(says.get, DateChange._fields[2:]))


def check_change(change: DateChange, series: Series, zone: ZoneInfo) -> list[tuple[str, str]]:
    """Return what is wrong with a date's change, as field and reason."""
    wrong = []
    try:
        days: Sequence[date] = find_days(series, zone)
    except InvalidInput:
        return []  # Said of the event.
    if not series.rrule:
        wrong.append(("date", "the event does not repeat; give it a rule first, or edit it whole"))
    elif change.on not in days:
        near = min(days, key=lambda day: abs(day - change.on))
        wrong.append(("date", f"{change.on} is no date of the event; the nearest is {near}"))
    if change.starts is not None and (
        isinstance(change.starts, datetime) != isinstance(series.starts, datetime)
    ):
        wrong.append(("starts", "must be of the same kind as the event's: a date or a time"))
    return wrong
