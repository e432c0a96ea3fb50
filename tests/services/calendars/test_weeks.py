from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from services.calendars import ics
from services.calendars.weeks import Entry, read_week
from services.school.models import TeachingAffected
from services.translation import Locale

ZURICH = ZoneInfo("Europe/Zurich")
MONDAY = date(2026, 11, 30)


def feed(*events):
    """Return a feed's bytes with these events: title, start, end, and whether it is cancelled."""
    bodies = []
    for number, (title, starts, ends, *cancelled) in enumerate(events):
        content = ics.EventContent(
            uid=f"{number}@school.example",
            title=title,
            description="",
            location="Aula",
            starts=starts,
            ends=ends,
            cancelled=bool(cancelled),
            teaching_affected=TeachingAffected.NO,
            classes=(),
        )
        body = ics.render(content).bodies[Locale.ENGLISH]
        bodies.append(ics.stamp(body, sequence=0, modified_at=datetime(2026, 11, 1, tzinfo=UTC)))
    return ics.render_head("Class", ZURICH) + b"".join(bodies) + ics.CALENDAR_FOOT


def at(day, hour, minute=0):
    return datetime(2026, 12, day, hour, minute, tzinfo=ZURICH)


def titles(week):
    return [[entry.title for entry in day] for day in week.timed]


def test_event_is_on_its_day_in_the_clock_of_the_zone():
    week = read_week(feed(("Concert", at(3, 19), at(3, 21))), MONDAY, ZURICH)

    assert week.timed[3] == [Entry("Concert", "Aula", at(3, 19), at(3, 21), cancelled=False)]
    assert sum(map(len, week.timed)) == 1


def test_events_of_a_day_are_in_the_order_of_their_times():
    week = read_week(
        feed(("later", at(3, 14), at(3, 15)), ("earlier", at(3, 8), at(3, 9))), MONDAY, ZURICH
    )

    assert titles(week)[3] == ["earlier", "later"]


def test_night_is_on_both_days():
    week = read_week(feed(("Night", at(3, 22), at(4, 6))), MONDAY, ZURICH)

    assert titles(week) == [[], [], [], ["Night"], ["Night"], [], []]


def test_event_until_midnight_is_on_one_day():
    week = read_week(feed(("Evening", at(3, 22), at(4, 0))), MONDAY, ZURICH)

    assert titles(week) == [[], [], [], ["Evening"], [], [], []]


def test_deadline_at_midnight_is_on_the_day_that_begins():
    week = read_week(feed(("Deadline", at(3, 0), at(3, 0))), MONDAY, ZURICH)

    assert titles(week) == [[], [], [], ["Deadline"], [], [], []]


def test_days_with_both_ends_outside_the_week_are_in_it():
    week = read_week(feed(("Months", date(2026, 9, 1), date(2027, 2, 26))), MONDAY, ZURICH)

    assert [(entry.first, entry.last) for entry in week.all_day] == [
        (date(2026, 9, 1), date(2027, 2, 26))
    ]


def test_cancelled_event_is_marked():
    week = read_week(feed(("Sports", date(2026, 12, 3), date(2026, 12, 3), True)), MONDAY, ZURICH)

    assert [entry.cancelled for entry in week.all_day] == [True]


def test_events_of_other_weeks_are_not_shown_and_the_next_one_is_named():
    week = read_week(
        feed(
            ("before", at(1, 8).replace(month=11), at(1, 9).replace(month=11)),
            ("after", at(17, 8), at(17, 9)),
            ("long after", at(24, 8), at(24, 9)),
        ),
        MONDAY,
        ZURICH,
    )

    assert titles(week) == [[], [], [], [], [], [], []]
    assert week.next_on == date(2026, 12, 17)


def test_week_of_an_empty_feed_has_seven_days():
    week = read_week(feed(), MONDAY, ZURICH)

    assert (week.days[0], week.days[-1], week.next_on) == (MONDAY, date(2026, 12, 6), None)
