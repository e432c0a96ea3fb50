"""A small school whose events hold what breaks calendars: in texts, and in times."""

from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from nightshift.database import Session

from services.school.models import (
    Audience,
    DateState,
    Department,
    Event,
    EventClass,
    EventState,
    Role,
    SchoolClass,
    TeachingAffected,
    User,
)
from services.school.recurrences import DateChange, Series, find_occurrences
from services.school.series import split_moment, spread, write_changes
from services.translation import Locale
from tests.conftest import ZONE

NOON = datetime(2027, 3, 10, 11, tzinfo=UTC)

TEXTS = [
    "",
    "   ",
    "\x00\x1b",
    *("x" * length + "😀é日👩‍👩‍👧‍👦" for length in range(50, 76)),
    "שלום עולם \u200f(abc) \u202eabc\u202c مرحبا 1,2;3",
    "Donaudampfschifffahrtsgesellschaft" * 200,
    "ä" * 5000,
    "𝕊𝕔𝕙𝕦𝕝𝕖𠮷😀" * 200,
    "e\u0301\u0327" * 200,
    "Komma, Strichpunkt; Rückstrich \\ Doppelpunkt: \"Anführung\" 'einfach' ^n ^' =",
    r"C:\Netz\neu\, \\N \; \: \n \\",
    ",;\\",
    "\\",
    "\\" * 200,
    "," * 200,
    "NUL\x00 ESC\x1b[31m BEL\x07 DEL\x7f C1\x9b NEL\x85 Ende",
    "eins\nzwei\r\ndrei\rvier\u2028fünf\u2029sechs\x0bsieben\x0cacht\n\nneun",
    "  vorn und hinten  ",
    "\u200b\u2060 \u3164",
    "\u202eelödnafnE \u2067Klasse\u2069",
    "Z" + "\u0301\u0327" * 500 + "algo",
    "\t\tTabulatoren\tdazwischen\t",
    "\u00a0geschützt\u00a0 \u3000breit\u3000",
    "\ufeffMarke\ufffe\uffff\U0001ffff",
    "a\r\nEND:VEVENT\r\nEND:VCALENDAR\r\nBEGIN:VCALENDAR\r\n",
    "a\r\n b\r\n\tc",
    "UID:fremd@school.example\nDTSTART:20270101",
    "SUMMARY;LANGUAGE=de:Titel",
    "<b>fett</b> &amp; <script>alert(1)</script>",
    "%(title)s %s {title} ${title} $title",
    "mailto:a@b.example https://school.example/?a=b;c&d=e,f",
]

TIMES: list[tuple[datetime, datetime] | tuple[date, date]] = [
    (NOON, NOON),
    (NOON, NOON + timedelta(seconds=1)),
    (NOON.replace(microsecond=1), NOON.replace(microsecond=999_999)),
    (NOON, NOON + timedelta(days=400)),
    # The nights in which the clocks change, and the hours that do not exist or exist twice.
    (datetime(2027, 3, 28, 0, 30, tzinfo=UTC), datetime(2027, 3, 28, 1, 30, tzinfo=UTC)),
    (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
    (datetime(2026, 10, 25, 1, 0, tzinfo=UTC), datetime(2026, 10, 25, 1, 0, tzinfo=UTC)),
    (datetime(2026, 12, 31, 22, 59, 59, tzinfo=UTC), datetime(2026, 12, 31, 23, 0, 1, tzinfo=UTC)),
    (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2027, 1, 1, 0, 0, tzinfo=UTC)),
    (date(2027, 3, 27), date(2027, 3, 29)),
    (date(2027, 3, 28), date(2027, 3, 28)),
    (date(2026, 10, 24), date(2026, 10, 26)),
    (date(2026, 10, 25), date(2026, 10, 25)),
    (date(2026, 12, 31), date(2027, 1, 1)),
    (date(2028, 2, 28), date(2028, 2, 29)),
    (date(2026, 8, 1), date(2027, 7, 31)),
]


# Rules over both changes of the clocks, and what is otherwise on single dates.
RULES = [
    (NOON, NOON + timedelta(hours=1), "FREQ=DAILY;COUNT=40"),
    (NOON, NOON, "FREQ=WEEKLY;INTERVAL=2;UNTIL=20271231;BYDAY=WE,FR"),
    (
        datetime(2027, 3, 21, 1, 30, tzinfo=UTC),
        datetime(2027, 3, 21, 2, tzinfo=UTC),
        "FREQ=WEEKLY;COUNT=3",
    ),
    (NOON - timedelta(hours=14), NOON, "FREQ=MONTHLY;COUNT=9;BYDAY=2TU"),
    (date(2026, 12, 31), date(2027, 1, 1), "FREQ=MONTHLY;COUNT=5"),
    (date(2028, 2, 29), date(2028, 2, 29), "FREQ=YEARLY;COUNT=3"),
]


def repeat(session: Session) -> None:
    """Write repeated events whose dates have every text and every state."""
    for number, (starts, ends, rrule) in enumerate(RULES, 10_000):
        event = Event(
            id=UUID(int=number),
            title=rrule,
            state=EventState.PUBLISHED,
            audience=Audience.ALL,
            created_at=NOON,
            rrule=rrule,
            **split_moment("starts", starts),
            **split_moment("ends", ends),
        )
        session.add(event)
        session.flush()
        dates = find_occurrences(Series(starts, ends, rrule), ZONE)[1:]
        states = [DateState.CHANGED, DateState.CANCELLED, DateState.LEFT_OUT]
        changes = [
            DateChange(one.on, states[at % 3], *(None, None), text, text, text)
            if at % 3 == 0
            else DateChange(one.on, states[at % 3])
            for at, (one, text) in enumerate(zip(dates, TEXTS * 2, strict=False))
        ]
        write_changes(session, event.id, changes)
        spread(session, [event.id], ZONE)


def fill(session: Session) -> None:
    """Write every text into every place, at every time, and all of it again as cancelled.

    And what repeats.
    """
    session.add_all(
        [
            Department(name=text, locale=locale)
            for text, locale in zip(TEXTS[-3:], Locale, strict=True)
        ]
    )
    session.flush()
    names = ["27,a;b\\c\n\x00 ", "28😀" + "ä" * 48, "29 שלום"]
    session.add_all(
        [SchoolClass(name=name, display_name=name * 2, department_id=1) for name in names]
    )
    session.flush()
    people: dict[str, Any] = {"role": Role.STUDENT, "class_id": 1, "created_at": NOON}
    session.add_all(
        [
            User(
                email=f"{n}@school.example",
                untis_id=str(n),
                first_name=text,
                last_name=text,
                locale=[*Locale][n % 3],
                **people,
            )
            for n, text in enumerate(TEXTS[-24:])
        ]
    )
    events: list[dict[str, Any]] = [
        {
            "title": text,
            "description": text,
            "location": text,
            "starts_at": NOON,
            "ends_at": NOON + timedelta(hours=1),
        }
        for text in TEXTS
    ]
    for starts, ends in TIMES:
        begin, end = (
            ("starts_at", "ends_at") if isinstance(starts, datetime) else ("starts_on", "ends_on")
        )
        events.append({"title": f"{starts} – {ends}", begin: starts, end: ends})
    repeat(session)
    numbers = count(1)
    for event in events:
        for cancelled_at in (None, NOON):
            number = next(numbers)
            affected = [*TeachingAffected][number % 3]
            common: dict[str, Any] = {
                "state": EventState.PUBLISHED,
                "audience": Audience.ALL,
                "created_at": NOON,
            }
            session.add(
                Event(
                    id=UUID(int=number),
                    **event,
                    **common,
                    teaching_affected=affected,
                    cancelled_at=cancelled_at,
                )
            )
            session.flush()
            if number % 4 > 1:
                session.add_all(
                    [
                        EventClass(event_id=UUID(int=number), class_id=class_id)
                        for class_id in (1, 2, 3)
                    ]
                )
