"""Who is told what of an event, on both databases."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from nightshift.database import Base, Session, make_engine
from nightshift.jobs import Discard
from nightshift.jobs.models import Job
from nightshift.testing import assert_enqueued
from sqlalchemy import delete, select, update

from services.letters.jobs import SETTLED, NoticeEvent, NoticeReview
from services.letters.models import EventNotice
from services.mail.models import Mail
from services.school import events
from services.school.models import Event, EventState, IgnoredEvent, SchoolClass, Subscription, User
from tests.blocking import wait_until_blocked
from tests.conftest import NOW
from tests.services.letters.conftest import School

LATER = NOW + timedelta(hours=1)
PUBLISHED = {"ann": "event_published", "fred": "event_published", "teacher": "event_published"}


# --- what happens to an event is told once it has settled ---


def test_what_follows_from_each_transition(session, school):
    def enqueued():
        found = session.execute(select(Job.kind, Job.args).order_by(Job.kind)).all()
        session.query(Job).delete()
        return [(kind.removeprefix("mail.notice_"), args.get("step")) for kind, args in found]

    event = school.draft()
    assert enqueued() == []
    events.submit(session, event.id, now=NOW)
    assert enqueued() == [("review", "requested")]
    events.refuse(session, event.id, "no room", now=NOW)
    assert enqueued() == [("review", "refused")]
    events.delete(session, event.id, now=NOW)
    events.restore(session, event.id, now=NOW)
    assert enqueued() == []
    events.submit(session, event.id, now=NOW)
    enqueued()
    events.publish(session, event.id, now=NOW)
    assert enqueued() == [("event", None), ("review", "accepted")]
    for action in (events.cancel, events.restore, events.delete):
        action(session, event.id, now=NOW)
        assert enqueued() == [("event", None)]


def test_changes_within_minutes_are_one_job_about_the_published_event(session, school):
    event = school.published()
    school.change(event, title="Tour")
    events.cancel(session, event.id, now=NOW)
    assert_enqueued(session, NoticeEvent, event_id=event.id)
    assert_enqueued(session, NoticeReview, event_id=event.id, step="accepted")
    times = select(Job.run_at, Job.push_until).where(Job.kind == NoticeEvent.policy.kind)
    due, bound = session.execute(times).one()
    # Each change has put it off by the database's clock, and none the bound.
    assert timedelta() <= due - (bound - 9 * SETTLED) < SETTLED


# --- to whom ---


def test_new_event_is_told_to_those_whom_it_affects_and_who_want_it(school):
    assert school.tell(school.published()) == PUBLISHED
    assert school.text("ann").splitlines()[:4] == [
        "There is a new event that affects you. Your calendar shows it.",
        "",
        "Title: Trip",
        "When: Tuesday, 1 December 2026, 08:00–12:00",
    ]
    assert school.mail("fred")["Subject"] == "Nouvel événement : Trip"


def test_event_is_not_told_to_those_who_ignore_it(session, school):
    event = school.published()
    session.add(Subscription(user_id=school.ids["ann"]))
    session.flush()
    session.add(IgnoredEvent(user_id=school.ids["ann"], event_id=event.id))
    session.flush()
    assert school.tell(event) == {name: kind for name, kind in PUBLISHED.items() if name != "ann"}


def test_who_ignores_an_event_hears_no_more_of_it(session, school):
    event = school.published(users=("guest@school.example",))
    school.tell(event)
    for name in ("ann", "guest"):
        session.add(Subscription(user_id=school.ids[name]))
        session.flush()
        session.add(IgnoredEvent(user_id=school.ids[name], event_id=event.id))
    session.flush()
    school.change(event, title="Tour")
    assert school.tell(event) == dict.fromkeys(["fred", "teacher"], "event_changed")


def test_changes_are_told_together_as_old_and_new(school):
    event = school.published(location="Aula")
    school.tell(event)
    school.change(event, title="Tour")
    school.change(event, location="")
    school.change(event, starts="2026-12-01T09:00")

    assert school.tell(event) == dict.fromkeys(PUBLISHED, "event_changed")
    assert school.mail("ann")["Subject"] == "Changed: Tour"
    assert school.text("ann") == (
        "An event has changed. It still affects you.\n\n"
        "Title: Tour\n    before: Trip\n"
        "When: Tuesday, 1 December 2026, 09:00–12:00\n"
        "    before: Tuesday, 1 December 2026, 08:00–12:00\n"
        "Where: –\n    before: Aula\n"
        "For: Students (27Ga)\nTeaching affected: no\n"
    )


def test_each_reader_hears_whether_the_event_affects_them_now_still_or_no_longer(school):
    event = school.published()
    school.tell(event)
    school.change(event, classes=("27Gb",))

    assert school.tell(event) == dict.fromkeys(["ann", "fred", "bob", "teacher"], "event_changed")
    assert {name: school.text(name).splitlines()[0] for name in ("ann", "bob", "teacher")} == {
        "ann": "An event has changed. It no longer affects you.",
        "bob": "An event has changed. It affects you now. It did not before.",
        "teacher": "An event has changed. It still affects you.",
    }


def test_change_that_was_undone_is_not_told(school):
    event = school.published()
    school.tell(event)
    school.change(event, title="Tour")
    school.change(event, title="Trip")
    assert school.tell(event) == {}


@pytest.mark.parametrize("action", [events.cancel, events.delete])
def test_cancelled_event_is_told_and_so_is_that_it_takes_place_after_all(session, school, action):
    event = school.published()
    school.tell(event)
    school.change(event, title="Tour")
    action(session, event.id, now=NOW)
    assert school.tell(event) == dict.fromkeys(PUBLISHED, "event_cancelled")
    assert school.mail("ann")["Subject"] == "Cancelled: Trip"
    assert school.text("ann").splitlines()[:4] == [
        "This event does not take place.",
        "",
        "Title: Tour",
        "    before: Trip",
    ]

    events.restore(session, event.id, now=NOW)
    assert school.tell(event) == dict.fromkeys(PUBLISHED, "event_changed")
    assert school.text("ann").splitlines()[-2:] == ["State: takes place", "    before: cancelled"]


def test_event_that_was_cancelled_before_anybody_was_told_is_told_when_it_is_restored(
    session, school
):
    event = school.published()
    events.cancel(session, event.id, now=NOW)
    assert school.tell(event) == {}
    events.restore(session, event.id, now=NOW)
    assert school.tell(event) == PUBLISHED


def written_by_others(session, school):
    """Return an event that a CSV file or another program put there, not our services."""
    event = school.published()
    session.query(EventNotice).delete()
    return event


def test_event_of_others_is_known_from_the_calendars(session, school):
    event = written_by_others(session, school)
    school.change(event, title="Tour")
    assert school.tell(event) == dict.fromkeys(PUBLISHED, "event_changed")
    assert school.text("ann").splitlines()[:3] == [
        "An event has changed. It still affects you.",
        "",
        "Title: Tour",
    ]


def test_cancelled_event_of_others_is_told(session, school):
    event = written_by_others(session, school)
    events.cancel(session, event.id, now=NOW)
    assert school.tell(event) == dict.fromkeys(PUBLISHED, "event_cancelled")


def test_event_that_others_took_back_can_be_published_again(session, school):
    event = school.published()
    school.tell(event)
    session.execute(
        update(Event).where(Event.id == event.id).values(state=EventState.REVIEW, title="Tour")
    )
    events.publish(session, event.id, now=NOW)
    assert school.tell(event) == dict.fromkeys(PUBLISHED, "event_changed")


def test_event_that_has_passed_is_not_told(school):
    event = school.published()
    assert school.tell(event, now=datetime(2026, 12, 1, 11, 0, tzinfo=UTC)) == {}
    assert school.tell(event, now=datetime(2026, 12, 1, 10, 59, tzinfo=UTC)) == PUBLISHED


def test_notice_is_not_sent_after_the_later_of_both_times(session, school):
    event = school.published()
    school.tell(event)
    school.change(event, starts="2026-11-30T08:00", ends="2026-11-30T12:00")
    school.tell(event)
    deadlines = (
        session.execute(select(Mail.expires_at).where(Mail.kind == "event_changed")).scalars().all()
    )
    assert set(deadlines) == {datetime(2026, 12, 1, 11, 0, tzinfo=UTC)}


@pytest.mark.parametrize("state", [EventState.DRAFT, EventState.REVIEW, EventState.REFUSED])
def test_event_that_is_not_published_is_not_told(session, school, state):
    event = school.published()
    session.execute(update(Event).where(Event.id == event.id).values(state=state))
    assert school.plan(event) == []


# --- once ---


def test_jobs_that_run_twice_queue_nothing_twice(session, school):
    event = school.published()
    (args,) = school.plan(event)
    assert [school.queue_some(args) for _ in range(2)] == [
        {"queued": 3, "withdrawn": 0},
        {"queued": 0, "withdrawn": 0},
    ]
    assert school.plan(event) == []
    assert session.query(Mail).count() == 3


def test_late_job_of_an_earlier_version_tells_the_newest(session, school):
    event = school.published()
    school.tell(event)
    school.change(event, title="Tour")
    first = school.plan(event)
    school.change(event, title="Hike")
    second = school.plan(event)
    for args in (*second, *first):
        school.queue_some(args)
    subjects = (
        session.execute(
            select(Mail.subject).where(Mail.recipient == "ann@school.example").order_by(Mail.id)
        )
        .scalars()
        .all()
    )
    assert subjects == ["New event: Trip", "Changed: Hike"]
    assert "before: Trip" in school.text("ann")


def test_versions_that_nobody_needs_are_forgotten(session, school):
    event = school.published()
    for number in range(4):
        school.tell(event)
        school.change(event, title=f"Trip {number}")
    session.execute(update(EventNotice).values(told_at=NOW - timedelta(days=8)))
    session.execute(delete(Mail).where(Mail.version.in_([1, 2])))
    school.tell(event)
    assert session.execute(
        select(EventNotice.version).order_by(EventNotice.version)
    ).scalars().all() == [0, 3, 4, 5]


def test_chunk_of_an_event_that_is_gone_ends(session, school):
    event = school.published()
    (args,) = school.plan(event)
    session.delete(event)
    session.flush()
    session.expire_all()
    assert school.queue_some(args) == Discard("the event is gone, or was never told")


def test_five_hundred_readers_of_one_event(session, school):
    (class_id,) = session.execute(
        select(SchoolClass.id).where(SchoolClass.name == "27Gb")
    ).scalars()
    columns = {
        "first_name": "A",
        "last_name": "B",
        "role": "student",
        "class_id": class_id,
        "created_at": NOW,
    }
    session.add_all(User(email=f"s{number}@school.example", **columns) for number in range(500))
    event = school.published(classes=("27Gb",))

    chunks = school.plan(event)

    assert [len(args.user_ids) for args in chunks] == [200, 200, 102]
    for args in chunks:
        school.queue_some(args)
    addresses = session.execute(select(Mail.recipient)).scalars().all()
    assert (len(addresses), len(set(addresses))) == (502, 502)


def test_two_who_tell_of_one_event_at_once_tell_it_once(postgres_url):
    engine = make_engine(postgres_url)
    outcomes = []
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            school = School(session)
            event_id = school.published().id
        with Session(engine) as session, session.begin():
            outcomes.append(
                School.notice(
                    session, School.begin(session, NoticeEvent(event_id=event_id)), event_id
                )
            )

            def beside():
                with Session(engine) as other, other.begin():
                    outcomes.append(
                        School.notice(
                            other, School.begin(other, NoticeEvent(event_id=event_id)), event_id
                        )
                    )

            thread = threading.Thread(target=beside)
            thread.start()
            wait_until_blocked(session, thread)
        thread.join()
    finally:
        with Session(engine) as session, session.begin():
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        engine.dispose()
    assert outcomes == [{"concerned": 4}, {"concerned": 0}]
