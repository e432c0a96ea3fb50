"""The revision ledger: SEQUENCE and LAST-MODIFIED rise exactly when the rendered bytes change."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest
from icalendar import Calendar
from nightshift.database import Session
from sqlalchemy import delete, select

from services.calendars import ics, revisions
from services.calendars.models import EventRendering, EventRevision
from services.school.models import (
    Audience,
    Event,
    EventUser,
)
from services.translation import Locale
from tests.services.calendars.builders import DOMAIN, NOW, WINDOW, ZONE, record, revise


def told(session: Session, event_id: UUID) -> tuple[int, datetime]:
    """Return an event's SEQUENCE and LAST-MODIFIED, on which the bytes of every locale agree."""
    bodies = session.scalars(
        select(EventRendering.body).where(EventRendering.event_id == event_id)
    ).all()
    wrapped = [ics.render_head("", ZONE) + body + ics.CALENDAR_FOOT for body in bodies]
    events = [Calendar.from_ical(data).walk("VEVENT")[0] for data in wrapped]
    (stamps_,) = {
        (each["SEQUENCE"], each["LAST-MODIFIED"].dt, each["DTSTAMP"].dt) for each in events
    }
    kept = session.execute(
        select(EventRevision.sequence, EventRevision.modified_at).where(
            EventRevision.event_id == event_id
        )
    ).one()
    assert len(events) == len(Locale)
    assert stamps_ == (*kept, kept.modified_at)
    return kept.sequence, kept.modified_at


LATER = NOW + timedelta(days=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda school: setattr(school.trip, "title", "Studienreise Wien"),
        lambda school: setattr(school.trip, "location", "Graz"),
        lambda school: setattr(school.trip, "description", "Mitnehmen: Ausweis"),
        lambda school: setattr(school.trip, "ends_on", date(2026, 12, 12)),
        lambda school: setattr(school.trip, "cancelled_at", NOW),
        lambda school: setattr(school.trip, "deleted_at", NOW),
        lambda school: setattr(school.class_ga, "name", "27Gb"),
    ],
    ids=["title", "room", "description", "end", "cancelled", "deleted", "class renamed"],
)
def test_revision_rises_when_the_rendered_bytes_change(
    session: Session, school: SimpleNamespace, change: Callable[[SimpleNamespace], None]
) -> None:
    revise(session)
    before = told(session, school.trip.id)
    change(school)

    written = revise(session, LATER)

    assert written == 1
    assert (before, told(session, school.trip.id)) == ((0, NOW), (1, LATER))
    assert told(session, school.assembly.id) == (0, NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda school: setattr(school.trip, "audience", Audience.TEACHERS),
        lambda school: setattr(school.trip, "author_id", school.juerg.id),
        lambda school: setattr(school.trip, "title", " Studienreise\x07 "),
        lambda school: setattr(school.class_ga, "display_name", "Gymnasium 27 a"),
        lambda school: setattr(school.gymnasium, "name", "Kantonsschule"),
    ],
    ids=[
        "audience",
        "author",
        "title as rendered",
        "display name",
        "department that it does not name",
    ],
)
def test_revision_stays_when_the_rendered_bytes_do(
    session: Session, school: SimpleNamespace, change: Callable[[SimpleNamespace], None]
) -> None:
    revise(session)
    change(school)

    revise(session, LATER)

    assert told(session, school.trip.id) == (0, NOW)
    assert revise(session, LATER) == 0


def test_revision_stays_when_a_person_is_linked(session: Session, school: SimpleNamespace) -> None:
    revise(session)
    session.add(EventUser(event_id=school.trip.id, user_id=school.kim.id))

    assert revise(session, LATER) == 0


def test_revision_rises_by_a_second_when_it_changes_twice_within_one(
    session: Session, school: SimpleNamespace
) -> None:
    told_of = []
    for number in range(3):
        school.trip.title = f"Studienreise {number}"
        revise(session, NOW + number * timedelta(milliseconds=300))
        told_of.append(told(session, school.trip.id))

    assert told_of == [(0, NOW), (1, NOW + timedelta(seconds=1)), (2, NOW + timedelta(seconds=2))]


def test_revision_rises_when_the_clock_was_put_back(
    session: Session, school: SimpleNamespace
) -> None:
    revise(session)
    school.trip.title = "Studienreise Wien"
    revise(session, NOW - timedelta(days=1))

    assert told(session, school.trip.id) == (1, NOW + timedelta(seconds=1))


def test_revision_that_two_found_is_raised_once(session: Session, school: SimpleNamespace) -> None:
    revise(session)
    school.trip.title = "Studienreise Wien"
    session.flush()
    first, second = (
        list(revisions.find_outdated(session, WINDOW, domain=DOMAIN)) for _ in range(2)
    )

    written = [record(session, found, LATER) for found in (first, second)]

    assert written == [1, 0]
    assert told(session, school.trip.id) == (1, LATER)


def test_revision_of_a_new_event_that_two_found_is_written_once(
    session: Session, school: SimpleNamespace
) -> None:
    session.flush()
    first, second = (
        list(revisions.find_outdated(session, WINDOW, domain=DOMAIN)) for _ in range(2)
    )

    written = [record(session, found, now) for found, now in ((first, NOW), (second, LATER))]

    assert written == [2, 0]
    assert told(session, school.trip.id) == (0, NOW)


def test_revision_of_an_event_that_was_removed_meanwhile_is_left(
    session: Session, school: SimpleNamespace
) -> None:
    session.flush()
    found = list(revisions.find_outdated(session, WINDOW, domain=DOMAIN))
    session.execute(delete(Event).where(Event.id == school.trip.id))

    assert record(session, found, NOW) == 1


def test_revision_of_an_event_that_was_mended_goes_on_where_it_was(
    session: Session, school: SimpleNamespace
) -> None:
    revise(session)
    good = school.trip.ends_on
    school.trip.ends_on = school.trip.starts_on - timedelta(days=1)
    revise(session, LATER)
    broken = revisions.find_errors(session, WINDOW)
    school.trip.ends_on = good
    revise(session, LATER + timedelta(days=1))
    as_before = told(session, school.trip.id)
    school.trip.title = "Studienreise Wien"
    revise(session, LATER + timedelta(days=2))

    assert [error["event"] for error in broken] == [str(school.trip.id)]
    assert as_before == (0, NOW)
    assert told(session, school.trip.id) == (1, LATER + timedelta(days=2))
    assert revisions.find_errors(session, WINDOW) == []
