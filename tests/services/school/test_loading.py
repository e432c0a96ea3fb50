"""A school from CSV files into the database: what is written, kept and refused."""

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from services.school.loading import InvalidRows
from services.school.models import (
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    EventState,
    EventUser,
    IgnoredEvent,
    Lesson,
    LessonClass,
    LessonTeacher,
    Role,
    SchoolClass,
    Semester,
    SubscribedClass,
    SubscribedDepartment,
    Subscription,
    User,
)
from services.school.rows import make_event_id
from services.school.sheets import Problem
from tests.services.school.builders import (
    EXAMPLE,
    NOW,
    SCHOOL,
    bring,
    contents,
    pairs,
    problems,
    refusals,
    write,
)


def test_load_gives_the_number_of_rows_of_each_file(session: Session, folder: Path) -> None:
    counts = bring(session, folder)

    assert counts == {
        "departments": (2, 2),
        "classes": (3, 3),
        "users": (3, 3),
        "semesters": (1, 1),
        "lessons": (1, 1),
        "events": (3, 3),
        "subscriptions": (1, 1),
    }


def test_load_stores_what_the_cells_say(session: Session, folder: Path) -> None:
    bring(session, folder)

    teacher = session.scalars(select(User).where(User.untis_id == "MÜL")).one()
    assert (teacher.email, teacher.first_name, teacher.role) == (
        "juerg@schule.example",
        "Jürg",
        Role.TEACHER,
    )
    assert (teacher.mail_events, teacher.mail_digest, teacher.created_at) == (True, False, NOW)
    semester = session.scalars(select(Semester)).one()
    assert (semester.name, semester.starts_on, semester.ends_on) == (
        "Herbst",
        date(2026, 8, 1),
        date(2027, 1, 31),
    )
    lesson = session.scalars(select(Lesson)).one()
    assert (lesson.key, lesson.semester_id, lesson.weekday) == ("L1", semester.id, 1)
    assert (lesson.starts, lesson.ends, lesson.room, lesson.is_class_teachers) == (
        time(7, 45),
        time(9, 20),
        "",
        True,
    )
    sport = session.get_one(Event, make_event_id("sport"))
    assert (sport.author_id, sport.state, sport.version_of_id) == (
        teacher.id,
        EventState.PUBLISHED,
        None,
    )
    assert (sport.starts_on, sport.ends_on, sport.starts_at, sport.ends_at) == (
        date(2026, 12, 3),
        date(2026, 12, 3),
        None,
        None,
    )
    assert sport.cancelled_at == datetime(2026, 11, 20, 15, 45, tzinfo=UTC)
    assert session.get_one(Event, make_event_id("sport-neu")).version_of_id == sport.id
    deadline = session.get_one(Event, UUID("3f0c2a54-8d1b-4e0e-9a6f-0b6a1d2c7e55"))
    assert (deadline.starts_on, deadline.starts_at) == (
        None,
        datetime(2026, 11, 30, 22, 59, tzinfo=UTC),
    )
    assert deadline.ends_at == deadline.starts_at


def test_load_links_what_the_list_cells_name(session: Session, folder: Path) -> None:
    bring(session, folder)

    classes = dict(session.execute(select(SchoolClass.name, SchoolClass.id)).all())
    users = dict(session.execute(select(User.email, User.id)).all())
    departments = dict(session.execute(select(Department.name, Department.id)).all())
    lesson, sport, anna = (
        session.scalars(select(Lesson.id)).one(),
        make_event_id("sport"),
        users["anna@schule.example"],
    )
    assert pairs(session, LessonClass.lesson_id, LessonClass.class_id) == {
        (lesson, classes["27Ga"]),
        (lesson, classes["27GA"]),
    }
    assert pairs(session, LessonTeacher.lesson_id, LessonTeacher.user_id) == {
        (lesson, users["juerg@schule.example"])
    }
    assert pairs(session, EventClass.event_id, EventClass.class_id) == {
        (sport, classes["27Ga"]),
        (sport, classes["27GA"]),
    }
    assert pairs(session, EventClassGroup.event_id, EventClassGroup.class_group) == {(sport, "28W")}
    assert pairs(session, EventDepartment.event_id, EventDepartment.department_id) == {
        (sport, departments["Bibliothek & Kultur"])
    }
    assert pairs(session, EventUser.event_id, EventUser.user_id) == {
        (sport, users["beat@schule.example"])
    }
    assert pairs(session, Subscription.user_id, Subscription.follows_me) == {(anna, False)}
    subscribed = pairs(session, SubscribedClass.user_id, SubscribedClass.class_id)
    assert subscribed == {(anna, classes["28Wb"]), (anna, classes["27GA"])}
    assert pairs(session, SubscribedDepartment.user_id, SubscribedDepartment.department_id) == {
        (anna, departments["Gymnasium"])
    }
    assert pairs(session, IgnoredEvent.user_id, IgnoredEvent.event_id) == {(anna, sport)}


def test_class_names_that_differ_by_case_are_two_classes(session: Session, folder: Path) -> None:
    bring(session, folder)

    names = select(User.email, SchoolClass.name).join(SchoolClass, User.class_id == SchoolClass.id)
    assert set(session.execute(names)) == {
        ("anna@schule.example", "27Ga"),
        ("beat@schule.example", "27GA"),
    }


def test_second_load_writes_nothing(session: Session, folder: Path) -> None:
    bring(session, folder)
    before, changes = contents(session), written(session)

    bring(session, folder, now=NOW + timedelta(days=1))

    assert contents(session) == before
    assert written(session) == changes


def written(session: Session) -> int:
    """Return how many rows this connection has written, by SQLite's own count.

    On Postgres the rows' places in `contents` show it.
    """
    if session.get_bind().dialect.name == "postgresql":
        return 0
    connection = session.connection().connection.driver_connection
    assert connection is not None
    return int(connection.total_changes)


def test_changed_row_is_updated_in_place_and_the_only_one_written(
    session: Session, folder: Path
) -> None:
    bring(session, folder)
    before, ids, changes = (
        contents(session),
        set(session.scalars(select(User.id))),
        written(session),
    )
    write(folder, {"users.csv": SCHOOL["users.csv"].replace("Aebischer", "Äbischer")})

    bring(session, folder, now=NOW + timedelta(days=1))

    after = contents(session)
    assert {name for name in after if after[name] != before[name]} == {"user_account"}
    assert len(set(after["user_account"]) - set(before["user_account"])) == 1
    assert set(session.scalars(select(User.id))) == ids
    assert session.scalars(select(User.last_name).where(User.untis_id == "S1")).one() == "Äbischer"
    assert set(session.scalars(select(User.created_at))) == {NOW}
    if session.get_bind().dialect.name == "sqlite":
        # The row, and its notes in the change log, before and after.
        assert written(session) - changes == 3


def test_unchanged_load_takes_no_ids(session: Session, folder: Path) -> None:
    for _ in range(2):
        bring(session, folder)
    last = session.scalars(select(func.max(User.id))).one()

    new = User(
        email="new@schule.example",
        first_name="N",
        last_name="N",
        role=Role.TEACHER,
        created_at=NOW,
    )
    session.add(new)
    session.flush()

    assert new.id == last + 1


def test_links_that_a_row_no_longer_names_are_deleted_and_the_others_kept(
    session: Session, folder: Path
) -> None:
    bring(session, folder)
    before = contents(session)
    write(folder, {"lessons.csv": SCHOOL["lessons.csv"].replace("27Ga; 27GA", "27GA;28Wb")})

    counts = bring(session, folder)

    after = contents(session)
    assert set(session.scalars(select(SchoolClass.name).join(LessonClass))) == {"27GA", "28Wb"}
    assert {name for name in after if after[name] != before[name]} == {"lesson_class"}
    assert counts["lessons"] == (1, 1)
    assert len(set(after["lesson_class"]) & set(before["lesson_class"])) == 1


def test_rows_and_columns_that_are_not_in_the_files_stay(
    session: Session, folder: Path, tmp_path: Path
) -> None:
    bring(session, folder)
    later = write(
        tmp_path / "later",
        {
            "users.csv": (
                "email,first_name,last_name,role\nANNA@schule.example,Änni,Aebischer,student\n"
            )
        },
    )

    counts = bring(session, later)

    assert counts == {"users": (1, 1)}
    assert session.scalar(select(func.count()).select_from(User)) == 3
    anna = session.scalars(select(User).where(User.email == "anna@schule.example")).one()
    assert (anna.first_name, anna.untis_id) == ("Änni", "S1")
    assert anna.class_id is not None


def test_empty_cell_means_the_default(session: Session, folder: Path) -> None:
    bring(session, folder)
    write(folder, {"users.csv": SCHOOL["users.csv"].replace("27Ga,S1", ",")})

    bring(session, folder)

    anna = session.scalars(select(User).where(User.email == "anna@schule.example")).one()
    assert (anna.class_id, anna.untis_id) == (None, None)


def test_names_may_refer_to_rows_in_the_database(
    session: Session, folder: Path, tmp_path: Path
) -> None:
    bring(session, folder)
    later = write(
        tmp_path / "later",
        {
            "events.csv": (
                "id,state,title,starts,ends,classes,version_of\n"
                "x,draft,X,2026-12-01,2026-12-01,27GA,sport\n"
            )
        },
    )

    bring(session, later)

    assert session.get_one(Event, make_event_id("x")).version_of_id == make_event_id("sport")
    names = (
        select(SchoolClass.name).join(EventClass).where(EventClass.event_id == make_event_id("x"))
    )
    assert session.scalars(names).all() == ["27GA"]


def test_swapped_untis_ids_are_loaded(session: Session, folder: Path) -> None:
    bring(session, folder)
    swapped = SCHOOL["users.csv"].replace("MÜL", "?").replace("S1", "MÜL").replace("?", "S1")
    write(folder, {"users.csv": swapped})

    bring(session, folder)

    assert pairs(session, User.email, User.untis_id) == {
        ("juerg@schule.example", "S1"),
        ("anna@schule.example", "MÜL"),
        ("beat@schule.example", None),
    }


def test_untis_id_of_somebody_outside_the_file_is_refused(
    session: Session, folder: Path, tmp_path: Path
) -> None:
    bring(session, folder)
    later = write(
        tmp_path / "later",
        {"users.csv": "email,first_name,last_name,role,untis_id\nneu@x.example,N,N,teacher,MÜL\n"},
    )

    found = problems(session, later)

    reason = (
        "belongs to juerg@schule.example, who is in the database and not in this file; give that"
        " user's row as well"
    )
    assert found == [Problem("users.csv", 2, "untis_id", reason)]


def test_all_bad_rows_of_all_files_are_reported_at_once(session: Session, folder: Path) -> None:
    write(
        folder,
        {
            "classes.csv": "name,graduation_year,department\n27Ga,soon,Nowhere\n27GA,,\n",
            "users.csv": (
                "email,first_name,last_name,role,class,untis_id\n"
                "juerg@schule.example,,Müller,boss,,\n"
                "anna@schule.example,Anna,A,student,99Zz,S1\n"
                "beat@schule.example,Beat,B,teacher,27Ga,S1\n"
                "no address,No,N,student,,\n"
                "ANNA@schule.example,Anna,A,student,,\n"
                "short@schule.example,S\n"
            ),
            "events.csv": (
                "id,state,title,starts,ends,class_groups,users,version_of\n"
                'a,published,"two\nlines",2026-05-04T09:00,2026-05-04T08:00,27Ga,,\n'
                "b,published,B,2026-05-04,2026-05-04T08:00,,nobody@schule.example,b\n"
                "c,published,C,2026-02-30,2026-03-01,,,z\n"
            ),
            "subscriptions.csv": "email,ignored_events\nanna@schule.example,a;missing\n",
        },
    )

    assert refusals(session, folder) == [
        ("classes.csv", 2, "graduation_year"),
        ("classes.csv", 2, "department"),
        ("users.csv", 2, "first_name"),
        ("users.csv", 2, "role"),
        ("users.csv", 3, "class"),
        ("users.csv", 4, "class"),
        ("users.csv", 4, "untis_id"),
        ("users.csv", 5, "email"),
        ("users.csv", 6, "email"),
        ("users.csv", 7, ""),
        ("events.csv", 2, "ends"),
        ("events.csv", 2, "class_groups"),
        ("events.csv", 4, "ends"),
        ("events.csv", 4, "users"),
        ("events.csv", 4, "version_of"),
        ("events.csv", 5, "starts"),
        ("events.csv", 5, "version_of"),
        ("subscriptions.csv", 2, "ignored_events"),
    ]


def test_problem_reads_as_file_line_column_reason(session: Session, tmp_path: Path) -> None:
    header = "id,state,title,starts,ends\n"
    folder = write(
        tmp_path, {"events.csv": f"{header}a,published,A,2026-05-04T09:00,2026-05-04T08:00\n"}
    )

    with pytest.raises(InvalidRows) as refused:
        bring(session, folder)

    reason = "is before starts (2026-05-04T08:00+02:00 < 2026-05-04T09:00+02:00)"
    total = "nothing was loaded: 1 problems in 1 rows"
    assert str(refused.value) == f"events.csv:2: ends: {reason}\n{total}"


def test_version_of_a_stored_version_is_refused(
    session: Session, folder: Path, tmp_path: Path
) -> None:
    bring(session, folder)
    row = "x,draft,X,2026-12-01,2026-12-01,sport-neu\n"
    later = write(
        tmp_path / "later", {"events.csv": f"id,state,title,starts,ends,version_of\n{row}"}
    )

    assert problems(session, later) == [
        Problem(
            "events.csv",
            2,
            "version_of",
            "'sport-neu' is itself a version; name the event that is current",
        )
    ]


def test_refused_header_hides_no_problem_and_invents_none(session: Session, folder: Path) -> None:
    write(folder, {"classes.csv": "name,oops\n27Ga,x\n"})

    assert refusals(session, folder) == [("classes.csv", 1, "oops")]


def test_number_of_statements_does_not_grow_with_the_rows(session: Session, tmp_path: Path) -> None:
    def statements(rows: int) -> int:
        users = "".join(f"u{i}@x.example,U,{i},student,27Ga,{i}\n" for i in range(rows))
        files = {
            "users.csv": f"email,first_name,last_name,role,class,untis_id\n{users}",
            "classes.csv": "name\n27Ga\n",
        }
        seen: list[str] = []

        def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        bind = session.get_bind()
        engine = bind if isinstance(bind, Engine) else bind.engine
        event.listen(engine, "before_cursor_execute", note)
        bring(session, write(tmp_path, files))
        event.remove(engine, "before_cursor_execute", note)
        return len(seen)

    # The first one also opens the transaction.
    statements(1)
    few = statements(5)
    assert few > 0
    assert statements(500) == few


def test_example_school_loads_and_loads_again(session: Session) -> None:
    counts = bring(session, EXAMPLE)
    before = contents(session)

    again = bring(session, EXAMPLE, now=NOW + timedelta(days=400))
    assert contents(session) == before
    assert {name: loaded.written for name, loaded in again.items()} == dict.fromkeys(counts, 0)
    assert {name: loaded.rows for name, loaded in counts.items()} == {
        "departments": 4,
        "classes": 6,
        "users": 23,
        "semesters": 3,
        "holidays": 2,
        "lessons": 26,
        "events": 23,
        "event_dates": 4,
        "subscriptions": 4,
    }
