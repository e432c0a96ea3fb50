"""A timetable from iCalendar files, in the manner of two programs."""

from datetime import date, time, timedelta

import pytest
from nightshift.errors import InvalidInput

from services.school.timetable.icalendars import Calendar
from services.school.timetable.source import Question, SingleDate, Term, WeeklyLesson
from tests.conftest import ZONE
from tests.services.school.timetable.builders import FIRST, LAST, MONDAY, TERM

QUESTION = Question(
    date(2026, 11, 21),
    (Term(TERM, FIRST, LAST),),
    classes=frozenset({"27Ga", "27GA", "28 B"}),
    teachers={"vera@school.example": "MUS", "otto@school.example": "OTT"},
)

HEAD = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//plan\r\n"


def read(*events: str):
    lines = [f"BEGIN:VEVENT\r\n{event.strip()}\r\nEND:VEVENT\r\n" for event in events]
    content = f"{HEAD}{''.join(lines)}END:VCALENDAR\r\n".replace("\n", "\r\n").replace("\r\r", "\r")
    return Calendar("https://school.example/plan.ics", lambda _: content.encode(), ZONE).read(
        QUESTION
    )


RULE = """
UID:m1
SUMMARY:Mathematik 27Ga MUS
LOCATION:204
DTSTART;TZID=Europe/Zurich:20260817T074500
DTEND;TZID=Europe/Zurich:20260817T083000
RRULE:FREQ=WEEKLY;UNTIL=20270131T000000Z
"""
MATHS = WeeklyLesson(
    "m1-1-0745-2608", TERM, 1, time(7, 45), time(8, 30), "Mathematik", "204", ("27Ga",), ("MUS",)
)
OTHER = """
UID:m2
SUMMARY:Deutsch 27Ga
DTSTART;TZID=Europe/Zurich:20260817T074500
DTEND;TZID=Europe/Zurich:20260817T083000
RRULE:FREQ=WEEKLY;UNTIL=20270131T000000Z
"""


def test_rule_is_a_weekly_lesson_on_both_sides_of_the_clocks_change():
    found = read(RULE)

    assert (found.lessons, found.changes, found.notices) == ((MATHS,), (), ())


def test_exceptions_of_a_rule_are_single_dates():
    moved = """
UID:m1
RECURRENCE-ID;TZID=Europe/Zurich:20261130T074500
SUMMARY:Mathematik 27Ga OTT
LOCATION:Aula
DTSTART;TZID=Europe/Zurich:20261202T160000
DTEND;TZID=Europe/Zurich:20261202T170000
"""
    cancelled = """
UID:m1
RECURRENCE-ID;TZID=Europe/Zurich:20261207T074500
STATUS:CANCELLED
SUMMARY:Mathematik 27Ga MUS
DTSTART;TZID=Europe/Zurich:20261207T074500
DTEND;TZID=Europe/Zurich:20261207T083000
"""
    out = RULE.strip() + "\nEXDATE;TZID=Europe/Zurich:20261214T074500"

    found = read(out, moved, cancelled, OTHER)

    assert found.changes == (
        SingleDate(
            "m1-1-0745-2608",
            MONDAY,
            room="Aula",
            moved_to=date(2026, 12, 2),
            starts=time(16),
            ends=time(17),
            teachers=("OTT",),
        ),
        SingleDate("m1-1-0745-2608", date(2026, 12, 7), cancelled=True),
        SingleDate("m1-1-0745-2608", date(2026, 12, 14), cancelled=True),
    )


def test_file_with_an_event_for_each_date():
    days = [FIRST + timedelta(weeks=at) for at in range(20)]
    events = [
        f"""
UID:{at}@plan
SUMMARY:Sport
DESCRIPTION:Klasse 27Ga\\, Turnhalle
CATEGORIES:28 B
ATTENDEE;CN=Vera:mailto:Vera@school.example
DTSTART;TZID=Europe/Zurich:{day:%Y%m%d}T103000
DTEND;TZID=Europe/Zurich:{day:%Y%m%d}T111500
LOCATION:{"Wiese" if at == 3 else "Halle"}
"""
        for at, day in enumerate(days)
    ]

    found = read(*events)

    [lesson] = found.lessons
    assert (lesson.subject, lesson.room, lesson.classes, lesson.teachers) == (
        "Sport",
        "Halle",
        ("27Ga", "28 B"),
        ("MUS",),
    )
    assert found.changes == (SingleDate(lesson.id, days[3], room="Wiese"),)


def test_what_is_no_lesson_is_counted():
    day = "UID:d\nSUMMARY:Ausflug\nDTSTART;VALUE=DATE:20261130\nDTEND;VALUE=DATE:20261201"

    found = read(RULE, day)

    assert found.lessons == (MATHS,)
    assert found.notices == ("1 events are no lessons; the first: 'Ausflug' has no time of day",)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("FREQ=SECONDLY", "the event 'm1' repeats more often than once a day"),
        ("FREQ=DAILY;BYHOUR=1,2,3", "the event 'm1' repeats more often than once a day"),
    ],
)
def test_rule_without_an_end_in_sight_is_refused(rule, said):
    with pytest.raises(InvalidInput, match=said):
        read(RULE.replace("FREQ=WEEKLY", rule))


def test_what_is_no_calendar_is_refused():
    with pytest.raises(InvalidInput, match="this is no iCalendar file"):
        Calendar("https://x.example/a.ics", lambda _: b"<html>", ZONE).read(QUESTION)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidInput, match="No such file"):
        Calendar(str(tmp_path / "a.ics"), lambda _: b"", ZONE).read(QUESTION)
