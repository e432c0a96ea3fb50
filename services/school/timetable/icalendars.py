"""A timetable from an iCalendar file, as school programs export one.

Such a file has no fields for classes and teachers. They are found by their names, which stand as
words in an event's SUMMARY, DESCRIPTION or CATEGORIES: the name of a class, and a teacher's
`untis_id`; an ATTENDEE or ORGANIZER is a teacher by their address. What else the SUMMARY says is
the subject. deriving.py makes weekly lessons of the dates.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import recurring_ical_events  # type: ignore[import-untyped]
from icalendar import Calendar as Parsed
from nightshift.errors import InvalidInput, first_line

from services.school.texts import clean, normalise, shorten
from services.school.timetable.deriving import Occurrence, derive
from services.school.timetable.source import Question, Term, Timetable

Fetch = Callable[[str], bytes]

LARGEST_FILE = 20_000_000
MOST_EVENTS = 200_000
LONGEST_SUBJECT, LONGEST_ROOM = 200, 100
# A lesson is given once a day at most. Another rule could be expanded without an end.
FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
BY_TIME = ("BYHOUR", "BYMINUTE", "BYSECOND")
PEOPLE = ("ATTENDEE", "ORGANIZER")


@dataclass(frozen=True, slots=True)
class Calendar:
    """An iCalendar file, or the address of one. `zone` is that of the school's clock."""

    place: str
    fetch: Fetch
    zone: ZoneInfo

    def read(self, question: Question) -> Timetable:
        """Return the lessons of the file. Raises InvalidInput, and what `fetch` raises."""
        content = self.fetch(self.place) if "://" in self.place else _read_file(Path(self.place))
        calendar = _parse(content)
        notices: list[str] = []
        lessons, changes = [], []
        for term in question.terms:
            found = list(_read_term(calendar, term, question, self.zone, notices))
            weekly, single = derive(found, term, question.holidays)
            lessons += weekly
            changes += single
        if notices:
            notices = [f"{len(notices)} events are no lessons; the first: {notices[0]}"]
        return Timetable(
            terms=frozenset(lesson.term for lesson in lessons),
            lessons=tuple(lessons),
            changes=tuple(changes),
            notices=tuple(notices),
        )


def _read_file(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise InvalidInput(f"{path.name}: has {size:,} bytes, the limit is {LARGEST_FILE:,}")
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from error


def _parse(content: bytes) -> Any:
    try:
        calendar = Parsed.from_ical(content)
    except (ValueError, IndexError) as error:
        raise InvalidInput(f"this is no iCalendar file: {first_line(error)}") from error
    events = calendar.walk("VEVENT")
    if len(events) > MOST_EVENTS:
        raise InvalidInput(f"has {len(events):,} events; the limit is {MOST_EVENTS:,}")
    for event in events:
        rules = event.get("RRULE", [])
        for rule in rules if isinstance(rules, list) else [rules]:
            if rule.get("FREQ", [""])[0] not in FREQUENCIES or any(map(rule.get, BY_TIME)):
                raise InvalidInput(
                    f"the event {str(event.get('UID'))[:50]!r} repeats more often than once a day;"
                    " a timetable has no such lesson"
                )
    return calendar


def _read_term(
    calendar: Any, term: Term, question: Question, zone: ZoneInfo, notices: list[str]
) -> Iterator[Occurrence]:
    repeated = {str(one["UID"]) for one in calendar.walk("VEVENT") if "RRULE" in one}
    names = _Names(question)
    expanded = recurring_ical_events.of(calendar, skip_bad_series=True)
    # From midnight of the first day: a day as such would begin in UTC.
    begin = datetime.combine(term.first, time(), zone)
    end = datetime.combine(term.last, time.max, zone)
    for event in expanded.between(begin, end):
        starts, ends = event["DTSTART"].dt, event.get("DTEND", event["DTSTART"]).dt
        title = str(event.get("SUMMARY", ""))
        if not isinstance(starts, datetime) or not isinstance(ends, datetime):
            notices.append(f"{title[:50]!r} has no time of day")
            continue
        first, last = (one.astimezone(zone) if one.tzinfo else one for one in (starts, ends))
        if first.date() != last.date() or first.time() >= last.time():
            notices.append(f"{title[:50]!r} ends on another day, or when it begins")
            continue
        yield names.read(event, first, last, is_repeated=str(event.get("UID")) in repeated)


class _Names:
    """The names of classes and teachers that a text may have."""

    def __init__(self, question: Question) -> None:
        self._classes = question.classes
        self._teachers = question.teachers
        self._ids = set(question.teachers.values())

    def read(self, event: Any, first: datetime, last: datetime, *, is_repeated: bool) -> Occurrence:
        title = normalise(clean(str(event.get("SUMMARY", ""))))
        words = [*_find_words(title), *_find_words(str(event.get("DESCRIPTION", "")))]
        categories = event.categories
        words += [normalise(clean(str(one))).strip() for one in categories]
        classes = tuple(sorted(self._classes.intersection(words)))
        teachers = tuple(sorted(self._ids.intersection(words) | set(self._find_people(event))))
        named = {*classes, *teachers}
        rest = " ".join(word for word in title.split() if word.strip(",;/()|") not in named)
        subject = shorten(rest or title, LONGEST_SUBJECT)
        room = shorten(normalise(clean(str(event.get("LOCATION", "")))).strip(), LONGEST_ROOM)
        return Occurrence(
            group=str(event["UID"]) if is_repeated else f"{subject} {' '.join(classes)}",
            day=first.date(),
            starts=_to_minute(first),
            ends=_to_minute(last),
            subject=subject,
            room=room,
            classes=classes,
            teachers=teachers,
            cancelled=str(event.get("STATUS", "")).upper() == "CANCELLED",
        )

    def _find_people(self, event: Any) -> Iterator[str]:
        for name in PEOPLE:
            given = event.get(name, [])
            for one in given if isinstance(given, list) else [given]:
                address = str(one).lower().removeprefix("mailto:")
                if address in self._teachers:
                    yield self._teachers[address]


def _find_words(text: str) -> list[str]:
    return re.split(r"[\s,;/()|]+", normalise(clean(text)))


def _to_minute(moment: datetime) -> time:
    return moment.time().replace(second=0, microsecond=0)
