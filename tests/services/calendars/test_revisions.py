"""The revision ledger: SEQUENCE and LAST-MODIFIED rise exactly when the rendered bytes change."""

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from icalendar import Calendar
from nightshift.database import Session, make_engine
from sqlalchemy import delete, insert, select, update

from services.calendars import ics, notes, revisions
from services.calendars.models import ChangeLog, EventRendering, EventRevision, EventStamp
from services.school.models import (
    Audience,
    Event,
    EventState,
    EventUser,
)
from services.translation import Locale
from tests.blocking import wait_until_blocked
from tests.services.calendars.builders import DOMAIN, NOW, WINDOW, ZONE, record, revise, timed


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


# --- stamps never fall ---


def write_again(session: Session, event_id: UUID) -> Event:
    """Delete an event, and write another under its id, as SQL does."""
    session.execute(delete(Event).where(Event.id == event_id))
    session.expunge_all()
    again = timed(event_id.int, title="Wieder da")
    session.add(again)
    return again


def test_event_that_is_written_again_goes_on_from_its_stamps(
    session: Session, school: SimpleNamespace
) -> None:
    revise(session)
    school.trip.title = "Studienreise Wien"
    revise(session, LATER)
    event_id = school.trip.id

    for number in range(2):
        write_again(session, event_id)
        # The clock of this machine is behind.
        revise(session, NOW)
        assert told(session, event_id) == (2 + number, LATER + timedelta(seconds=1 + number))


def test_event_that_is_written_again_before_it_was_rendered_begins_at_zero(
    session: Session, school: SimpleNamespace
) -> None:
    session.flush()
    event_id = school.trip.id
    write_again(session, event_id)

    revise(session)

    assert told(session, event_id) == (0, NOW)


@pytest.mark.parametrize(
    "values",
    [
        {"sequence": 0},
        {"sequence": -5},
        {"modified_at": NOW - timedelta(days=400)},
        {"modified_at": datetime(1, 1, 1, tzinfo=UTC)},
    ],
)
def test_stamps_that_another_program_sets_back_go_on(
    session: Session, school: SimpleNamespace, values: dict[str, Any]
) -> None:
    revise(session)
    school.trip.title = "Studienreise Wien"
    revise(session, LATER)
    session.execute(update(EventRevision).values(values))

    revise(session, LATER)

    assert told(session, school.trip.id) == (2, LATER + timedelta(seconds=1))


@pytest.mark.parametrize(
    "values",
    [{"sequence": revisions.HIGHEST_SEQUENCE}, {"modified_at": datetime(9999, 12, 31, tzinfo=UTC)}],
)
def test_highest_stamps_are_no_error(
    session: Session, school: SimpleNamespace, values: dict[str, Any]
) -> None:
    revise(session)
    session.execute(update(EventRevision).values(values))
    event_id = school.trip.id

    for number in range(2):
        school.trip.title = f"Studienreise {number}"
        revise(session, LATER)
    write_again(session, event_id)
    revise(session, LATER)

    sequence, modified_at = told(session, event_id)
    assert sequence == values.get("sequence", 3)
    assert modified_at >= LATER
    assert revise(session, LATER) == 0


def test_kept_stamps_are_deleted_when_no_program_remembers_them(
    session: Session, school: SimpleNamespace
) -> None:
    revise(session)
    session.execute(delete(Event))
    old, kept = NOW - timedelta(days=1), NOW + timedelta(days=1)
    session.execute(update(EventStamp).values(gone_at=old))
    session.execute(
        update(EventStamp).where(EventStamp.event_id == school.trip.id).values(gone_at=kept)
    )

    assert revisions.prune_stamps(session, before=NOW) == 1
    assert session.scalars(select(EventStamp.event_id)).all() == [school.trip.id]


def test_pruning_deletes_a_limited_number_of_stamps(session: Session) -> None:
    stamps = {"sequence": 1, "modified_at": NOW, "gone_at": NOW}
    rows = [
        {"event_id": UUID(int=number), **stamps} for number in range(revisions.STAMPS_A_PRUNING + 1)
    ]
    session.execute(insert(EventStamp), rows)

    assert revisions.prune_stamps(session, before=LATER) == revisions.STAMPS_A_PRUNING
    assert revisions.prune_stamps(session, before=LATER) == 1


def test_stamps_of_a_replaced_database_are_gone_on_from(
    session: Session, school: SimpleNamespace
) -> None:
    revise(session)
    same, changed, gone = [*session.scalars(select(EventRevision.event_id)), UUID(int=77)][-3:]
    replaced = revisions.read_stamps(session)
    replaced |= {changed: revisions.Stamps(4, LATER), gone: revisions.Stamps(2, LATER)}

    taken = [revisions.take_stamps(session, replaced, now=LATER) for _ in range(2)]

    assert taken == [2, 0]
    assert revise(session, LATER) == 1
    assert told(session, changed) == (5, LATER + timedelta(seconds=1))
    assert told(session, same) == (0, NOW)
    assert revisions.read_stamps(session)[gone] == (2, LATER)


# --- what another program writes into a revision ---


def doubt(session: Session) -> int:
    """Compare the events that the log casts doubt on; return how many were wrong."""
    doubted = notes.find_doubted(session)
    changed = revisions.record(
        session, WINDOW, [], domain=DOMAIN, now=LATER, doubted=doubted, builds_feeds=True
    )
    revisions.mark_hidden(session, WINDOW, domain=DOMAIN, doubted=doubted)
    session.execute(delete(ChangeLog))
    return changed


@pytest.mark.parametrize(
    "write",
    [
        update(EventRendering).values(body=b"x"),
        update(EventRendering).where(EventRendering.locale == Locale.FRENCH).values(body=b"x"),
        delete(EventRendering),
        update(EventRevision).values(digest=b"x"),
        update(EventRevision).values(digest=b""),
        update(EventRevision).values(sequence=7),
        delete(EventRevision),
    ],
    ids=["bodies", "one body", "no bodies", "digest", "no digest", "sequence", "no revision"],
)
def test_revision_of_another_program_is_put_right_with_higher_stamps(
    session: Session, school: SimpleNamespace, write: Any
) -> None:
    revise(session)
    session.execute(delete(ChangeLog))
    session.execute(write)

    assert doubt(session) == 2

    sequence, modified_at = told(session, school.trip.id)
    assert (sequence in (1, 8), modified_at) == (True, LATER)
    assert doubt(session) == 0


@pytest.mark.parametrize("values", [{"error": "x"}, {"source": b"x"}])
def test_revision_of_which_no_calendar_shows_a_change_keeps_its_stamps(
    session: Session, school: SimpleNamespace, values: dict[str, Any]
) -> None:
    revise(session)
    session.execute(delete(ChangeLog))
    session.execute(update(EventRevision).values(values))

    assert doubt(session) == 2

    assert told(session, school.trip.id) == (0, NOW)
    assert revisions.find_errors(session, WINDOW) == []


def test_hidden_event_is_rendered_again_when_it_is_shown(
    session: Session, school: SimpleNamespace
) -> None:
    revise(session)
    school.trip.state = EventState.DRAFT
    session.flush()
    session.execute(delete(EventRendering))
    doubt(session)
    school.trip.state = EventState.PUBLISHED

    revise(session, LATER)

    assert told(session, school.trip.id) == (1, LATER)


def test_hidden_event_that_is_right_stays(session: Session, school: SimpleNamespace) -> None:
    revise(session)
    school.trip.state = EventState.DRAFT
    session.flush()
    session.execute(insert(ChangeLog).values(kind=notes.REVISION, event_id=school.trip.id))
    doubt(session)
    school.trip.state = EventState.PUBLISHED

    assert revise(session, LATER) == 0


# --- notes ---


def test_only_who_builds_the_feeds_leaves_no_note(
    session: Session, school: SimpleNamespace
) -> None:
    session.flush()
    session.execute(delete(ChangeLog))
    revisions.record(session, WINDOW, [], domain=DOMAIN, now=NOW, builds_feeds=True)
    assert notes.find_doubted(session) == set()
    school.trip.title = "Studienreise Wien"
    session.flush()

    revisions.record(session, WINDOW, [], domain=DOMAIN, now=LATER)

    assert notes.find_doubted(session) == {school.trip.id}


def test_invitation_has_the_stamps_of_the_feeds_and_leaves_a_note(
    session: Session, school: SimpleNamespace
) -> None:
    """Invite, take off, invite again, change, cancel, restore: each time the SEQUENCE rises."""
    revise(session)
    session.execute(delete(ChangeLog))
    said = []
    steps: list[tuple[bool, Callable[[], None]]] = [
        (True, lambda: None),
        (True, lambda: None),
        (True, lambda: None),
        (False, lambda: setattr(school.trip, "location", "Graz")),
        (False, lambda: setattr(school.trip, "cancelled_at", NOW)),
        (False, lambda: setattr(school.trip, "cancelled_at", None)),
    ]
    for raised, change in steps:
        change()
        session.flush()
        vevents = revisions.revise(
            session, school.trip.id, domain=DOMAIN, zone=ZONE, raised=raised, now=LATER
        )
        assert notes.find_doubted(session) == {school.trip.id}
        assert doubt(session) == 0
        sequence, _ = told(session, school.trip.id)
        assert all(f"SEQUENCE:{sequence}\r\n" in text for text in vevents.values())
        said.append(sequence)
    assert said == [1, 2, 3, 4, 5, 6]


def test_invitation_and_refresh_do_not_wait_for_each_other_in_a_circle(postgres_url: str) -> None:
    engine = make_engine(postgres_url)
    numbers: list[int] = []

    def raise_it() -> None:
        with Session(engine) as session, session.begin():
            revisions.revise(
                session, UUID(int=12), domain=DOMAIN, zone=ZONE, raised=True, now=LATER
            )
            numbers.append(read_number(session))

    def read_number(session: Session) -> int:
        return session.execute(select(EventRevision.sequence)).scalar_one()

    try:
        with Session(engine) as session, session.begin():
            session.add(timed(12, title="Versammlung"))
            revise(session)
        with Session(engine) as session, session.begin():
            # What a refresh does that finds the event changed.
            session.execute(update(Event).values(title="Konferenz"))
            found = list(revisions.find_outdated(session, WINDOW, domain=DOMAIN))
            revisions.record(session, WINDOW, [], domain=DOMAIN, now=LATER, event_ids=[UUID(int=1)])
            thread = threading.Thread(target=raise_it)
            thread.start()
            wait_until_blocked(session, thread)
            record(session, found, LATER)
            numbers.append(read_number(session))
        thread.join(20)
    finally:
        with Session(engine) as session, session.begin():
            session.execute(delete(Event))
            session.execute(delete(EventStamp))
            session.execute(delete(ChangeLog))
        engine.dispose()
    assert numbers == [1, 2]
