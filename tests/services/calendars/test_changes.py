"""From a change in the database to the right files: every change is made by SQL alone."""

import re
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from nightshift.database import read_clock
from nightshift.jobs.models import Job, JobState
from nightshift.testing import run_due
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from project.calendars.component import enqueue_refresh
from services.calendars import changes, feeds, revisions, serving, sync
from services.calendars.folders import FolderStore
from services.calendars.jobs import BuildFeeds, RefreshFeeds
from services.calendars.models import Feed, FeedKind
from services.calendars.sync import FEEDS_A_CHUNK
from services.school.models import Department, Event, EventUser, SchoolClass, User
from tests.services.calendars.conftest import LONG_AGO, Calendars, InterruptedRun


def sql(calendars: Calendars, *statements: str) -> None:
    """Change the school as psql would: no service, no ORM."""
    calendars.change(*map(text, statements))


def named(calendars: Calendars, files: set[str]) -> set[str]:
    """Call files by their owners."""
    with calendars.runtime.read_only() as session:
        names = {
            "classes": dict(session.execute(select(SchoolClass.id, SchoolClass.name)).all()),
            "departments": dict(session.execute(select(Department.id, Department.name)).all()),
            "users": dict(session.execute(select(User.id, User.first_name)).all()),
        }
    paths = [name.removesuffix(".ics").split("/") for name in files]
    return {names[folder].get(int(owner), f"{folder} no more") for folder, owner in paths}


def class_(name: str) -> str:
    return f"(SELECT id FROM school_class WHERE name = '{name}')"


def user(name: str) -> str:
    return f"(SELECT id FROM user_account WHERE first_name = '{name}')"


def event(title: str) -> str:
    return f"(SELECT id FROM event WHERE title LIKE '{title}%' AND version_of_id IS NULL)"


MATHS_ID = event("Prüfung Mathematik")
MOVED = f"UPDATE event_class SET class_id = {class_('28Ba')} WHERE event_id = {MATHS_ID}"
MATHS_EDITED = f"UPDATE event SET title = 'Neu' WHERE id = {event('Prüfung Mathematik')}"
# In the night of Saturday, in which an event for the class is.
ONCE = (
    "INSERT INTO lesson_change (lesson_id, taken_on, starts, ends, substituted)"
    " SELECT id, '2026-10-24', '21:00:00.000000', '23:00:00.000000', {} FROM lesson"
    " WHERE key = 'H26-009'"
)
GA = {"27Ga", "Gymnasium", "Anna", "Beat", "Cem", "Peter"}
MATHS = GA | {"Jürg"}
BILINGUE = {"28Ba", "Filière bilingue", "Léa", "Maëlle", "Noé", "Peter", "François"}
WMS = {"27Wa", "28Wb", "Wirtschaftsmittelschule", "Hanna", "Ivo", "Jana"}

CHANGES = {
    "event edited": ([MATHS_EDITED], MATHS),
    "event edited as it was": (
        [f"UPDATE event SET title = title WHERE id = {event('Prüfung Mathematik')}"],
        set(),
    ),
    "event's author": ([f"UPDATE event SET author_id = {user('Käthi')}"], set()),
    "draft edited": (["UPDATE event SET title = 'Neu' WHERE state = 'draft'"], set()),
    "event deleted": ([f"DELETE FROM event WHERE id = {event('Prüfung Mathematik')}"], MATHS),
    "event moved to another class": (
        [MOVED],
        MATHS | BILINGUE,
    ),
    "event named a class more": (
        [f"INSERT INTO event_class (event_id, class_id) VALUES ({MATHS_ID}, {class_('28Ba')})"],
        MATHS | BILINGUE,
    ),
    "event's only class": (
        [f"DELETE FROM event_class WHERE event_id = {event('Prüfung Mathematik')}"],
        MATHS,
    ),
    "event's group": (
        [f"DELETE FROM event_class_group WHERE event_id = {event('Theater')}"],
        WMS | {"Renate", "Giulia"},
    ),
    "event's department": (
        [f"DELETE FROM event_department WHERE event_id = {event('Matinée')}"],
        {"Bibliothek & Kultur", "Peter", "Anna"},
    ),
    "event's person": (
        [
            (
                f"UPDATE event_user SET user_id = {user('Anna')}"
                f" WHERE event_id = {event('Gespräch')} AND user_id = {user('Noé')}"
            )
        ],
        {"Anna", "Noé"},
    ),
    "class renamed": (["UPDATE school_class SET name = '27Gx' WHERE name = '27Ga'"], None),
    "class's year": (["UPDATE school_class SET graduation_year = 2030"], set()),
    "class founded": (
        ["INSERT INTO school_class (name, display_name) VALUES ('27Wz', '')"],
        {"27Wz"},
    ),
    "class deleted": (["DELETE FROM school_class WHERE name = '28Ba'"], None),
    "class's department": (
        ["UPDATE school_class SET department_id = NULL WHERE name = '28Ba'"],
        None,
    ),
    "department renamed": (
        ["UPDATE department SET name = 'Mediothek' WHERE name LIKE 'Bib%'"],
        {
            "Mediothek",
            "Peter",
            "Anna",
            "27GA",
            "Gymnasium",
            "Daria",
            "Emil",
            "Käthi",
            "Jürg",
            "Sören",
            "Léa",
        },
    ),
    "department's colour": (["UPDATE department SET colour = '#000000'"], set()),
    "department deleted": (["DELETE FROM department WHERE name LIKE 'Fil%'"], None),
    "department founded": (
        [
            (
                "INSERT INTO department (name, letter, description, colour, locale)"
                " VALUES ('Sport', '', '', '', 'de')"
            )
        ],
        {"Sport"},
    ),
    "user changes class": (
        [f"UPDATE user_account SET class_id = {class_('27Ga')} WHERE first_name = 'Noé'"],
        {"Noé"},
    ),
    "user's flags": (
        ["UPDATE user_account SET mail_digest = NOT mail_digest, email = 'x' || email"],
        set(),
    ),
    "user deleted": (["DELETE FROM user_account WHERE first_name = 'Jürg'"], {"users no more"}),
    "user joins": (["UPDATE user_account SET untis_id = 'S9' WHERE first_name = 'Kim'"], {"Kim"}),
    "user leaves": (["UPDATE user_account SET untis_id = NULL WHERE first_name = 'Noé'"], {"Noé"}),
    "lesson moved": (
        ["UPDATE lesson SET starts = '21:00', ends = '23:00' WHERE key = 'H26-009'"],
        {"Sören", "Hélène"},
    ),
    "lesson's room": (["UPDATE lesson SET room = 'x', subject = 'y'"], set()),
    "lesson deleted": (["DELETE FROM lesson WHERE key IN ('H26-001', 'H26-002')"], {"Jürg"}),
    "lesson's class": (
        [
            (
                "DELETE FROM lesson_class"
                " WHERE lesson_id IN (SELECT id FROM lesson WHERE key < 'H26-003')"
            )
        ],
        None,
    ),
    "lesson's teacher": (
        [
            (
                f"UPDATE lesson_teacher SET user_id = {user('Giulia')}"
                " WHERE lesson_id IN (SELECT id FROM lesson WHERE key = 'H26-001')"
            )
        ],
        {"Giulia"},
    ),
    "lesson at another time once": ([ONCE.format("false")], {"Sören", "Hélène"}),
    "lesson by a substitute once": (
        [
            ONCE.format("true"),
            (
                "INSERT INTO lesson_change_teacher (change_id, user_id)"
                f" SELECT id, {user('Giulia')} FROM lesson_change WHERE taken_on = '2026-10-24'"
            ),
        ],
        {"Giulia"},
    ),
    "holiday": (
        [
            (
                "INSERT INTO holiday (key, name, starts_on, ends_on)"
                " VALUES ('x', 'Frei', '2026-08-01', '2027-01-31')"
            )
        ],
        {"Sören"},
    ),
    "semester": (["UPDATE semester SET starts_on = '2026-12-15' WHERE name = 'Herbst 2026'"], None),
    "semester deleted": (["DELETE FROM semester WHERE name = 'Herbst 2026'"], None),
    "subscription": (
        [f"INSERT INTO subscription (user_id, follows_me) VALUES ({user('Kim')}, true)"],
        {"Kim"},
    ),
    "subscription changed": (
        [f"UPDATE subscription SET follows_me = false WHERE user_id = {user('Anna')}"],
        {"Anna"},
    ),
    "subscription deleted": (
        [f"DELETE FROM subscription WHERE user_id = {user('Peter')}"],
        {"Peter"},
    ),
    "subscribed department": (
        [f"DELETE FROM subscribed_department WHERE user_id = {user('Peter')}"],
        {"Peter"},
    ),
    "subscribed class": (
        [f"UPDATE subscribed_class SET class_id = {class_('28Ga')} WHERE user_id = {user('Léa')}"],
        {"Léa"},
    ),
    "ignored event": ([f"DELETE FROM ignored_event WHERE user_id = {user('Léa')}"], {"Léa"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_writes_exactly_the_feeds_that_show_it(fresh: Calendars, change: str) -> None:
    statements, expected = CHANGES[change]
    before = fresh.files()
    sql(fresh, *statements)

    written = fresh.refresh()

    after = fresh.files()
    assert written == {name for name in before | after if before.get(name) != after.get(name)}
    if expected is None:
        assert written
    else:
        assert named(fresh, written) == expected
    assert fresh.is_right()


def test_event_for_the_whole_school_is_in_every_feed_and_gone_when_it_is_addressed(
    fresh: Calendars,
) -> None:
    all_files = set(fresh.files())
    sql(fresh, f"UPDATE event SET title = 'Neu' WHERE id = {event('Eröffnung')}")
    assert fresh.refresh() == all_files

    sql(
        fresh,
        f"INSERT INTO event_class (event_id, class_id) VALUES ({event('Neu')}, {class_('28Ba')})",
    )

    assert fresh.refresh() == all_files
    assert fresh.is_right()


def new_event(calendars: Calendars, title: str) -> str:
    new = uuid4()
    if calendars.runtime.engine.dialect.name == "sqlite":
        new = new.hex
    return (
        "INSERT INTO event (id, state, title, description, location, starts_on, ends_on, audience,"
        f" teaching_affected, created_at) SELECT '{new}', 'published', '{title}', '', '',"
        " '2026-12-24', '2026-12-24', 'students', 'no', created_at FROM event LIMIT 1"
    )


def test_event_of_another_program_is_for_those_whom_it_names(fresh: Calendars) -> None:
    sql(
        fresh,
        new_event(fresh, "Neu"),
        f"INSERT INTO event_class (event_id, class_id) VALUES ({event('Neu')}, {class_('27Ga')})",
    )
    fresh.start_refresh()

    [job] = run_due(fresh.app)

    # Cem and the others of the class, its teachers and department, and the subscribers of one of
    # them: not the whole school.
    assert job.result["feeds"] < 16
    assert job.result["built"] == 7
    with fresh.runtime.read_only() as session:
        assert session.execute(select(Event.addressed).where(Event.title == "Neu")).scalar_one()
    sql(fresh, "DELETE FROM event_class WHERE class_id = " + class_("27Ga"))
    fresh.refresh()
    assert not [name for name, content in fresh.files().items() if b"SUMMARY:Neu" in content]
    assert fresh.is_right()


def test_truncated_table_is_noticed(fresh: Calendars) -> None:
    if fresh.runtime.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    sql(fresh, "TRUNCATE event_class")

    assert fresh.refresh()
    assert fresh.is_right()


def test_bad_event_spoils_only_itself(fresh: Calendars) -> None:
    sql(
        fresh,
        f"UPDATE event SET ends_on = '2000-01-01' WHERE id = {event('Studienreise')}",
        f"UPDATE event SET title = 'Neu' WHERE id = {event('Prüfung Mathematik')}",
    )

    fresh.refresh()

    told = [
        (b"Studienreise" in content, b"SUMMARY:Neu" in content)
        for name, content in fresh.files().items()
        if "classes/" in name
    ]
    assert (True in [bad for bad, _ in told], [new for _, new in told].count(True)) == (False, 1)
    assert fresh.is_right()


def test_feed_that_cannot_be_written_keeps_its_file_and_says_why(fresh: Calendars) -> None:
    [path] = [fresh.store.root / name for name in fresh.files() if named(fresh, {name}) == {"Anna"}]
    before = path.read_bytes()
    path.unlink()
    path.mkdir()
    sql(fresh, MATHS_EDITED)
    fresh.start_refresh()

    [job] = run_due(fresh.app)

    path.rmdir()
    path.write_bytes(before)
    assert (job.state, job.result["built"], job.result["failed"]) == (
        JobState.SUCCEEDED,
        len(MATHS) - 1,
        1,
    )
    assert fresh.sync()["built"] == 1


def test_many_feeds_are_left_to_jobs_of_their_own(fresh: Calendars) -> None:
    with fresh.runtime.unit_of_work() as session:
        row = {"last_name": "X", "locale": "de", "role": "student", "created_at": LONG_AGO}
        people = [
            {"email": f"{n}@x.example", "first_name": str(n), "untis_id": f"X{n}", **row}
            for n in range(FEEDS_A_CHUNK)
        ]
        session.execute(insert(User), people)
    run_id = fresh.start_refresh()

    kinds = [job.kind for job in run_due(fresh.app)]

    assert kinds == [RefreshFeeds.policy.kind]
    assert fresh.job(run_id).result["built"] == FEEDS_A_CHUNK
    sql(fresh, f"UPDATE event SET title = 'Neu' WHERE id = {event('Eröffnung')}")
    fresh.start_refresh()
    assert [job.kind for job in run_due(fresh.app)] == [
        RefreshFeeds.policy.kind,
        *[BuildFeeds.policy.kind] * 2,
    ]
    assert fresh.is_right()


# --- who starts it ---


def waiting(calendars: Calendars) -> list[datetime]:
    """Return when each refresh is due."""
    with calendars.runtime.read_only() as session:
        due = select(Job.run_at).where(Job.kind == RefreshFeeds.policy.kind)
        return list(session.scalars(due))


def clock(calendars: Calendars) -> datetime:
    """Return the time by the database's clock, by which a delay counts."""
    with calendars.runtime.read_only() as session:
        return read_clock(session)


def test_keepers_start_one_refresh_when_something_changed(fresh: Calendars) -> None:
    enqueue_refresh(fresh.runtime)
    assert waiting(fresh) == []
    sql(fresh, MATHS_EDITED)

    before = clock(fresh)
    for _ in range(4):
        enqueue_refresh(fresh.runtime)
    after = clock(fresh)

    [due] = waiting(fresh)
    assert before <= due - changes.COLLECT_FOR <= after


# --- what happens meanwhile ---


def refresh_with(calendars: Calendars, happens: dict[int, Callable[[], object]]) -> None:
    changes.refresh(
        InterruptedRun(calendars, calendars.start_refresh(), happens),
        calendars.store,
        calendars.rules,
    )


@pytest.mark.parametrize("transaction", [1, 2])
def test_change_during_a_refresh_is_left_to_the_next(fresh: Calendars, transaction: int) -> None:
    sql(fresh, MATHS_EDITED)

    refresh_with(
        fresh,
        {
            transaction: lambda: sql(
                fresh, MOVED, "UPDATE school_class SET name = '28Bx' WHERE name = '28Ba'"
            )
        },
    )

    assert fresh.count_notes() > 0
    fresh.refresh()
    assert fresh.is_right()


@pytest.mark.parametrize("transaction", [1, 2])
def test_two_refreshes_at_once_do_no_harm(fresh: Calendars, transaction: int) -> None:
    sql(fresh, MATHS_EDITED)

    def another() -> None:
        sql(fresh, MOVED)
        # As if the first had been taken for dead: by its unique key there is only one.
        fresh.change(update(Job).where(Job.state == JobState.RUNNING).values(unique_key=None))
        fresh.refresh()

    refresh_with(fresh, {transaction: another})

    assert fresh.count_notes() == 0
    assert fresh.is_right()


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def die(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("transaction", [1, 2, "files"])
def test_killed_refresh_loses_nothing(fresh: Calendars, transaction: int | str) -> None:
    sql(fresh, MATHS_EDITED, MOVED)
    rows = fresh.count_notes()

    class Dying(FolderStore):
        def write(self, *args: Any) -> str:
            super().write(*args)
            raise Killed

    store = Dying(fresh.store.root) if transaction == "files" else fresh.store
    run = InterruptedRun(
        fresh, fresh.start_refresh(), {} if transaction == "files" else {int(transaction): die}
    )
    with pytest.raises(Killed):
        changes.refresh(run, store, fresh.rules)

    assert fresh.count_notes() == rows
    fresh.change(Job.__table__.delete())
    fresh.refresh()
    assert fresh.is_right()


@pytest.mark.parametrize("transaction", [1, 2, 3])
def test_change_and_its_refresh_beside_a_sync(fresh: Calendars, transaction: int) -> None:
    """Also one that is taken back: the sync has read what nobody must see any more."""
    original = (
        "UPDATE event SET title = 'Prüfung Mathematik: Vektoren, Matrizen' WHERE title = 'Neu'"
    )
    sql(fresh, MATHS_EDITED)

    def back() -> None:
        sql(fresh, original)
        fresh.refresh()

    run_id = fresh.enqueue()
    sync.plan(InterruptedRun(fresh, run_id, {transaction: back}), fresh.store, fresh.rules)
    fresh.run_all(run_id)

    assert not [name for name, content in fresh.files().items() if b"SUMMARY:Neu" in content]
    assert fresh.is_right()


# --- rows that are written again ---

NEW_EVENT = (
    "INSERT INTO event (id, state, title, description, location, starts_on, ends_on, audience,"
    " teaching_affected, addressed, refusal, created_at) VALUES ('{id}', '{state}', 'Neu', '', '',"
    " '2026-12-01', '2026-12-01', 'students', 'no', false, '',"
    " '2026-11-21 12:00:00.000000')"
)


def test_event_that_is_written_anew_as_a_draft_leaves_its_feeds(fresh: Calendars) -> None:
    with fresh.runtime.read_only() as session:
        event_id = session.execute(text(event("Prüfung Mathematik").strip("()"))).scalar_one()
    sql(
        fresh,
        f"DELETE FROM event WHERE id = '{event_id}'",
        NEW_EVENT.format(id=event_id, state="draft"),
    )
    assert fresh.refresh()
    assert fresh.is_right()


def test_event_for_all_that_is_written_anew_for_a_class_leaves_the_others(fresh: Calendars) -> None:
    event_id = uuid4().hex if fresh.runtime.engine.dialect.name == "sqlite" else str(uuid4())
    sql(fresh, NEW_EVENT.format(id=event_id, state="published"))
    for_all = fresh.refresh()
    again = NEW_EVENT.format(id=event_id, state="published")
    link = f"INSERT INTO event_class (event_id, class_id) VALUES ('{event_id}', {class_('28Ba')})"
    sql(fresh, f"DELETE FROM event WHERE id = '{event_id}'", again, link)
    assert set(fresh.refresh()) == set(for_all)
    assert fresh.is_right()


def test_user_who_is_given_the_id_of_another_has_an_address_of_their_own(fresh: Calendars) -> None:
    with fresh.runtime.read_only() as session:
        user_id = session.execute(
            text("SELECT id FROM user_account WHERE first_name = 'Anna'")
        ).scalar_one()
        token = select(Feed.token).where(Feed.kind == FeedKind.USER, Feed.owner_id == user_id)
        before = session.execute(token).scalar_one()
    sql(
        fresh,
        f"DELETE FROM user_account WHERE id = {user_id}",
        "INSERT INTO user_account (id, email, first_name, last_name, locale, role, untis_id,"
        f" created_at) VALUES ({user_id}, 'bob@school.example', 'Bob', 'B', 'de', 'teacher', 'U9',"
        " '2026-11-21 12:00:00.000000')",
    )
    fresh.refresh()
    with fresh.runtime.read_only() as session:
        after = session.execute(token).scalar_one()
    assert serving.TOKEN.fullmatch(after)
    assert after != before
    assert fresh.is_right()


def test_right_to_a_feed_that_comes_back_while_the_feed_is_removed_makes_a_new_one(
    fresh: Calendars,
) -> None:
    if fresh.runtime.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    subscribed = "EXISTS (SELECT 1 FROM subscription WHERE user_id = user_account.id)"
    unsubscribed = f"untis_id IS NOT NULL AND NOT {subscribed}"
    with fresh.runtime.read_only() as session:
        query = f"SELECT id, untis_id FROM user_account WHERE {unsubscribed} LIMIT 1"
        user_id, untis_id = session.execute(text(query)).one()
    sql(fresh, f"UPDATE user_account SET untis_id = NULL WHERE id = {user_id}")
    removed, go = threading.Event(), threading.Event()

    def finish() -> None:
        with fresh.runtime.unit_of_work() as session:
            feeds.remove_orphans(session, fresh.store)
            removed.set()
            go.wait(100)

    sync = threading.Thread(target=finish)
    sync.start()
    removed.wait(100)
    sql(fresh, f"UPDATE user_account SET untis_id = '{untis_id}' WHERE id = {user_id}")
    threading.Timer(1, go.set).start()
    fresh.refresh()
    sync.join()
    assert fresh.is_right()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET ends_at = 'infinity' WHERE ends_at IS NOT NULL",
        "UPDATE semester SET ends_on = 'infinity'",
        "UPDATE lesson SET ends = '24:00'",
    ],
)
def test_time_that_python_cannot_read_is_refused_where_the_database_can_say_so(
    fresh: Calendars, statement: str
) -> None:
    if fresh.runtime.engine.dialect.name == "sqlite":
        pytest.skip("SQLite stores any text")
    with pytest.raises(IntegrityError, match="readable_times"):
        sql(fresh, statement)


@pytest.mark.parametrize("by_sync", [False, True])
def test_file_whose_feed_another_program_has_deleted_is_removed(
    fresh: Calendars, by_sync: bool
) -> None:
    with fresh.runtime.read_only() as session:
        class_id = session.execute(text(class_("28Ba").strip("()"))).scalar_one()
    sql(
        fresh,
        f"DELETE FROM feed WHERE kind = 'class' AND owner_id = {class_id}",
        f"DELETE FROM school_class WHERE id = {class_id}",
    )

    if by_sync:
        fresh.sync()
    else:
        fresh.refresh()

    assert not fresh.store.path(FeedKind.CLASS, class_id).exists()
    assert fresh.is_right()


def test_feed_whose_row_another_program_has_deleted_is_made_again(fresh: Calendars) -> None:
    before = fresh.files()
    sql(fresh, "DELETE FROM feed WHERE kind = 'department'")

    fresh.refresh()

    assert fresh.files() == before
    assert fresh.is_right()


def test_invitation_refreshes_the_feeds_of_the_event(fresh: Calendars) -> None:
    """Taking a person off raises the SEQUENCE, in the mail and in every feed."""
    rules = fresh.rules
    with fresh.runtime.unit_of_work() as session:
        event_id = session.execute(text(event("Gespräch").strip("()"))).scalar_one()
        event_id = event_id if isinstance(event_id, UUID) else UUID(event_id)
        one = select(User.id).where(User.first_name == "Noé").scalar_subquery()
        session.execute(delete(EventUser).where(EventUser.user_id == one))
        now = fresh.runtime.now()
        vevents = revisions.revise(
            session, event_id, domain=rules.domain, zone=rules.zone, raised=True, now=now
        )

    assert fresh.refresh()

    shown = re.compile(rf"SEQUENCE:(\d+)\r\nUID:{event_id}@".encode())
    sequences = {found for content in fresh.files().values() for found in shown.findall(content)}
    assert sequences == {b"1"}
    assert "SEQUENCE:1\r\n" in vevents["de"]
    assert fresh.is_right()
