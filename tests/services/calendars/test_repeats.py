"""Repeated events in feeds: what other programs make of them, and who sees them."""

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

import icalendar
import pytest
import recurring_ical_events
import vobject
from ical.calendar_stream import IcsCalendarStream
from nightshift.database import Session
from sqlalchemy import select

from services.calendars import ics
from services.calendars.models import EventRendering
from services.school.models import Audience, DateState, Event
from services.school.recurrences import DateChange, Series, find_occurrences
from services.school.series import read_series, spread, write_changes
from services.translation import Locale
from tests.ical_js import require_ical_js
from tests.lint import lint
from tests.services.calendars.builders import ZONE, published, revise

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
