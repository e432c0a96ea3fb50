"""What may be done with an event in which state, what that changes, and what is refused."""

import threading
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import pytest
from nightshift.database import Base, Session, make_engine
from nightshift.errors import Conflict, InvalidInput, NotFound
from nightshift.jobs.models import Job
from sqlalchemy import delete, func, select, text

from services.school import events
from services.school.models import (
    Audience,
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    EventState,
    EventUser,
    Role,
    SchoolClass,
    TeachingAffected,
    User,
)
from services.translation import Locale
from tests.conftest import NOW, ZONE

LATER = NOW + timedelta(hours=1)
AUTHOR, OTHER = "anna@school.example", "beat@school.example"
FOR = {"classes": ("27Ga",), "class_groups": ("28W",), "departments": ("Music",), "users": (OTHER,)}
FOR_OTHERS = {
    "classes": ("27GA", "27Ga"),
    "class_groups": ("27G",),
    "departments": ("Sport",),
    "users": (AUTHOR,),
}


def populate(session):
    session.add_all(SchoolClass(name=name) for name in ("27Ga", "27GA", "28Wb"))
    session.add_all(Department(name=name, locale=Locale.GERMAN) for name in ("Music", "Sport"))
    session.add_all(
        User(email=email, first_name="A", last_name="B", role=Role.TEACHER, created_at=NOW)
        for email in (AUTHOR, OTHER)
    )
    session.flush()


@pytest.fixture
def school(session):
    populate(session)
    return session


def cells(**values):
    return {"title": "Trip", "starts": "2026-12-01T08:00", "ends": "2026-12-01T12:00"} | values


def draft(session, **values):
    return events.create(
        session, events.read_details(cells(**values), zone=ZONE), author=AUTHOR, zone=ZONE, now=NOW
    )


def edit(session, event_id, *, author=None, now=NOW, **changes):
    return events.edit(session, event_id, changes, author=author, zone=ZONE, now=now)


def published(session, **values):
    event = draft(session, **values)
    events.submit(session, event.id, now=NOW)
    return events.publish(session, event.id, now=NOW)


def past(session):
    event = published(session)
    version = edit(session, event.id, title="New")
    events.submit(session, version.id, now=NOW)
    events.publish(session, version.id, now=NOW)
    return version


STANDINGS = {
    "draft": draft,
    "review": lambda session: events.submit(session, draft(session).id, now=NOW),
    "refused": lambda session: events.refuse(
        session, STANDINGS["review"](session).id, "no room", now=NOW
    ),
    "published": published,
    "cancelled": lambda session: events.cancel(session, published(session).id, now=NOW),
    "deleted": lambda session: events.delete(session, published(session).id, now=NOW),
    "past": past,
}
ACTIONS = {
    "edit": lambda session, event_id: edit(session, event_id, title="Edited"),
    "submit": lambda session, event_id: events.submit(session, event_id, now=LATER),
    "publish": lambda session, event_id: events.publish(session, event_id, now=LATER),
    "refuse": lambda session, event_id: events.refuse(session, event_id, "too late", now=LATER),
    "cancel": lambda session, event_id: events.cancel(session, event_id, now=LATER),
    "delete": lambda session, event_id: events.delete(session, event_id, now=LATER),
    "restore": lambda session, event_id: events.restore(session, event_id, now=LATER),
}
# What the event is afterwards; what is not here is refused.
RESULTS = {
    ("draft", "edit"): "draft",
    ("draft", "submit"): "review",
    ("draft", "delete"): None,
    ("review", "publish"): "published",
    ("review", "refuse"): "refused",
    ("review", "delete"): "deleted",
    ("refused", "edit"): "refused",
    ("refused", "submit"): "review",
    ("refused", "delete"): "deleted",
    ("published", "edit"): "published",
    ("published", "cancel"): "cancelled",
    ("published", "delete"): "deleted",
    ("cancelled", "restore"): "published",
    ("cancelled", "delete"): "deleted",
    ("deleted", "restore"): "published",
}


def standing(session, event_id):
    return {row["id"]: row["state"] for row in events.list_events(session, zone=ZONE)}.get(event_id)


def said(session, event_id):
    (row,) = (row for row in events.list_events(session, zone=ZONE) if row["id"] == event_id)
    return row


def named(session, event_id):
    return {name: tuple(said(session, event_id)[name]) for name in FOR}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("before", STANDINGS)
def test_action_leads_to_a_state_or_is_refused(school, before, action):
    event_id = STANDINGS[before](school).id
    assert standing(school, event_id) == before
    if (before, action) in RESULTS:
        ACTIONS[action](school, event_id)
        assert standing(school, event_id) == RESULTS[before, action]
        return
    with pytest.raises(Conflict) as refused:
        ACTIONS[action](school, event_id)
    allowed = ", ".join(events.ALLOWED[events.Standing(before)]) or "nothing"
    assert (
        str(refused.value)
        == f"cannot {action} event {event_id}: its state is {before}, which allows {allowed}"
    )
    assert {name for state, name in RESULTS if state == before} == set(
        events.ALLOWED[events.Standing(before)]
    )
    assert standing(school, event_id) == before


@pytest.mark.parametrize("action", ACTIONS)
def test_event_that_does_not_exist_is_named(school, action):
    event_id = uuid4()
    with pytest.raises(NotFound, match=f"there is no event {event_id}"):
        ACTIONS[action](school, event_id)


def test_create_stores_what_was_said(school):
    event = draft(
        school,
        **FOR | {"users": (OTHER.upper(),)},
        description=" Bring\r\nfood ",
        location="Bern",
        audience="all",
        teaching_affected="partial",
    )
    school.refresh(event)
    assert (event.state, event.author_id, event.created_at, event.addressed) == (
        EventState.DRAFT,
        user(school),
        NOW,
        True,
    )
    assert (event.title, event.description, event.location) == ("Trip", "Bring\nfood", "Bern")
    assert (event.audience, event.teaching_affected) == (Audience.ALL, TeachingAffected.PARTIAL)
    assert (event.starts_at, event.ends_at) == (
        datetime(2026, 12, 1, 7, tzinfo=UTC),
        datetime(2026, 12, 1, 11, tzinfo=UTC),
    )
    assert (event.starts_on, event.ends_on, event.version_of_id) == (None, None, None)
    assert named(school, event.id) == FOR


def user(session, email=AUTHOR):
    return session.scalars(select(User.id).where(User.email == email)).one()


def test_details_may_be_given_typed(school):
    details = events.EventDetails(
        title="Camp", starts=date(2026, 12, 1), ends=date(2026, 12, 3), classes=("27GA",)
    )
    event = events.create(school, details, author=None, zone=ZONE, now=NOW)
    assert (event.starts_on, event.ends_on, event.starts_at, event.author_id) == (
        date(2026, 12, 1),
        date(2026, 12, 3),
        None,
        None,
    )
    assert named(school, event.id)["classes"] == ("27GA",)
    with pytest.raises(ValueError, match="2026-12-01T00:00:00 needs a time zone"):
        events.EventDetails(
            title="Camp",
            starts=datetime(2026, 12, 1),  # noqa: DTZ001 - that is what is wrong
            ends=datetime(2026, 12, 3),  # noqa: DTZ001
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"title": " "}, "title: is empty; it needs a value"),
        ({"title": "a\x00b"}, "title: contains the control character U+0000; remove it"),
        (
            {"class_groups": ("2\x007",)},
            "class_groups: contains the control character U+0000; remove it",
        ),
        (
            {"class_groups": ("27Ga",)},
            (
                "class_groups: '27Ga' is no class group; write the first 3 characters of its"
                " classes, as 27G"
            ),
        ),
        (
            {"audience": "pupils"},
            "audience: must be teachers, class_teachers, students or all, not 'pupils'",
        ),
        (
            {"ends": "2026-12-01"},
            "ends: must be of the same kind as starts: two dates (all day) or two times",
        ),
        (
            {"ends": "2026-12-01T07:59"},
            "ends: is before starts (2026-12-01T07:59+01:00 < 2026-12-01T08:00+01:00)",
        ),
        (
            {"starts": "2027-03-28T02:30"},
            (
                "starts: 2027-03-28T02:30 does not exist, the clocks skip it in Europe/Zurich; "
                "write it with an offset: 2027-03-28T02:30+01:00 or 2027-03-28T02:30+02:00"
            ),
        ),
        ({"titel": "x"}, "titel: extra inputs are not permitted"),
        (
            {"title": "", "audience": "x"},
            (
                "audience: must be teachers, class_teachers, students or all, not 'x'\n"
                "title: is empty; it needs a value"
            ),
        ),
    ],
)
def test_details_that_are_wrong_name_field_and_fix(values, message):
    with pytest.raises(InvalidInput) as refused:
        events.read_details(cells(**values), zone=ZONE)
    assert sorted(str(refused.value).split("\n")) == message.split("\n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": "27Gb"}, "classes: there is no class '27Gb'; did you mean 27Ga, 27GA?"),
        (
            {"departments": "Musik"},
            "departments: there is no department 'Musik'; did you mean Music?",
        ),
        (
            {"departments": "xyz"},
            "departments: there is no department 'xyz'; correct the name, or add it first",
        ),
        # Who mistypes an address is not told whom there is.
        (
            {"users": "ana@school.example"},
            "users: there is no user 'ana@school.example'; correct the name, or add it first",
        ),
    ],
)
def test_unknown_name_is_refused_and_nothing_is_written(school, values, message):
    with pytest.raises(InvalidInput) as refused:
        draft(school, **values)
    assert str(refused.value) == message
    assert school.scalar(select(func.count()).select_from(Event)) == 0


def test_unknown_author_is_refused(school):
    with pytest.raises(InvalidInput, match="author: there is no user"):
        events.create(
            school,
            events.read_details(cells(), zone=ZONE),
            author="x@school.example",
            zone=ZONE,
            now=NOW,
        )


def test_two_equal_times_are_a_deadline(school):
    event = draft(school, ends="2026-12-01T08:00")
    assert event.starts_at == event.ends_at


def test_edit_changes_only_what_is_given(school):
    event = draft(school, **FOR, description="Old", location="Bern", audience="all")
    before = said(school, event.id)
    edit(school, event.id, title="Tour", classes="", description="", users=(AUTHOR,), author=OTHER)
    changed = {
        "title": "Tour",
        "classes": [],
        "description": "",
        "users": [AUTHOR],
        "author": OTHER,
    }
    assert said(school, event.id) == before | changed


def test_edit_turns_times_into_days(school):
    event = draft(school)
    edit(school, event.id, starts=date(2026, 12, 1), ends="2026-12-02")
    assert (event.starts_at, event.ends_at, event.starts_on, event.ends_on) == (
        None,
        None,
        date(2026, 12, 1),
        date(2026, 12, 2),
    )
    with pytest.raises(InvalidInput, match="ends: is before starts"):
        edit(school, event.id, starts="2026-12-03")


def test_edit_of_a_published_event_makes_a_version_and_leaves_the_event(school):
    event = published(school, **FOR)
    before = said(school, event.id)
    version = edit(school, event.id, title="Tour", now=LATER, author=OTHER)
    assert said(school, event.id) == before
    changed = {
        "id": version.id,
        "state": "draft",
        "version_of": event.id,
        "title": "Tour",
        "author": OTHER,
    }
    assert (said(school, version.id), version.created_at) == (before | changed, LATER)
    assert edit(school, version.id, title="Hike").id == version.id


def test_publish_of_a_version_swaps_the_content_and_keeps_the_id(school):
    event = published(school, **FOR)
    old = said(school, event.id)
    version = edit(
        school,
        event.id,
        **FOR_OTHERS,
        title="Tour",
        starts="2026-12-02",
        ends="2026-12-03",
        location="Bern",
        author=OTHER,
    )
    events.submit(school, version.id, now=NOW)
    new = said(school, version.id)
    assert events.publish(school, version.id, now=NOW) is event
    assert said(school, event.id) == new | {
        "id": event.id,
        "state": "published",
        "version_of": None,
    }
    assert said(school, version.id) == old | {
        "id": version.id,
        "state": "past",
        "version_of": event.id,
    }
    assert (named(school, event.id), named(school, version.id)) == (FOR_OTHERS, FOR)
    numbers = [
        school.scalar(select(func.count()).select_from(table))
        for table in (EventClass, EventClassGroup, EventDepartment, EventUser)
    ]
    assert numbers == [3, 2, 2, 2]


def test_publish_of_two_versions_keeps_both_past_ones_and_the_last_counts(school):
    event = published(school, title="0", classes="27Ga")
    versions = [
        edit(school, event.id, title=str(number), location=place).id
        for number, place in ((1, "Bern"), (2, ""))
    ]
    for version in versions:
        events.submit(school, version, now=NOW)
        events.publish(school, version, now=NOW)
    assert (said(school, event.id)["title"], said(school, event.id)["location"]) == ("2", "")
    assert [
        (said(school, version)["state"], said(school, version)["title"]) for version in versions
    ] == [
        ("past", "0"),
        ("past", "1"),
    ]


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_version_of_an_event_that_is_no_more_cannot_be_published(school, end):
    event = published(school)
    version = edit(school, event.id, title="Tour")
    events.submit(school, version.id, now=NOW)
    ACTIONS[end](school, event.id)
    with (
        pytest.raises(Conflict, match=f"cannot edit event {event.id}: its state is"),
        school.begin_nested(),
    ):
        events.publish(school, version.id, now=NOW)
    events.restore(school, event.id, now=NOW)
    assert events.publish(school, version.id, now=NOW).title == "Tour"


def test_refused_event_keeps_the_reason_until_it_is_submitted_again(school):
    event = STANDINGS["review"](school)
    for reason, message in (
        (" ", "is empty; say why, for its author"),
        ("a\x07", "contains the control character"),
    ):
        with pytest.raises(InvalidInput, match=f"reason: {message}"):
            events.refuse(school, event.id, reason, now=NOW)
    events.refuse(school, event.id, " no room ", now=NOW)
    assert edit(school, event.id, title="Tour").refusal == "no room"
    assert events.submit(school, event.id, now=NOW).refusal == ""


def test_restore_undoes_the_deletion_before_the_cancellation(school):
    event = published(school)
    events.cancel(school, event.id, now=NOW)
    assert events.delete(school, event.id, now=LATER) is event
    assert (event.cancelled_at, event.deleted_at) == (NOW, LATER)
    assert (events.restore(school, event.id, now=LATER).cancelled_at, event.deleted_at) == (
        NOW,
        None,
    )
    assert (events.restore(school, event.id, now=LATER).cancelled_at, event.state) == (
        None,
        EventState.PUBLISHED,
    )


def test_delete_of_a_draft_version_removes_it_with_its_links(school):
    event = published(school, **FOR)
    version = edit(school, event.id, title="Tour")
    assert events.delete(school, version.id, now=NOW) is None
    assert school.scalars(select(Event.id)).all() == [event.id]
    assert school.scalars(select(EventClass.event_id)).all() == [event.id]
    assert named(school, event.id) == FOR


def test_event_stays_addressed_when_whom_it_named_is_gone(school):
    event = published(school, classes="28Wb")
    school.execute(delete(SchoolClass).where(SchoolClass.name == "28Wb"))
    version = edit(school, event.id, title="Tour")
    assert (version.addressed, named(school, version.id)["classes"]) == (True, ())
    edit(school, version.id, classes="")
    assert version.addressed is False
    events.submit(school, version.id, now=NOW)
    assert events.publish(school, version.id, now=NOW).addressed is False
    assert edit(school, version.version_of_id, users=OTHER).addressed is True


def test_listed_by_days_and_standing(school):
    days = draft(school, title="days", starts="2026-12-01", ends="2026-12-03")
    night = draft(school, title="night", starts="2026-11-30T22:00", ends="2026-12-01T00:00")
    morning = published(school, title="morning", starts="2026-12-03T00:00", ends="2026-12-03T08:00")

    def titles(**filters):
        return [row["title"] for row in events.list_events(school, zone=ZONE, **filters)]

    assert titles() == ["night", "days", "morning"]
    assert titles(standing=events.Standing.DRAFT) == ["night", "days"]
    assert titles(last=date(2026, 11, 30)) == ["night"]
    assert titles(first=date(2026, 12, 1), last=date(2026, 12, 2)) == ["night", "days"]
    assert titles(first=date(2026, 12, 2)) == ["days", "morning"]
    assert titles(first=date(2026, 12, 4)) == []
    assert len({days.id, night.id, morning.id}) == 3


# --- at the same time, on Postgres ---


@pytest.fixture
def committed(postgres_url):
    """Yield a maker of sessions that commit, and remove what they wrote.

    Only on Postgres: SQLite has one writer at a time, so it has no races.
    """
    engine = make_engine(postgres_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        populate(session)
    yield lambda: Session(engine, expire_on_commit=False)
    with Session(engine) as session, session.begin():
        for model in (Job, Event, User, SchoolClass, Department):
            session.execute(delete(model))
    engine.dispose()


def until_blocked(session, thread):
    """Return when another transaction waits for a lock that this one holds."""
    blocked = text(
        "select count(*) from pg_locks"
        " where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))"
    )
    while not session.scalar(blocked):
        assert thread.is_alive()


def beside(committed, change, results):
    """Return a thread that makes a change in its own transaction, and notes what came of it."""

    def run():
        try:
            with committed() as session, session.begin():
                results.append(change(session))
        except Conflict as refused:
            results.append(str(refused))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_two_publishes_of_one_event_wait_for_each_other(committed):
    with committed() as session, session.begin():
        event = published(session, title="0", classes="27Ga")
        versions = [edit(session, event.id, title=name, classes=name) for name in ("27GA", "28Wb")]
        for version in versions:
            events.submit(session, version.id, now=NOW)
    one, two = (version.id for version in versions)
    results = []
    with committed() as session, session.begin():
        events.publish(session, one, now=NOW)
        thread = beside(committed, lambda other: events.publish(other, two, now=NOW).id, results)
        until_blocked(session, thread)
    thread.join(100)
    with committed() as session:
        assert results == [event.id]
        found = {
            key: (
                said(session, key)["state"],
                said(session, key)["title"],
                said(session, key)["classes"],
            )
            for key in (event.id, one, two)
        }
    assert found == {
        event.id: ("published", "28Wb", ["28Wb"]),
        one: ("past", "0", ["27Ga"]),
        two: ("past", "27GA", ["27GA"]),
    }


def test_second_publish_of_the_same_version_is_refused(committed):
    with committed() as session, session.begin():
        event = published(session, title="0")
        version = edit(session, event.id, title="1")
        events.submit(session, version.id, now=NOW)
    results = []
    with committed() as session, session.begin():
        events.publish(session, version.id, now=NOW)
        thread = beside(
            committed, lambda other: events.publish(other, version.id, now=NOW), results
        )
        until_blocked(session, thread)
    thread.join(100)
    assert results == [
        f"cannot publish event {version.id}: its state is past, which allows nothing"
    ]
    with committed() as session:
        assert said(session, event.id)["title"] == "1"


def test_two_edits_of_one_draft_both_count(committed):
    with committed() as session, session.begin():
        event = draft(session)
    results = []
    with committed() as session, session.begin():
        edit(session, event.id, title="Tour", classes="27Ga")
        thread = beside(committed, lambda other: edit(other, event.id, location="Bern").id, results)
        until_blocked(session, thread)
    thread.join(100)
    with committed() as session:
        row = said(session, event.id)
    assert (results, row["title"], row["location"], row["classes"]) == (
        [event.id],
        "Tour",
        "Bern",
        ["27Ga"],
    )
