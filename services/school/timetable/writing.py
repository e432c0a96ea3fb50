"""Write a plan's rows. The caller's transaction makes it all of them or none."""

from collections.abc import Mapping
from datetime import date, time
from typing import Any

from nightshift.database import Session, batched, upsert
from sqlalchemy import delete, insert, update
from sqlalchemy.orm import InstrumentedAttribute

from services.school.loading import TARGETS, Link, relink
from services.school.models import (
    Lesson,
    LessonChange,
    LessonChangeTeacher,
    SchoolClass,
    User,
)
from services.school.timetable.models import Kind, TimetableClaim
from services.school.timetable.plan import Plan, Write
from services.school.timetable.state import CHUNK, Fields

MODELS: dict[Kind, Any] = {
    Kind.CLASS: SchoolClass,
    Kind.LESSON: Lesson,
    Kind.CHANGE: LessonChange,
}
LESSON_LINKS = TARGETS["lessons.csv"].links
SUBSTITUTES = Link(LessonChangeTeacher, "change_id", "user_id")


def write(session: Session, plan: Plan, terms: Mapping[str, int]) -> None:
    """Write what a plan says. `terms` are the ids of the semesters by their names."""
    session.flush()
    for kind, model in MODELS.items():
        ids = [row_id for one, row_id in plan.removed if one is kind]
        for some in batched(ids, CHUNK):
            session.execute(delete(model).where(model.id.in_(some)))
    _move_untis_ids(session, plan.moved)
    writer = _Writer(session, plan)
    classes = writer.write_classes()
    lessons = writer.write_lessons(terms, classes)
    writer.write_changes(plan.lesson_ids | lessons)
    session.expire_all()


def _move_untis_ids(session: Session, moved: Mapping[int, str]) -> None:
    # All are taken first: two users may swap theirs.
    for some in batched(list(moved), CHUNK):
        session.execute(update(User).where(User.id.in_(some)).values(untis_id=None))
    _update(session, User, [{"id": one, "untis_id": new} for one, new in moved.items()])


class _Writer:
    def __init__(self, session: Session, plan: Plan) -> None:
        self._session = session
        self._source = plan.source
        self._of_kind = {kind: [one for one in plan.writes if one.kind is kind] for kind in Kind}

    def write_classes(self) -> dict[str, int]:
        """Return the ids of the new classes by their names."""
        writes = self._of_kind[Kind.CLASS]
        changed = {one.row_id: one.fields for one in writes if one.row_id and one.fields}
        # Two classes may swap their names. No school calls one by an arrow.
        between = [{"id": row_id, "name": f"→{row_id}"} for row_id in changed]
        _update(self._session, SchoolClass, between)
        rows = [{"id": row_id, **fields} for row_id, fields in changed.items()]
        _update(self._session, SchoolClass, rows)
        new = [one.fields for one in writes if one.row_id is None and one.fields]
        made = _insert(self._session, SchoolClass, [SchoolClass.name], new)
        ids = {name: row_id for (name,), row_id in made.items()}
        self._claim(
            [(one, one.row_id or ids[(one.fields or {})["name"]], one.written) for one in writes]
        )
        return ids

    def write_lessons(self, terms: Mapping[str, int], classes: Mapping[str, int]) -> dict[str, int]:
        """Return the ids of the new lessons by the source's ids."""
        writes = self._of_kind[Kind.LESSON]

        def resolve(fields: Fields | None) -> Fields | None:
            if fields is None:
                return None
            found = sorted(classes.get(one, one) for one in fields["classes"])
            return fields | {"classes": found}

        rows = [
            (one, _make_lesson(fields, terms), fields)
            for one in writes
            if (fields := resolve(one.fields))
        ]
        new = [{"key": one.source_id, **row} for one, row, _ in rows if one.row_id is None]
        ids = _insert(self._session, Lesson, [Lesson.key], new)
        known = [{"id": one.row_id, **row} for one, row, _ in rows if one.row_id is not None]
        _update(self._session, Lesson, known)
        linked = [(one.row_id or ids[one.source_id,], fields) for one, _, fields in rows]
        for some in batched(linked, CHUNK):
            owners = [row_id for row_id, _ in some]
            for name, link in LESSON_LINKS.items():
                pairs = {(row_id, other) for row_id, fields in some for other in fields[name]}
                relink(self._session, link, owners, pairs)
        self._claim(
            [(one, one.row_id or ids[one.source_id,], resolve(one.written)) for one in writes]
        )
        return {source_id: row_id for (source_id,), row_id in ids.items()}

    def write_changes(self, lessons: Mapping[str, int]) -> None:
        writes = self._of_kind[Kind.CHANGE]
        at = {one.source_id: (lessons[one.lesson], one.day) for one in writes}
        rows = [(one, _make_change(one.fields), one.fields) for one in writes if one.fields]
        new = [
            {"lesson_id": at[one.source_id][0], "taken_on": one.day, **row}
            for one, row, _ in rows
            if one.row_id is None
        ]
        columns = [LessonChange.lesson_id, LessonChange.taken_on]
        ids = _insert(self._session, LessonChange, columns, new)
        known = [{"id": one.row_id, **row} for one, row, _ in rows if one.row_id is not None]
        _update(self._session, LessonChange, known)
        linked = [(one.row_id or ids[at[one.source_id]], fields) for one, _, fields in rows]
        for some in batched(linked, CHUNK):
            pairs = {
                (row_id, other) for row_id, fields in some for other in fields["teachers"] or ()
            }
            relink(self._session, SUBSTITUTES, [row_id for row_id, _ in some], pairs)
        self._claim([(one, one.row_id or ids[at[one.source_id]], one.written) for one in writes])

    def _claim(self, claims: list[tuple[Write, int, Fields | None]]) -> None:
        rows = [
            {
                "kind": one.kind,
                "row_id": row_id,
                "source": self._source,
                "source_id": one.source_id,
                "written": written,
            }
            for one, row_id, written in claims
        ]
        for some in batched(rows, CHUNK):
            upsert(self._session, TimetableClaim, some)


def _insert(
    session: Session,
    model: Any,
    columns: list[InstrumentedAttribute[Any]],
    rows: list[dict[str, Any]],
) -> dict[tuple[Any, ...], int]:
    """Insert rows, and return their ids by the columns of their natural key."""
    if not rows:
        return {}
    found = session.execute(insert(model).returning(model.id, *columns), rows)
    return {tuple(key): row_id for row_id, *key in found}


def _update(session: Session, model: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.execute(update(model), rows)


def _make_lesson(fields: Fields, terms: Mapping[str, int]) -> dict[str, Any]:
    return {
        "semester_id": terms[fields["semester"]],
        "weekday": fields["weekday"],
        "starts": time.fromisoformat(fields["starts"]),
        "ends": time.fromisoformat(fields["ends"]),
        "subject": fields["subject"],
        "room": fields["room"],
        "is_class_teachers": fields["class_teacher"],
    }


def _make_change(fields: Fields) -> dict[str, Any]:
    moved_to, starts, ends = (fields[name] for name in ("moved_to", "starts", "ends"))
    return {
        "cancelled": fields["cancelled"],
        "room": fields["room"],
        "moved_to": moved_to and date.fromisoformat(moved_to),
        "starts": starts and time.fromisoformat(starts),
        "ends": ends and time.fromisoformat(ends),
        "substituted": fields["teachers"] is not None,
    }
