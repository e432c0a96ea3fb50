"""A time zone as an RFC 5545 VTIMEZONE in yearly rules, for any IANA zone.

The rules are the permanent ones that end every zone file (RFC 9636 §3.3). When the zone does
something else in a year between FIRST_YEAR and LAST_YEAR (Ramadan in Morocco, a law that changes
next year), the years up to that one are written out, change by change, and the rules begin after
them. The years are fixed, so a feed's bytes do not depend on the day on which it is built.
"""

import calendar
import re
import zoneinfo
from bisect import bisect_left
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from importlib import resources
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

from icalendar import Timezone, TimezoneDaylight, TimezoneStandard, vRecur

__all__ = ["FIRST_YEAR", "LAST_YEAR", "make_vtimezone"]

FIRST_YEAR, LAST_YEAR = 2025, 2037
_RULES_BEGIN = 1970  # Clients expect a zone to begin here; some cannot read earlier dates.
_ONE_DAY = timedelta(days=1)
_LAST_WEEK = 5  # In a rule, the fifth such day of a month means the last.
_WEEKDAYS = ("SU", "MO", "TU", "WE", "TH", "FR", "SA")

_NAME = r"(<[^>]+>|[A-Za-z]+)"
_OFFSET = r"([+-]?[\d:]+)"
_CHANGE = r",M(\d+)\.(\d)\.(\d)(?:/([+-]?[\d:]+))?"
_FOOTER = re.compile(f"{_NAME}{_OFFSET}{_NAME}{_OFFSET}?{_CHANGE}{_CHANGE}")


@dataclass(frozen=True, slots=True)
class _Onset:
    """The offset `after` is in force from `starts` on (RFC 5545 §3.6.5).

    `starts` is a wall-clock time under the offset `before`.
    """

    starts: datetime
    before: timedelta
    after: timedelta
    name: str
    daylight: bool
    recurrence: str = ""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One of a zone's two yearly changes, as POSIX TZ writes it.

    It happens on `weekday` of `week` in `month`, `at` after the midnight of that day.
    """

    before: timedelta
    after: timedelta
    name: str
    month: int
    week: int
    weekday: int
    at: timedelta

    def onset(self, year: int, recurrence: str = "") -> _Onset:
        # The greater offset is called daylight time, although Dublin's law says the opposite:
        # clients expect it so.
        starts = datetime.combine(self._day(year), time()) + self.at
        return _Onset(
            starts, self.before, self.after, self.name, self.after > self.before, recurrence
        )

    def recurrence(self) -> str:
        """Return the rule as an RRULE.

        `at` may lie outside its day (Gaza: 50 hours); the rule then names other days.
        """
        days = self.at // _ONE_DAY
        weekday = _WEEKDAYS[(self.weekday + days) % 7]
        if days == 0:
            nth = -1 if self.week == _LAST_WEEK else self.week
            return f"FREQ=YEARLY;BYDAY={nth}{weekday};BYMONTH={self.month}"
        # A leap day would move only the last week of February, where no zone has a rule.
        length = calendar.monthrange(2025, self.month)[1]
        first = (length - 6 if self.week == _LAST_WEEK else 7 * self.week - 6) + days
        if first >= 1 and first + 6 <= length:
            numbers = ",".join(str(first + n) for n in range(7))
            return f"FREQ=YEARLY;BYDAY={weekday};BYMONTHDAY={numbers};BYMONTH={self.month}"
        # Seven days that reach into another month (Cairo). They are counted from the year's end, so
        # a leap day does not move them.
        first += (date(2025, self.month, 1) - date(2026, 1, 1)).days - 1
        numbers = ",".join(str(first + n) for n in range(7))
        return f"FREQ=YEARLY;BYDAY={weekday};BYYEARDAY={numbers}"

    def _day(self, year: int) -> date:
        first = date(year, self.month, 1)
        day = first + timedelta(days=(self.weekday - first.isoweekday()) % 7 + 7 * (self.week - 1))
        return day if day.month == self.month else day - timedelta(days=7)


def make_vtimezone(zone: ZoneInfo) -> Timezone:
    """Return `zone` from FIRST_YEAR on: a DAYLIGHT and a STANDARD rule.

    A zone that keeps its offset has one STANDARD. It is exact until the end of LAST_YEAR, and after
    that while the zone follows its permanent rule.
    """
    initial, *changes = _observed(zone)
    rules = _rules(_footer(zone.key))
    rules_begin = _RULES_BEGIN
    for year in range(FIRST_YEAR, LAST_YEAR + 1):
        expected = {(onset.starts, onset.after) for onset in (rule.onset(year) for rule in rules)}
        if expected != {
            (onset.starts, onset.after) for onset in changes if onset.starts.year == year
        }:
            rules_begin = year + 1
    written_out = [onset for onset in changes if onset.starts.year < rules_begin]
    yearly = [rule.onset(rules_begin, rule.recurrence()) for rule in rules]

    component = Timezone()
    component.add("TZID", zone.key)
    for onset in [*([initial] if written_out or not yearly else []), *written_out, *yearly]:
        component.add_component(_observance(onset))
    return component


def _observance(onset: _Onset) -> TimezoneDaylight | TimezoneStandard:
    component = TimezoneDaylight() if onset.daylight else TimezoneStandard()
    component.add("DTSTART", onset.starts)
    component.add("TZOFFSETFROM", onset.before)
    component.add("TZOFFSETTO", onset.after)
    component.add("TZNAME", onset.name)
    if onset.recurrence:
        component.add("RRULE", vRecur.from_ical(onset.recurrence))
    return component


def _observed(zone: ZoneInfo) -> list[_Onset]:
    """Return the onsets from FIRST_YEAR to LAST_YEAR, after the one in force when they begin."""
    begin = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)
    days = [
        begin + n * _ONE_DAY for n in range((date(LAST_YEAR + 1, 1, 1) - begin.date()).days + 1)
    ]
    changing = [
        day for day, following in pairwise(days) if _offset(zone, day) != _offset(zone, following)
    ]
    changes = [_onset(zone, _change(zone, day), _offset(zone, day)) for day in changing]
    wall_clock = datetime(_RULES_BEGIN, 1, 1)  # noqa: DTZ001 - a wall-clock time
    return [replace(_onset(zone, begin, _offset(zone, begin)), starts=wall_clock), *changes]


def _change(zone: ZoneInfo, day: datetime) -> datetime:
    """Return the second of the 24 hours after `day` at which the offset changes."""
    second = bisect_left(
        range(24 * 60 * 60),
        x=True,
        key=lambda n: _offset(zone, day + timedelta(seconds=n)) != _offset(zone, day),
    )
    return day + timedelta(seconds=second)


def _onset(zone: ZoneInfo, moment: datetime, before: timedelta) -> _Onset:
    local = moment.astimezone(zone)
    is_daylight = (local.dst() or timedelta()) > timedelta()
    return _Onset(
        (moment + before).replace(tzinfo=None),
        before,
        _offset(zone, moment),
        local.tzname() or "",
        is_daylight,
    )


def _footer(key: str) -> str:
    """Return the last line of a zone file, its permanent rule as POSIX TZ.

    ZoneInfo looks for the file in the same order, but does not say which one it read.
    """
    installed = (path for path in (Path(root, key) for root in zoneinfo.TZPATH) if path.is_file())
    source = next(installed, None) or resources.files("tzdata.zoneinfo").joinpath(*key.split("/"))
    return source.read_bytes().rstrip(b"\n").rpartition(b"\n")[2].decode("latin-1")


def _rules(footer: str) -> tuple[_Rule, ...]:
    """Parse both changes of a POSIX TZ line such as `CET-1CEST,M3.5.0,M10.5.0/3`.

    A zone that keeps its offset has none.
    """
    if not (match := _FOOTER.fullmatch(footer)):
        return ()
    winter_name, winter_text, summer_name, summer_text, *changes = match.groups()
    winter = -_duration(winter_text)
    summer = -_duration(summer_text) if summer_text else winter + timedelta(hours=1)

    def rule(before: timedelta, after: timedelta, name: str, change: list[str]) -> _Rule:
        month, week, weekday, at = change
        return _Rule(
            before,
            after,
            name.strip("<>"),
            int(month),
            int(week),
            int(weekday),
            _duration(at or "2"),
        )

    return rule(winter, summer, summer_name, changes[:4]), rule(
        summer, winter, winter_name, changes[4:]
    )


def _duration(text: str) -> timedelta:
    hours, minutes, seconds = (*map(int, text.lstrip("+-").split(":")), 0, 0)[:3]
    return timedelta(hours=hours, minutes=minutes, seconds=seconds) * (
        -1 if text.startswith("-") else 1
    )


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()
