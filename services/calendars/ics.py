"""One event as iCalendar bytes (RFC 5545), and the bytes before and after a feed's events.

A feed is `render_head`, stamped events and CALENDAR_FOOT, as `join` puts them together. icalendar
writes and folds every value. This module decides which properties there are, and writes those that
are the same in every language once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from hashlib import blake2b
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple
from zoneinfo import ZoneInfo

import icalendar
from icalendar import vDDDTypes, vText
from icalendar.parser import Contentline
from nightshift.errors import InvalidInput

from services.calendars.vtimezone import make_vtimezone
from services.school.models import DateState, TeachingAffected
from services.school.recurrences import (
    DateChange,
    Series,
    find_days,
    find_due,
    find_occurrences,
    find_rule,
)
from services.school.texts import LONGEST_DESCRIPTION, LONGEST_LINE, clean, is_blank, shorten
from services.translation import Locale, translations

# Raise it when `render` writes other bytes for the same content: then every stored event is
# rendered again.
RENDERER_VERSION = 3

# Google drops a feed, or its later events, beyond about a megabyte. The events that begin furthest
# ahead are left out, until earlier ones have left the window. Left out as a whole: an event shows
# the same in all feeds that have it.
MOST_BYTES = 1_000_000

CALENDAR_FOOT = b"END:VCALENDAR\r\n"
# The PRODID is fixed: icalendar's own names its version, so an upgrade would change every feed.
# There is no METHOD, since some clients refuse a feed with one, and no UID, since some take all
# events of a feed with one for a single event.
_CALENDAR_OPENING = (
    b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Nightshift//Nightshift//EN\r\n"
    b"CALSCALE:GREGORIAN\r\n"
    b"REFRESH-INTERVAL;VALUE=DURATION:PT1H\r\nX-PUBLISHED-TTL:PT1H\r\n"
)

_FOLDED_FROM = 75
# In these years a datetime may overflow when it is moved to another time zone.
FIRST_YEAR_TOLD, LAST_YEAR_TOLD = 1, 9999


class InvalidEvent(InvalidInput):
    """An event that no calendar can show. The message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class EventContent:
    """All that a subscriber sees of an event, and nothing else.

    `uid` is complete, with its domain. `starts` and `ends` are aware instants (equal for a
    deadline), or dates for an event that lasts all day; both days are included. `classes` are the
    names of the classes, class groups and departments concerned, sorted.
    """

    uid: str
    title: str
    description: str
    location: str
    starts: datetime | date
    ends: datetime | date
    cancelled: bool
    teaching_affected: TeachingAffected
    classes: tuple[str, ...]
    repeats: "Repeats | None" = None


class Repeats(NamedTuple):
    """By which rule an event repeats, what is otherwise on single dates, and on which clock."""

    rrule: str
    changes: tuple[DateChange, ...]
    zone: ZoneInfo


@dataclass(frozen=True, slots=True)
class Rendering:
    """An event's property lines in every locale, without stamps, and a 16-byte digest of all.

    A repeated event has a part for its rule, and one for each date that is not as the rule has it.
    """

    bodies: Mapping[Locale, tuple[bytes, ...]]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Words:
    """What a calendar adds to people's own words, in one language.

    They are whole phrases, since each language has its own order and punctuation.
    """

    untitled: str
    cancelled: str
    affected: Mapping[TeachingAffected, str]
    classes: str


@cache
def find_words(locale: Locale) -> Words:
    """Return the words of one language."""
    texts = translations(locale)
    return Words(
        untitled=texts.gettext("(untitled)"),
        cancelled=texts.gettext("Cancelled: %(title)s"),
        affected={
            TeachingAffected.YES: texts.gettext("Teaching affected: yes"),
            TeachingAffected.PARTIAL: texts.gettext("Teaching affected: partly"),
            TeachingAffected.NO: texts.gettext("Teaching affected: no"),
        },
        classes=texts.gettext("Classes: %(names)s"),
    )


_values = attrgetter(*(field.name for field in fields(EventContent) if field.name != "repeats"))


@cache
def _renderer() -> blake2b:
    return blake2b(
        repr((RENDERER_VERSION, icalendar.__version__, *map(find_words, Locale))).encode(),
        digest_size=16,
    )


def digest_source(content: EventContent) -> bytes:
    """Return 16 bytes that stay the same while `render` would write the same bytes.

    They depend on the content, the words, this renderer and icalendar's version.
    """
    digest = _renderer().copy()
    # repr keeps the fields apart, and writes a lone surrogate in ASCII.
    digest.update(repr(_values(content)).encode())
    if content.repeats is not None:
        digest.update(repr((content.repeats.zone.key, *content.repeats[:2])).encode())
    return digest.digest()


def render(content: EventContent) -> Rendering:
    """Render an event in every locale, without what a revision adds (see `stamp`).

    Raises:
        InvalidEvent: It has no uid, it ends before it starts, it mixes a date with an instant, or
            an instant is neither in UTC nor in a named zone.
    """
    if not (uid := clean(content.uid).strip()):
        raise InvalidEvent("the event has no uid")
    if content.repeats is None:
        parts = [_Part(content, _times(content.starts, content.ends))]
    else:
        parts = _make_parts(content, content.repeats)
    opening = _line("UID", _text(uid))
    bodies = {
        locale: tuple(opening + _render_part(part, find_words(locale)) for part in parts)
        for locale in Locale
    }
    joined = b"".join(one for body in bodies.values() for one in body)
    return Rendering(bodies, blake2b(joined, digest_size=16).digest())


class _Part(NamedTuple):
    """One VEVENT: what it says, and the lines that say when."""

    content: EventContent
    times: bytes


def _render_part(part: _Part, said: Words) -> bytes:
    content = part.content
    is_busy = isinstance(content.starts, datetime) and not content.cancelled
    title = _one_line(content.title)
    description = _visible(clean(content.description).strip(), LONGEST_DESCRIPTION)
    location = _visible(clean(content.location).strip(), LONGEST_LINE)
    classes = [name for name in map(_one_line, content.classes) if name]

    closing = _line("LOCATION", _text(location)) if location else b""
    if classes:
        closing += _line("CATEGORIES", ",".join(map(_text, classes)))
    closing += b"STATUS:CANCELLED\r\n" if content.cancelled else b"STATUS:CONFIRMED\r\n"
    # A holiday must not block its readers' days, and a cancelled event must not block their hours.
    closing += b"TRANSP:OPAQUE\r\n" if is_busy else b"TRANSP:TRANSPARENT\r\n"

    summary = title or said.untitled
    if content.cancelled:
        summary = said.cancelled % {"title": summary}
    facts = _facts(said, content.teaching_affected, classes, description)
    return (
        part.times + _line("SUMMARY", _text(summary)) + _line("DESCRIPTION", _text(facts)) + closing
    )


def _make_parts(content: EventContent, repeats: Repeats) -> list[_Part]:
    """Return the parts of a repeated event (RFC 5545 §3.8.4.4, §3.8.5).

    A date that was left out from the beginning is an EXDATE. One that was cancelled or changed is
    a part of its own, or a calendar program would not tell its user.
    """
    zone = repeats.zone
    _times(content.starts, content.ends)  # It checks them.
    series = Series(content.starts, content.ends, repeats.rrule, repeats.changes)
    dates = find_occurrences(series, zone)
    rule = find_rule(series, zone)
    days = find_days(series, zone)
    if "UNTIL=" in rule:
        last = find_occurrences(series._replace(changes=()), zone)[-1].due
        until = _value(_utc(last) if isinstance(last, datetime) else last)
        rule = re.sub("UNTIL=[^;]*", f"UNTIL={until}", rule)
    times = _span_lines(content.starts, content.ends, zone)
    times += _line("RRULE", rule)
    taking_place = {one.on for one in dates}
    times += b"".join(
        _local_line("EXDATE", find_due(day, series, zone), zone)
        for day in days
        if day not in taking_place
    )
    parts = [_Part(content, times)]
    for one in dates:
        if one.change is None:
            continue
        change = one.change
        own = replace(
            content,
            starts=one.starts,
            ends=one.ends,
            title=content.title if change.title is None else change.title,
            description=content.description if change.description is None else change.description,
            location=content.location if change.location is None else change.location,
            cancelled=content.cancelled or change.state == DateState.CANCELLED,
        )
        _times(own.starts, own.ends)
        lines = _local_line("RECURRENCE-ID", one.due, zone)
        parts.append(_Part(own, lines + _span_lines(one.starts, one.ends, zone)))
    return parts


def _span_lines(starts: datetime | date, ends: datetime | date, zone: ZoneInfo) -> bytes:
    """Return DTSTART and DTEND on a zone's clock, as `_times` does it in UTC."""
    if not isinstance(starts, datetime) or not isinstance(ends, datetime):
        return _times(starts, ends)
    begin, end = (_utc(moment).astimezone(zone) for moment in (starts, ends))
    if any(_is_ambiguous(moment) for moment in (begin, end)):
        # An hour that the clock shows twice means the first time (RFC 5545 §3.3.5), but Thunderbird
        # takes the second.
        return _times(starts, ends)
    lines = _local_line("DTSTART", begin, zone)
    if end.replace(second=0) > begin.replace(second=0):
        lines += _local_line("DTEND", end, zone)
    return lines


def _is_ambiguous(local: datetime) -> bool:
    return local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()


def _local_line(name: str, moment: datetime | date, zone: ZoneInfo) -> bytes:
    """Write a moment on a zone's clock. The zone's VTIMEZONE is in the calendar's head."""
    if not isinstance(moment, datetime):
        return _line(f"{name};VALUE=DATE", _value(moment))
    return _line(f"{name};TZID={zone.key}", f"{moment.astimezone(zone):%Y%m%dT%H%M%S}")


def stamp(body: Sequence[bytes], *, sequence: int, modified_at: datetime) -> bytes:
    """Return the VEVENTs of one revision: of a repeated event, all have the same stamps.

    Only whole seconds of `modified_at` count: RFC 5545 §3.3.5 has no smaller ones.
    """
    moment = _value(_utc(modified_at))
    stamps = f"DTSTAMP:{moment}\r\nLAST-MODIFIED:{moment}\r\nSEQUENCE:{sequence}\r\n"
    opening = b"BEGIN:VEVENT\r\n" + stamps.encode()
    return b"".join(opening + part + b"END:VEVENT\r\n" for part in body)


def render_head(name: str, zone: ZoneInfo) -> bytes:
    """Return the bytes before a feed's events.

    They hold the time zone, so an empty feed is valid (RFC 5545 §3.6).
    """
    title = _text(_one_line(name))
    # Google and Apple read only X-WR-CALNAME.
    return (
        _CALENDAR_OPENING
        + _line("NAME", title)
        + _line("X-WR-CALNAME", title)
        + _line("X-WR-TIMEZONE", _text(zone.key))
        + render_zone(zone)
    )


def join(head: bytes, events: Sequence[bytes], *, longest: int = MOST_BYTES) -> tuple[bytes, int]:
    """Return a feed of these stamped events, in their order, and how many of them it has.

    It has those that fit into `longest` bytes.
    """
    room = longest - len(head) - len(CALENDAR_FOOT)
    count = len(events)
    if sum(map(len, events)) > room:
        ends = accumulate(map(len, events))
        count = sum(end <= room for end in ends)
    return b"".join([head, *events[:count], CALENDAR_FOOT]), count


@cache
def render_zone(zone: ZoneInfo) -> bytes:
    """Return a zone's VTIMEZONE."""
    lines: bytes = make_vtimezone(zone).to_ical(sorted=False)
    return lines


def _facts(said: Words, affected: TeachingAffected, classes: list[str], description: str) -> str:
    # The facts come first: a client that cuts a long description still shows them.
    lines = [said.affected[affected]]
    if classes:
        lines.append(said.classes % {"names": ", ".join(classes)})
    if description:
        lines += ["", description]
    return "\n".join(lines)


def _times(starts: datetime | date, ends: datetime | date) -> bytes:
    """Return DTSTART and DTEND (RFC 5545 §3.8.2.2: DTEND is exclusive, later than DTSTART)."""
    try:
        if isinstance(starts, datetime) and isinstance(ends, datetime):
            begin, end = _utc(starts), _utc(ends)
            if end < begin:
                raise InvalidEvent(
                    f"the event ends at {end.isoformat()}, before it starts at {begin.isoformat()}"
                )
            lines = _line("DTSTART", _value(begin))
            # Clients that count in minutes (calcurse) refuse an event that ends in the minute in
            # which it starts.
            if end.replace(second=0) > begin.replace(second=0):
                lines += _line("DTEND", _value(end))
            return lines
        if isinstance(starts, datetime) or isinstance(ends, datetime):
            raise InvalidEvent(
                "the event has an instant at one end and a date at the other: give two instants or"
                " two dates"
            )
        if ends < starts:
            raise InvalidEvent(
                f"the event ends on {ends.isoformat()}, before it starts on {starts.isoformat()}"
            )
        return _line("DTSTART;VALUE=DATE", _value(starts)) + _line(
            "DTEND;VALUE=DATE", _value(ends + timedelta(days=1))
        )
    except OverflowError as error:
        raise InvalidEvent(
            f"the event lies at the edge of the calendar: {starts.isoformat()} to"
            f" {ends.isoformat()}"
        ) from error


def _utc(moment: datetime) -> datetime:
    """Return `moment` in UTC, to the whole second."""
    if not (isinstance(moment.tzinfo, ZoneInfo) or moment.tzinfo == UTC):
        raise InvalidEvent(
            f"{moment.isoformat()} is neither in UTC nor in a named time zone: which instant is"
            " meant cannot be said"
        )
    if not FIRST_YEAR_TOLD < moment.year < LAST_YEAR_TOLD:
        raise InvalidEvent(
            f"{moment.isoformat()} is at the edge of the calendar: no time zone can be applied to"
            " it"
        )
    return moment.astimezone(UTC).replace(microsecond=0)


def _one_line(text: str) -> str:
    return _visible(" ".join(clean(text).split()), LONGEST_LINE)


def _visible(text: str, longest: int) -> str:
    return "" if is_blank(text) else shorten(text, longest)


def _value(value: datetime | date) -> str:
    ical: bytes = vDDDTypes(value).to_ical()
    return ical.decode()


def _text(text: str) -> str:
    r"""Escape a TEXT value (RFC 5545 §3.3.11).

    icalendar takes a literal `\N` for a line break, so `C:\Netz` would lose its N.
    """
    return r"\\N".join(vText(part).to_ical().decode() for part in text.split(r"\N"))


def _line(name: str, value: str) -> bytes:
    line = f"{name}:{value}"
    octets = line.encode()
    # Folding looks at every character. A line of fewer than 75 octets needs none.
    if len(octets) >= _FOLDED_FROM:
        octets = Contentline(line).to_ical()  # type: ignore[no-untyped-call]
    return octets + b"\r\n"
