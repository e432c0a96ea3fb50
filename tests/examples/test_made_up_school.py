from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from nightshift.database import Base
from nightshift.errors import Conflict, InvalidInput
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from examples.made_up_school import generate
from services.school.models import (
    Department,
    Event,
    EventState,
    Lesson,
    LessonClass,
    LessonTeacher,
    Role,
    SchoolClass,
    Semester,
    Subscription,
    User,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ZURICH = ZoneInfo("Europe/Zurich")


def make(session: Session, **options: Any) -> dict[str, int]:
    sizes = {"users": 200, "classes": 12, "departments": 3, "events": 150, "seed": 7} | options
    return generate(session, **sizes, zone=ZURICH, now=NOW, today=NOW.date())


def contents(session: Session) -> dict[str, list[Any]]:
    """Every row of the school without the database's own ids, which never repeat."""
    result = {}
    for table in Base.metadata.sorted_tables:
        if table.name == "change_log":
            continue  # It speaks of the others by their ids.
        columns = [column for column in table.c if column.name != "id" and not column.foreign_keys]
        rows = session.execute(select(*columns)) if columns else []
        result[table.name] = [
            session.scalar(select(func.count()).select_from(table)),
            *sorted(map(repr, rows)),
        ]
    return result


def test_same_seed_makes_the_same_school(session: Session) -> None:
    schools = []
    for seed in (7, 7, 8):
        savepoint = session.begin_nested()
        make(session, seed=seed)
        schools.append(contents(session))
        savepoint.rollback()

    assert schools[0] == schools[1]
    assert schools[0] != schools[2]


def test_counts_are_those_of_the_database(session: Session) -> None:
    counts = make(session)

    models = (Department, SchoolClass, User, Semester, Lesson, Event, Subscription)
    stored = [session.scalar(select(func.count()).select_from(model)) for model in models]
    assert list(counts.values()) == stored
    assert counts == {
        "departments": 3,
        "classes": 12,
        "users": 200,
        "semesters": 2,
        "lessons": 20 * 20 * 2,
        "events": 150,
        "subscriptions": 20,
    }


def test_school_is_believable(session: Session) -> None:
    make(session, events=600)

    roles = Counter(session.scalars(select(User.role)))
    assert roles == {Role.STUDENT: 179, Role.TEACHER: 20, Role.ADMIN: 1}
    assert session.scalars(
        select(User.role).where(User.class_id.is_not(None)).distinct()
    ).all() == [Role.STUDENT]
    assert {"27Ga", "28Ga", "27Wa"} <= set(session.scalars(select(SchoolClass.name)))
    taught = (
        select(LessonTeacher.user_id, Lesson.semester_id, func.count())
        .join(Lesson)
        .group_by(LessonTeacher.user_id, Lesson.semester_id)
    )
    assert {count for _, _, count in session.execute(taught)} == {20}
    led = select(LessonClass.class_id).join(Lesson).where(Lesson.is_class_teachers)
    assert set(session.scalars(led)) == set(session.scalars(select(SchoolClass.id)))
    states = Counter(session.scalars(select(Event.state)))
    assert states[EventState.PUBLISHED] > 500
    assert states[EventState.DRAFT] > 0
    assert (
        session.scalars(select(Event.id).where(Event.cancelled_at.is_not(None))).first() is not None
    )


def test_semesters_cover_today(session: Session) -> None:
    make(session)

    today = NOW.date()
    assert session.scalars(
        select(Semester.name).where(Semester.starts_on <= today, Semester.ends_on >= today)
    ).all() == ["Herbst 2026"]


def test_no_teacher_is_in_two_lessons_at_once(session: Session) -> None:
    make(session)

    places = select(LessonTeacher.user_id, Lesson.semester_id, Lesson.weekday, Lesson.starts).join(
        Lesson
    )
    found = session.execute(places).all()
    assert len(set(found)) == len(found)


def test_events_begin_within_the_window(session: Session) -> None:
    make(session)

    first, last = NOW.date() - timedelta(days=31), NOW.date() + timedelta(days=465)
    starts = [
        event.starts_on or event.starts_at.astimezone(ZURICH).date()
        for event in session.scalars(select(Event))
        if event.starts_on or event.starts_at
    ]
    assert first <= min(starts) < first + timedelta(days=31)
    assert last - timedelta(days=31) < max(starts) <= last


@pytest.mark.parametrize(
    ("users", "classes", "departments"),
    [(1, 1, 1), (30, 200, 60), (40, 3, 5)],
    ids=["smallest", "more letters than the alphabet has", "more departments than classes"],
)
def test_any_size_is_made(session: Session, users: int, classes: int, departments: int) -> None:
    make(session, users=users, classes=classes, departments=departments, events=5)

    assert session.scalar(select(func.count()).select_from(SchoolClass)) == classes
    assert session.scalar(select(func.count()).select_from(User)) == users


def test_database_that_holds_a_school_is_refused(session: Session) -> None:
    session.add(SchoolClass(name="27Ga"))
    session.flush()

    with pytest.raises(Conflict):
        make(session)

    assert session.scalar(select(func.count()).select_from(User)) == 0


def test_school_of_nobody_is_refused(session: Session) -> None:
    with pytest.raises(InvalidInput):
        make(session, classes=0)
