"""Read a calendar that another program wrote (RFC 5545) as events of the school.

A rule is taken over where it has the same dates here. What it has otherwise, as seen from the
school's clock, becomes a change of that date; a date that no rule of ours can have becomes an event
of its own. So the dates here are those that `recurring-ical-events` finds there.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import icalendar
import recurring_ical_events  # type: ignore[import-untyped]
from nightshift.errors import InvalidInput

from services.school.models import DateState
from services.school.recurrences import (
    DateChange,
    Series,
    find_day,
    find_occurrences,
    find_rule,
)
from services.school.rows import YEARS
from services.school.texts import (
    LONGEST_DESCRIPTION,
    LONGEST_LINE,
    clean,
    is_blank,
    normalise,
    shorten,
)

# Of VEVENTs, and of the dates that become events of their own.
MOST_EVENTS = 10_000
MOST_APART = 400
# A rule without an end ends with the second year after this one. It moves once a year.
YEARS_AHEAD = 2
# Not expanded: they have thousands of dates a day.
_TOO_OFTEN = ("SECONDLY", "MINUTELY", "HOURLY")
# What may be wrong in other properties matters to nobody here.
_TIMES = {"DTSTART", "DTEND", "DURATION", "RRULE", "RDATE", "EXDATE", "RECURRENCE-ID", None}
_PRIVATE = ("PRIVATE", "CONFIDENTIAL")

Moment = datetime | date


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """An event as its source has it. `uid` and `part` name it there.

    `part` is empty, or names the date that is an event of its own here.
    """

    uid: str
    part: str
    title: str
    description: str
    location: str
    starts: Moment
    ends: Moment
    rrule: str = ""
    changes: tuple[DateChange, ...] = ()
    cancelled: bool = False

    def digest(self) -> bytes:
        """Return 16 bytes that are others when the source says something else."""
        values = (getattr(self, name) for name in self.__slots__)
        return blake2b(repr(tuple(values)).encode(), digest_size=16).digest()


class Trouble(NamedTuple):
    """An event that is not taken over, or not as it is, and why."""

    uid: str
    title: str
    reason: str


@dataclass
class SourceCalendar:
    """What was read, and what was not."""

    events: list[SourceEvent] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)


class _Say(NamedTuple):
    title: str
    description: str
    location: str
    cancelled: bool


class _Date(NamedTuple):
    """One date that the source has: its original start there, and what it says."""

    original: Moment
    starts: Moment
    ends: Moment
    says: _Say


def read_calendar(content: bytes, zone: ZoneInfo, *, domain: str, today: date) -> SourceCalendar:
    """Return the events of an iCalendar file, on the clock of the school.

    An event that cannot be read is in `troubles`; the others are read all the same. Those whose
    UIDs end with `domain` are the school's own, and are left out.

    Raises:
        InvalidInput: It is no calendar, or has more than MOST_EVENTS events.
    """
    if (count := content.upper().count(b"BEGIN:VEVENT")) > MOST_EVENTS:
        raise InvalidInput(f"it has {count:,} events; the limit is {MOST_EVENTS:,}")
    try:
        parsed = icalendar.Calendar.from_ical(_decode(content), multiple=True)
    except Exception as error:
        raise InvalidInput(f"it is no calendar: {_first_line(error)}") from error
    calendars = [one for one in parsed if one.name == "VCALENDAR"]
    if not calendars:
        raise InvalidInput("it is no calendar: it has no BEGIN:VCALENDAR")
    found = SourceCalendar()
    horizon = date(today.year + YEARS_AHEAD, 12, 31)
    for calendar in calendars:
        local = _find_zone(calendar) or zone
        for uid, parts in _group(calendar).items():
            title = _read_line(parts[0].get("SUMMARY"))
            if uid.endswith(f"@{domain}"):
                found.troubles.append(Trouble(uid, title, "is the school's own"))
                continue
            if any(str(one.get("CLASS", "")).upper() in _PRIVATE for one in parts):
                found.troubles.append(Trouble(uid, "", "is private"))
                continue
            try:
                found.events += _read_event(uid, parts, calendar, _Clocks(local, zone, horizon))
            except Exception as error:  # noqa: BLE001 - one event must not stop the others
                found.troubles.append(Trouble(uid, title, _first_line(error)))
    if len(found.events) > MOST_EVENTS:
        raise InvalidInput(f"it makes {len(found.events):,} events; the limit is {MOST_EVENTS:,}")
    return found


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Old programs on Windows write so, although RFC 5545 §3.1.4 knows UTF-8 only.
        return content.decode("windows-1252", "replace")


def _find_zone(calendar: Any) -> ZoneInfo | None:
    """Return the zone of the calendar's times that name none."""
    try:
        return ZoneInfo(str(calendar.get("X-WR-TIMEZONE", "")).strip())
    except (KeyError, OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError.
        return None


def _group(calendar: Any) -> dict[str, list[Any]]:
    """Return the VEVENTs by UID, those that hold for all dates first.

    An event without a UID is known by what it says. Of two that claim one date, the newer counts.
    """
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for event in calendar.walk("VEVENT"):
        uid = clean(str(event.get("UID", ""))).strip()
        if not uid:
            said = [event.get("SUMMARY"), event.get("DTSTART") and event["DTSTART"].to_ical()]
            uid = f"without-uid-{blake2b(repr(said).encode(), digest_size=12).hexdigest()}"
        own = event.get("RECURRENCE-ID")
        date_key = own.to_ical().decode() if hasattr(own, "to_ical") else ""
        before = groups[uid].get(date_key)
        if before is None or _find_sequence(event) >= _find_sequence(before):
            groups[uid][date_key] = event
    return {uid: [events[one] for one in sorted(events)] for uid, events in sorted(groups.items())}


def _find_sequence(event: Any) -> int:
    try:
        return int(event.get("SEQUENCE", 0))
    except (TypeError, ValueError):
        return 0


class _Clocks(NamedTuple):
    """The zone of times there that name none, the school's, and where endless rules end."""

    local: ZoneInfo
    zone: ZoneInfo
    horizon: date


def _read_event(
    uid: str, parts: Sequence[Any], calendar: Any, clocks: _Clocks
) -> Iterator[SourceEvent]:
    """Yield what the VEVENTs of one UID are here."""
    for part in parts:
        for name, reason in part.errors:
            if name in _TIMES:
                raise InvalidInput(f"{name}: {reason}")
        if "DTSTART" not in part:
            raise InvalidInput("DTSTART: is missing")
    first = parts[0]
    if "RECURRENCE-ID" in first or not {"RRULE", "RDATE"} & first.keys():
        # Also dates of a series that the source does not show.
        for part in parts:
            own = part.get("RECURRENCE-ID")
            says, span = _read_text(part), _read_span(part, clocks.local, clocks.zone)
            name = own.to_ical().decode() if own is not None else ""
            yield SourceEvent(uid, name, *says[:3], *span, cancelled=says.cancelled)
        return
    for rule in _as_list(first.get("RRULE")):
        if rule.get("FREQ", [""])[0].upper() in _TOO_OFTEN:
            raise InvalidInput(f"RRULE: FREQ={rule['FREQ'][0]} is too often for a school")
    yield from _read_series(uid, parts, calendar, clocks)


def _read_series(
    uid: str, parts: Sequence[Any], calendar: Any, clocks: _Clocks
) -> Iterator[SourceEvent]:
    first, (local, zone, horizon) = parts[0], clocks
    starts, ends = _read_span(first, local, zone)
    says = _read_text(first)
    rule = _read_rule(first, starts, ends, zone, horizon)
    series = Series(starts, ends, rule)
    days = {one.on: one for one in find_occurrences(series, zone)} if rule else {}
    last = max([horizon, *days])
    there: dict[date, _Date] = {}
    apart: list[_Date] = []
    for one in _expand(parts, calendar, local, zone, last):
        on = find_day(one.original, zone)
        if on > last:
            continue  # Of a rule that ends later there than here.
        due = days.get(on)
        if (
            due is None
            or on in there
            or isinstance(one.starts, datetime) != isinstance(starts, datetime)
        ):
            apart.append(one)
        else:
            there[on] = one
    if len(apart) > MOST_APART:
        raise InvalidInput(
            f"RRULE: {len(apart)} dates that no rule here can have; the limit is {MOST_APART}"
        )
    changes = []
    for on, due in days.items():
        if (found := there.get(on)) is None:
            changes.append(DateChange(on, DateState.LEFT_OUT))
        elif (change := _compare(on, found, (due.starts, due.ends), says)) is not None:
            changes.append(change)
    if there:
        yield SourceEvent(uid, "", *says[:3], starts, ends, rule, tuple(changes), says.cancelled)
    for one in apart:
        name = one.original.isoformat()
        yield SourceEvent(
            uid, name, *one.says[:3], one.starts, one.ends, cancelled=one.says.cancelled
        )


def _compare(on: date, found: _Date, due: tuple[Moment, Moment], says: _Say) -> DateChange | None:
    """Return what the source says of a date otherwise than its rule."""
    if found.says.cancelled and not says.cancelled:
        return DateChange(on, DateState.CANCELLED)
    span = (found.starts, found.ends)
    own = [
        mine if mine != usual else None
        for mine, usual in zip(found.says[:3], says[:3], strict=True)
    ]
    if span == due and own == [None] * 3:
        return None
    return DateChange(on, DateState.CHANGED, *(span if span != due else (None, None)), *own)


def _expand(
    parts: Sequence[Any], calendar: Any, local: ZoneInfo, zone: ZoneInfo, last: date
) -> Iterator[_Date]:
    """Yield every date of an event until the last, and those that were moved behind it."""
    alone = icalendar.Calendar()
    for one in calendar.walk("VTIMEZONE"):
        alone.add_component(one)
    for part in parts:
        alone.add_component(part)
    days = [find_day(_make_aware(part["DTSTART"].dt, local), zone) for part in parts]
    margin = timedelta(days=2)
    found = recurring_ical_events.of(alone).between(min(days) - margin, max(last, *days) + margin)
    for number, one in enumerate(found):
        if number >= MOST_EVENTS:
            raise InvalidInput(f"RRULE: more than {MOST_EVENTS:,} dates")
        original = one["RECURRENCE-ID"].dt if "RECURRENCE-ID" in one else one["DTSTART"].dt
        span = _read_span(one, local, zone)
        yield _Date(_to_utc(original, local), *span, _read_text(one))


def _read_rule(event: Any, starts: Moment, ends: Moment, zone: ZoneInfo, horizon: date) -> str:
    """Return the rule as it can be kept, or an empty one where no rule here has its dates."""
    rules = _as_list(event.get("RRULE"))
    if len(rules) != 1:
        return ""
    text = rules[0].to_ical().decode()
    endless = re.sub(";?(COUNT|UNTIL)=[^;]*", "", text) + f";UNTIL={horizon:%Y%m%d}"
    # One that ends too late for us ends with the horizon, too.
    for one in (text, endless) if re.search("COUNT=|UNTIL=", text) else (endless,):
        try:
            return find_rule(Series(starts, ends, one), zone)
        except InvalidInput:
            continue
    return ""


def _read_text(event: Any) -> _Say:
    title = _read_line(event.get("SUMMARY"))
    description = normalise(clean(_as_text(event.get("DESCRIPTION"))).strip())
    return _Say(
        title or "(untitled)",
        "" if is_blank(description) else shorten(description, LONGEST_DESCRIPTION),
        _read_line(event.get("LOCATION")),
        str(event.get("STATUS", "")).upper() == "CANCELLED",
    )


def _read_line(value: Any) -> str:
    text = normalise(" ".join(clean(_as_text(value)).split()))
    return "" if is_blank(text) else shorten(text, LONGEST_LINE)


def _as_text(value: Any) -> str:
    some = _as_list(value)
    return str(some[0]) if some else ""


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _read_span(event: Any, local: ZoneInfo, zone: ZoneInfo) -> tuple[Moment, Moment]:
    """Return when a VEVENT takes place: instants, or days that are both included."""
    starts = event["DTSTART"].dt
    if "DTEND" in event:
        ends = event["DTEND"].dt
    elif "DURATION" in event:
        ends = starts + event["DURATION"].dt
    else:
        ends = starts if isinstance(starts, datetime) else starts + timedelta(days=1)
    if isinstance(starts, datetime) != isinstance(ends, datetime):
        raise InvalidInput("DTEND: is of another kind than DTSTART")
    if not isinstance(starts, datetime):
        # Some programs write the last day itself, and not the day after it.
        ends = max(ends - timedelta(days=1), starts) if ends >= starts else ends
    else:
        starts, ends = _make_aware(starts, local), _make_aware(ends, local)
        if str(event.get("X-MICROSOFT-CDO-ALLDAYEVENT", "")).upper() == "TRUE":
            first, after = find_day(starts, local), find_day(ends, local)
            starts, ends = first, max(after - timedelta(days=1), first)
        else:
            starts, ends = _to_utc(starts, local), _to_utc(ends, local)
    if ends < starts:
        raise InvalidInput(f"DTEND: is before DTSTART ({ends} < {starts})")
    for moment in (starts, ends):
        if find_day(moment, zone).year not in YEARS:
            raise InvalidInput(f"DTSTART: the year must lie between {YEARS[0]} and {YEARS[-1]}")
    return starts, ends


def _make_aware(moment: Moment, local: ZoneInfo) -> Moment:
    if isinstance(moment, datetime) and moment.tzinfo is None:
        return moment.replace(tzinfo=local)
    return moment


def _to_utc(moment: Moment, local: ZoneInfo) -> Moment:
    if not isinstance(moment, datetime):
        return moment
    aware = _make_aware(moment, local)
    assert isinstance(aware, datetime)
    return aware.astimezone(UTC).replace(microsecond=0)


def _first_line(error: BaseException) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:200]
