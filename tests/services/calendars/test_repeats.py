"""Repeated events in feeds: what other programs make of them, and who sees them."""

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import icalendar
import pytest
import recurring_ical_events
import vobject
from ical.calendar_stream import IcsCalendarStream
from nightshift.database import Session
from sqlalchemy import select, update

from services.calendars import audience, ics, revisions
from services.calendars.models import EventRendering
from services.calendars.weeks import read_week
from services.calendars.window import Window
from services.school.models import (
    Audience,
    DateState,
    Event,
    EventClass,
    Lesson,
    LessonClass,
    LessonTeacher,
    Semester,
    TeachingAffected,
)
from services.school.recurrences import DateChange, Series, find_occurrences
from services.school.series import read_series, spread, write_changes
from services.translation import Locale
from tests.ical_js import require_ical_js
from tests.lint import lint
from tests.services.calendars.builders import NOW, WINDOW, ZONE, published, revise

FIRST = datetime(2026, 8, 17, 6, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
# A year with two changes of the clocks, 25 October and 28 March, both of them dates of the rule.
RULE = "FREQ=WEEKLY;UNTIL=20270815;BYDAY=MO,WE,SU"
YEAR = (date(2026, 8, 1), date(2027, 9, 1))

# UID, start and end of each date that takes place, and its title.
Dates = list[tuple[str, str, str]]


def make_exceptions() -> tuple[DateChange, ...]:
    """Return 20: dates left out, cancelled, moved over a change of the clocks, and renamed."""
    days = [one.on for one in find_occurrences(Series(FIRST, FIRST + HOUR, RULE), ZONE)]
    change = days.index(date(2026, 10, 25))
    spring = days.index(date(2027, 3, 28))
    at = datetime.combine(date(2027, 3, 28), time(3, 30), ZONE).astimezone(UTC)
    moved = [
        (days[change - 1], datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),  # The second 2:30.
        (days[change], datetime(2026, 10, 24, 22, tzinfo=UTC)),
        (days[spring - 1], at),
        (days[spring], FIRST + timedelta(days=230)),
        (days[0], FIRST - timedelta(days=3)),
    ]
    return (
        *(DateChange(days[at], DateState.LEFT_OUT) for at in (1, 5, 6, change + 1, 60, 61, 149)),
        *(DateChange(days[at], DateState.CANCELLED) for at in (3, 40, spring + 1, 130)),
        *(DateChange(on, DateState.CHANGED, to, to + 2 * HOUR) for on, to in moved),
        *(
            DateChange(days[at], DateState.CHANGED, title=f"Probe {at}", location="Aula")
            for at in (10, 20, 32, 50)
        ),
    )


def add_series(
    session: Session,
    number: int,
    rrule: str = RULE,
    changes: tuple[DateChange, ...] = (),
    *,
    starts: datetime = FIRST,
    length: timedelta = HOUR,
    **values: Any,
) -> Event:
    event = Event(
        **published(
            id=UUID(int=number),
            starts_at=starts,
            ends_at=starts + length,
            rrule=rrule,
            title="Chor",
            audience=Audience.ALL,
            addressed=True,
            **values,
        )
    )
    session.add(event)
    session.flush()
    write_changes(session, event.id, changes)
    spread(session, [event.id], ZONE)
    return event


def read_feed(session: Session, locale: Locale = Locale.GERMAN) -> bytes:
    """Return a feed of all events."""
    revise(session)
    bodies = session.scalars(
        select(EventRendering.body)
        .where(EventRendering.locale == locale)
        .order_by(EventRendering.event_id)
    )
    return ics.render_head("Schule", ZONE) + b"".join(bodies) + ics.CALENDAR_FOOT


def write(moment: date) -> str:
    if isinstance(moment, datetime):
        return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    return f"{moment:%Y%m%d}"


def by_recurring_ical_events(data: bytes) -> Dates:
    calendar = icalendar.Calendar.from_ical(data)
    del calendar["X-WR-TIMEZONE"]
    return [
        (write(one.start), write(one.end), str(one["SUMMARY"]))
        for one in recurring_ical_events.of(calendar).between(*YEAR)
        if one["STATUS"] != "CANCELLED"
    ]


def by_ical(data: bytes) -> Dates:
    calendar = IcsCalendarStream.calendar_from_ics(data.decode())
    return [
        (write(one.start), write(one.end), str(one.summary))
        for one in calendar.timeline_tz(ZONE).overlapping(*YEAR)
        if one.status != "CANCELLED"
    ]


def by_vobject(data: bytes) -> Dates:
    """Let vobject expand the rules; what stands beside them, it leaves to its user."""
    events = vobject.readOne(data.decode()).contents["vevent"]
    own = {
        (one.uid.value, one.contents["recurrence-id"][0].value)
        for one in events
        if "recurrence-id" in one.contents
    }
    found = []
    for one in events:
        length = one.dtend.value - one.dtstart.value
        starts = [one.dtstart.value] if "rrule" not in one.contents else list(one.rruleset)
        if not isinstance(one.dtstart.value, datetime):
            starts = [start.date() for start in starts]
        found += [
            (write(start), write(start + length), one.summary.value)
            for start in starts
            if one.status.value != "CANCELLED"
            and ("rrule" not in one.contents or (one.uid.value, start) not in own)
        ]
    return found


ICAL_JS = """
const ICAL = require("ical.js"), fs = require("fs"), found = [];
const calendar = new ICAL.Component(ICAL.parse(fs.readFileSync(0, "utf8")));
for (const zone of calendar.getAllSubcomponents("vtimezone")) ICAL.TimezoneService.register(zone);
const write = (time) => time.isDate ? time.toICALString()
  : time.convertToZone(ICAL.Timezone.utcTimezone).toICALString();
const add = (event, start, end) => {
  if (event.component.getFirstPropertyValue("status") != "CANCELLED")
    found.push([write(start), write(end), event.summary]);
};
const all = calendar.getAllSubcomponents("vevent").map((each) => new ICAL.Event(each));
for (const event of all.filter((each) => !each.isRecurrenceException())) {
  for (const own of all)
    if (own.isRecurrenceException() && own.uid === event.uid) event.relateException(own);
  if (!event.isRecurring()) { add(event, event.startDate, event.endDate); continue; }
  const dates = event.iterator();
  for (let next = dates.next(); next; next = dates.next()) {
    const one = event.getOccurrenceDetails(next);
    add(one.item, one.startDate, one.endDate);
  }
}
console.log(JSON.stringify(found));
"""


def by_ical_js(data: bytes) -> Dates:
    run = subprocess.run(
        ["node", "-e", ICAL_JS],
        input=data,
        env=require_ical_js(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return [tuple(one) for one in json.loads(run.stdout)]


READERS: dict[str, Callable[[bytes], Dates]] = {
    "recurring-ical-events": by_recurring_ical_events,
    "ical": by_ical,
    "vobject": by_vobject,
    "ical.js": by_ical_js,
}


@pytest.mark.parametrize("reader", READERS)
def test_other_programs_find_our_dates_in_a_year(session: Session, reader: str) -> None:
    exceptions = make_exceptions()
    assert len({one.on for one in exceptions}) == 20
    add_series(session, 1, changes=exceptions)
    days = Event(
        **published(
            id=UUID(int=2),
            starts_on=date(2026, 8, 31),
            ends_on=date(2026, 9, 1),
            rrule="FREQ=MONTHLY;COUNT=12;BYDAY=-1MO",
            title="Tage",
        )
    )
    session.add(days)
    session.flush()
    write_changes(session, days.id, [DateChange(date(2026, 10, 26), DateState.LEFT_OUT)])
    spread(session, [days.id], ZONE)
    add_series(
        session,
        3,
        "FREQ=WEEKLY;UNTIL=20270331",
        starts=datetime(2026, 9, 5, 20, tzinfo=UTC),
        length=9 * HOUR,
    )

    feed = read_feed(session)

    expected = []
    for event_id, series in read_series(session, Event.rrule != "").items():
        for one in find_occurrences(series, ZONE):
            if one.change is None or one.change.state != DateState.CANCELLED:
                title = (one.change and one.change.title) or {days.id: "Tage"}.get(event_id, "Chor")
                ends = one.ends if isinstance(one.ends, datetime) else one.ends + timedelta(days=1)
                expected.append((write(one.starts), write(ends), title))
    assert len(expected) == (156 - 7 - 4) + (12 - 1) + 30
    assert lint(feed) == []
    assert sorted(READERS[reader](feed)) == sorted(expected)


# --- what feeds say ---


def lines_of(feed: bytes) -> list[list[str]]:
    """Return the lines of each VEVENT."""
    return [one.splitlines() for one in feed.decode().split("BEGIN:VEVENT\r\n")[1:]]


def test_a_date_left_out_is_an_exdate_and_a_cancelled_one_a_part(session: Session) -> None:
    changes = (
        DateChange(date(2026, 12, 9), DateState.LEFT_OUT),
        DateChange(date(2026, 12, 16), DateState.CANCELLED),
    )
    starts = datetime(2026, 12, 2, 11, tzinfo=UTC)
    add_series(session, 1, "FREQ=WEEKLY;UNTIL=20261230", changes, starts=starts)

    rule, cancelled = lines_of(read_feed(session))

    assert "DTSTART;TZID=Europe/Zurich:20261202T120000" in rule
    assert "RRULE:FREQ=WEEKLY;UNTIL=20261230T110000Z" in rule
    assert [line for line in rule if line.startswith("EXDATE")] == [
        "EXDATE;TZID=Europe/Zurich:20261209T120000"
    ]
    assert "RECURRENCE-ID;TZID=Europe/Zurich:20261216T120000" in cancelled
    assert "STATUS:CANCELLED" in cancelled
    assert "SUMMARY:Abgesagt: Chor" in cancelled


def test_a_moved_date_in_the_doubled_hour_is_written_in_utc(session: Session) -> None:
    second = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    change = DateChange(date(2026, 10, 21), DateState.CHANGED, second, second + HOUR)
    starts = datetime(2026, 10, 21, 10, tzinfo=UTC)
    add_series(session, 1, "FREQ=DAILY;COUNT=6", (change,), starts=starts)
    _, moved = lines_of(read_feed(session))
    assert "DTSTART:20261025T013000Z" in moved
    assert "DTEND:20261025T023000Z" in moved


def test_cancelling_the_event_cancels_all_its_parts(session: Session) -> None:
    change = DateChange(date(2026, 8, 19), DateState.CHANGED, title="Anders")
    add_series(session, 1, changes=(change,), cancelled_at=NOW)
    parts = lines_of(read_feed(session))
    assert ["STATUS:CANCELLED" in part for part in parts] == [True, True]


def test_every_part_has_the_event_s_one_sequence(session: Session) -> None:
    event = add_series(session, 1)
    read_feed(session)
    for number, on in enumerate((date(2026, 8, 19), date(2026, 8, 24)), 1):
        changes = [DateChange(date(2026, 8, 19), DateState.CANCELLED)]
        changes += [DateChange(on, DateState.CHANGED, title="Neu")] if number == 2 else []
        write_changes(session, event.id, changes)
        parts = lines_of(read_feed(session))
        assert len(parts) == number + 1
        for part in parts:
            assert f"SEQUENCE:{number}" in part
    assert revise(session) == 0


def test_an_event_that_does_not_repeat_has_the_bytes_that_it_had(session: Session) -> None:
    affected = TeachingAffected.NO
    content = ics.EventContent("a@b", "Chor", "", "", FIRST, FIRST + HOUR, False, affected, ())
    (body,) = ics.render(content).bodies[Locale.GERMAN]
    assert b"TZID" not in body
    assert b"DTSTART:20260817T061500Z\r\n" in body


def test_a_rule_that_another_program_broke_spoils_only_its_event(session: Session) -> None:
    add_series(session, 1)
    broken = add_series(session, 2)
    session.execute(update(Event).where(Event.id == broken.id).values(rrule="FREQ=SECONDLY"))

    feed = read_feed(session)

    [error] = revisions.find_errors(session, WINDOW)
    assert error["event"] == str(broken.id)
    assert error["error"].startswith("repeats: FREQ must be")
    assert len(lines_of(feed)) == 1
    # Who is concerned is still found: of its first date.
    assert audience.find_affected(session, broken.id, ZONE) == set()


# --- who sees it, and when ---


def held(session: Session, window: Window) -> list[str]:
    revise(session)
    school = audience.read_school(session, window, [])
    return [str(event.id)[-1] for event in school.events]


def test_a_window_holds_a_series_by_its_dates(session: Session) -> None:
    starts = datetime(2026, 6, 1, 8, tzinfo=UTC)
    late = datetime(2026, 12, 3, 8, tzinfo=UTC)
    add_series(session, 1, "FREQ=MONTHLY;COUNT=8", starts=starts)
    add_series(session, 2, "FREQ=MONTHLY;COUNT=2", starts=starts)
    moved = DateChange(date(2026, 7, 1), DateState.CHANGED, late, late + HOUR)
    add_series(session, 3, "FREQ=MONTHLY;COUNT=2", (moved,), starts=starts)

    week = Window(date(2026, 11, 30), date(2026, 12, 6), NOW, ZONE)
    other = Window(date(2026, 12, 7), date(2026, 12, 13), NOW, ZONE)

    assert held(session, week) == ["1", "3"]
    assert held(session, other) == []


def test_a_series_affects_the_teacher_of_a_lesson_on_any_of_its_dates(
    session: Session, school: SimpleNamespace
) -> None:
    semester = Semester(name="2026", starts_on=date(2026, 8, 1), ends_on=date(2027, 1, 31))
    session.add(semester)
    session.flush()
    lesson = Lesson(
        key="1", semester_id=semester.id, weekday=4, starts=time(8), ends=time(9), subject="M"
    )
    session.add(lesson)
    session.flush()
    session.add_all(
        [
            LessonClass(lesson_id=lesson.id, class_id=school.class_ga.id),
            LessonTeacher(lesson_id=lesson.id, user_id=school.juerg.id),
        ]
    )
    # On Tuesdays, and once moved to a Thursday at 8.
    starts = datetime(2026, 12, 1, 7, tzinfo=UTC)
    thursday = starts + timedelta(days=9)
    moved = DateChange(date(2026, 12, 8), DateState.CHANGED, thursday, thursday + HOUR)
    event = add_series(session, 1, "FREQ=WEEKLY;COUNT=3", starts=starts)
    session.execute(update(Event).where(Event.id == event.id).values(audience="students"))
    session.add(EventClass(event_id=event.id, class_id=school.class_ga.id))
    session.flush()

    usual = audience.find_affected(session, event.id, ZONE)
    write_changes(session, event.id, [moved])
    once = audience.find_affected(session, event.id, ZONE)

    assert usual == {school.anna.id}
    assert once == {school.anna.id, school.juerg.id}


def test_a_cancelled_series_stays_until_its_last_date_has_passed(session: Session) -> None:
    starts = datetime(2026, 11, 3, 8, tzinfo=UTC)
    add_series(session, 1, "FREQ=WEEKLY;COUNT=5", starts=starts, cancelled_at=NOW)
    days = (date(2026, 10, 1), date(2027, 1, 1))
    on_the_last = Window(*days, datetime(2026, 12, 1, 12, tzinfo=UTC), ZONE)
    after_it = Window(*days, datetime(2026, 12, 2, 12, tzinfo=UTC), ZONE)
    assert held(session, on_the_last) == ["1"]
    assert held(session, after_it) == []


def test_the_week_s_page_shows_each_date(session: Session) -> None:
    changes = (
        DateChange(date(2026, 12, 9), DateState.LEFT_OUT),
        DateChange(date(2026, 12, 10), DateState.CANCELLED),
        DateChange(date(2026, 12, 11), DateState.CHANGED, title="Hauptprobe"),
    )
    starts = datetime(2026, 12, 7, 18, tzinfo=UTC)
    add_series(session, 1, "FREQ=DAILY;COUNT=5", changes, starts=starts)
    feed = read_feed(session)

    week = read_week(feed, date(2026, 12, 7), ZONE)
    before = read_week(feed, date(2026, 11, 30), ZONE)

    assert [[(one.title, one.cancelled) for one in day] for day in week.timed] == [
        [("Chor", False)],
        [("Chor", False)],
        [],
        [("Abgesagt: Chor", True)],
        [("Hauptprobe", False)],
        [],
        [],
    ]
    assert (before.next_on, week.next_on) == (date(2026, 12, 7), None)
