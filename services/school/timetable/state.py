"""What the database says of a timetable now, read once for a plan."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from nightshift.database import Session, batched
from sqlalchemy import select

from services.school.models import (
    Holiday,
    Lesson,
    LessonChange,
    LessonChangeTeacher,
    LessonClass,
    LessonTeacher,
    Role,
    SchoolClass,
    Semester,
    User,
)
from services.school.timetable.models import Kind, TimetableClaim
from services.school.timetable.source import Question, Term

# SQLite before 3.32 takes 999 variables in a statement.
CHUNK = 900

# A row's fields as JSON has them: what a claim remembers is compared with it.
Fields = dict[str, Any]


class Person(NamedTuple):
    """A user who may teach."""

    id: int
    email: str
    first_name: str
    last_name: str
    untis_id: str | None

    @property
    def name(self) -> str:
        return make_name(self.first_name, self.last_name)


def make_name(first_name: str, last_name: str) -> str:
    """Return a name by which a person is found again, whatever the case and the spaces."""
    return " ".join(f"{first_name} {last_name}".casefold().split())


class Claim(NamedTuple):
    """What a source has; `written` is None for a row that a person entered."""

    source: str
    source_id: str
    written: Fields | None


@dataclass(slots=True)
class State:
    """The rows that a source may speak of. Lessons and their changes have their fields by id."""

    terms: dict[str, int]
    classes: dict[int, str]
    people: dict[int, Person]
    holders: dict[str, int]
    lessons: dict[int, tuple[str, Fields]] = field(default_factory=dict)
    changes: dict[tuple[int, date], tuple[int, Fields]] = field(default_factory=dict)
    claims: dict[tuple[Kind, int], Claim] = field(default_factory=dict)


def ask(session: Session, today: date) -> Question:
    """Return what to ask a source for: the semesters that have not ended."""
    semesters = (
        select(Semester.name, Semester.starts_on, Semester.ends_on)
        .where(Semester.ends_on >= today)
        .order_by(Semester.starts_on)
    )
    terms = tuple(Term(*row) for row in session.execute(semesters))
    since = min((term.first for term in terms), default=today)
    spans = select(Holiday.starts_on, Holiday.ends_on).where(Holiday.ends_on >= since)
    until = max((term.last for term in terms), default=today)
    days = {
        date.fromordinal(number)
        for first, last in session.execute(spans)
        for number in range(max(first, since).toordinal(), min(last, until).toordinal() + 1)
    }
    teachers = select(User.email, User.untis_id).where(
        User.role != Role.STUDENT, User.untis_id.is_not(None)
    )
    return Question(
        today,
        terms,
        frozenset(days),
        frozenset(session.scalars(select(SchoolClass.name))),
        {email: untis_id for email, untis_id in session.execute(teachers) if untis_id},
    )


def read_state(
    session: Session, question: Question, lesson_keys: Iterable[str], teacher_ids: Iterable[str]
) -> State:
    """Return what the database has of these semesters, lessons and teachers."""
    names = [term.name for term in question.terms]
    semesters = select(Semester.name, Semester.id).where(Semester.name.in_(names))
    classes = select(SchoolClass.id, SchoolClass.name)
    people = select(User.id, User.email, User.first_name, User.last_name, User.untis_id)
    state = State(
        terms=dict(session.execute(semesters).all()),
        classes=dict(session.execute(classes).all()),
        people={
            row.id: Person(*row) for row in session.execute(people.where(User.role != Role.STUDENT))
        },
        holders={
            untis_id: number
            for some in _chunks(teacher_ids)
            for number, untis_id in session.execute(
                select(User.id, User.untis_id).where(User.untis_id.in_(some))
            )
            if untis_id
        },
    )
    columns = (
        TimetableClaim.kind,
        TimetableClaim.row_id,
        TimetableClaim.source,
        TimetableClaim.source_id,
        TimetableClaim.written,
    )
    state.claims = {
        (Kind(kind), row_id): Claim(*claim)
        for kind, row_id, *claim in session.execute(select(*columns))
    }
    _read_lessons(session, state, lesson_keys)
    _read_changes(session, state)
    return state


def _read_lessons(session: Session, state: State, keys: Iterable[str]) -> None:
    query = select(
        Lesson.id,
        Lesson.key,
        Semester.name,
        Lesson.weekday,
        Lesson.starts,
        Lesson.ends,
        Lesson.subject,
        Lesson.room,
        Lesson.is_class_teachers,
    ).join(Semester)
    of_terms = query.where(Lesson.semester_id.in_(state.terms.values()))
    elsewhere = (query.where(Lesson.key.in_(some)) for some in _chunks(keys))
    rows = {row.id: row for one in (of_terms, *elsewhere) for row in session.execute(one)}
    classes = _read_links(session, LessonClass.lesson_id, LessonClass.class_id, rows)
    teachers = _read_links(session, LessonTeacher.lesson_id, LessonTeacher.user_id, rows)
    for row in rows.values():
        state.lessons[row.id] = (
            row.key,
            {
                "semester": row.name,
                "weekday": row.weekday,
                "starts": f"{row.starts:%H:%M}",
                "ends": f"{row.ends:%H:%M}",
                "subject": row.subject,
                "room": row.room,
                "class_teacher": row.is_class_teachers,
                "classes": classes[row.id],
                "teachers": teachers[row.id],
            },
        )


def _read_changes(session: Session, state: State) -> None:
    found = [
        row
        for some in _chunks(state.lessons)
        for row in session.execute(
            select(*LessonChange.__table__.columns).where(LessonChange.lesson_id.in_(some))
        )
    ]
    substitutes = _read_links(
        session,
        LessonChangeTeacher.change_id,
        LessonChangeTeacher.user_id,
        [row.id for row in found if row.substituted],
    )
    for row in found:
        fields = {
            "cancelled": row.cancelled,
            "room": row.room,
            "moved_to": row.moved_to and row.moved_to.isoformat(),
            "starts": row.starts and f"{row.starts:%H:%M}",
            "ends": row.ends and f"{row.ends:%H:%M}",
            "teachers": substitutes[row.id] if row.substituted else None,
        }
        state.changes[row.lesson_id, row.taken_on] = (row.id, fields)


def _read_links(
    session: Session, owner: Any, other: Any, owners: Iterable[int]
) -> dict[int, list[int]]:
    linked: dict[int, list[int]] = defaultdict(list)
    for some in _chunks(owners):
        for one, two in session.execute(select(owner, other).where(owner.in_(some))):
            linked[one].append(two)
    for ids in linked.values():
        ids.sort()
    return linked


def _chunks(keys: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    return batched(list(keys), CHUNK)
