"""A timetable on paper, its files, and the school that it is of."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

from nightshift.database import Base, Session
from sqlalchemy import insert, select, text

from services.school.models import (
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
from services.school.timetable.source import (
    Question,
    SingleDate,
    TaughtClass,
    Teacher,
    Timetable,
    WeeklyLesson,
)
from services.school.timetable.sync import Sources
from tests.conftest import NOW, ZONE

TERM = "Herbst 2026"
FIRST, LAST = date(2026, 8, 17), date(2027, 1, 31)
TODAY = NOW.astimezone(ZONE).date()
MONDAY = date(2026, 11, 30)
STARTS = [time(7, 45), time(8, 35), time(9, 40), time(10, 30), time(13, 10), time(14)]


def ends(starts: time) -> time:
    minutes = starts.hour * 60 + starts.minute + 45
    return time(minutes // 60, minutes % 60)


@dataclass
class Paper:
    """What a source says. It is a source itself, too."""

    teachers: dict[str, Teacher] = field(default_factory=dict)
    classes: dict[str, TaughtClass] = field(default_factory=dict)
    lessons: dict[str, WeeklyLesson] = field(default_factory=dict)
    changes: dict[tuple[str, date], SingleDate] = field(default_factory=dict)

    def read(self, question: Question) -> Timetable:
        return Timetable(
            terms=frozenset(term.name for term in question.terms),
            lessons=tuple(self.lessons.values()),
            teachers=tuple(self.teachers.values()),
            classes=tuple(self.classes.values()),
            changes=tuple(self.changes.values()),
        )

    def lesson(self, key: str, **values: Any) -> None:
        """Add a lesson, or change one."""
        known = self.lessons.get(key) or WeeklyLesson(
            key, TERM, 1, STARTS[0], ends(STARTS[0]), "Mathematik"
        )
        self.lessons[key] = replace(known, **values)

    def change(self, key: str, day: date, **values: Any) -> None:
        self.changes[key, day] = SingleDate(key, day, **values)

    def write(self, folder: Path) -> Path:
        """Write it as the tables that a source may have."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(
            folder / "teachers.csv",
            ("id", "first_name", "last_name", "email"),
            [(one.id, one.first_name, one.last_name, one.email) for one in self.teachers.values()],
        )
        _write(
            folder / "classes.csv",
            ("id", "name"),
            [(one.id, one.name) for one in self.classes.values()],
        )
        _write(
            folder / "lessons.csv",
            (
                "id", "semester", "weekday", "starts", "ends", "subject", "room", "classes",
                "teachers", "class_teacher",
            ),
            [
                (
                    one.id,
                    one.term,
                    one.weekday,
                    f"{one.starts:%H:%M}",
                    f"{one.ends:%H:%M}",
                    one.subject,
                    one.room,
                    ";".join(one.classes),
                    ";".join(one.teachers),
                    "yes" if one.class_teacher else "no",
                )
                for one in self.lessons.values()
            ],
        )  # fmt: skip
        _write(
            folder / "changes.csv",
            ("lesson", "date", "cancelled", "room", "moved_to", "starts", "ends", "teachers"),
            [
                (
                    one.lesson,
                    one.day,
                    "yes" if one.cancelled else "no",
                    one.room or "",
                    one.moved_to or "",
                    one.starts and f"{one.starts:%H:%M}",
                    one.ends and f"{one.ends:%H:%M}",
                    ";".join(one.teachers or ()),
                )
                for one in self.changes.values()
            ],
        )
        return folder


def _write(file: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows(rows)


def make_paper(classes: int = 3, teachers: int = 4, lessons: int = 12) -> Paper:
    """Return a timetable in which no class and no teacher is in two lessons at once."""
    paper = Paper()
    for number in range(teachers):
        key = f"T{number:03}"
        paper.teachers[key] = Teacher(key, "Vera", f"Muster{number}")
    for number in range(classes):
        paper.classes[f"c{number}"] = TaughtClass(f"c{number}", f"2{number % 10}G{number}")
    for number in range(lessons):
        round_, place = divmod(number, classes)
        weekday, starts = round_ // len(STARTS) + 1, STARTS[round_ % len(STARTS)]
        paper.lesson(
            f"L{number:04}",
            weekday=weekday,
            starts=starts,
            ends=ends(starts),
            subject=f"Fach {round_}",
            room=str(100 + place),
            classes=(f"c{place}",),
            teachers=(f"T{(place + round_ * 7) % teachers:03}",),
            class_teacher=round_ == 0,
        )
    return paper


def add_school(session: Session, paper: Paper, *, last: date = LAST) -> None:
    """Add the semester, and a user for each teacher of a timetable."""
    session.add(Semester(name=TERM, starts_on=FIRST, ends_on=last))
    session.execute(
        insert(User),
        [
            {
                "email": f"{one.id.lower()}@school.example",
                "first_name": one.first_name,
                "last_name": one.last_name,
                "role": Role.TEACHER,
                "untis_id": one.id,
                "created_at": NOW,
            }
            for one in paper.teachers.values()
        ],
    )
    session.flush()


def sources(**by_name: Any) -> Sources:
    return Sources(by_name, ZONE)


Rows = dict[str, Any]


def read_lessons(session: Session) -> dict[str, WeeklyLesson]:
    """Return the school's lessons as a source says them, with the names of classes and ids."""
    classes: dict[int, list[str]] = {}
    for row in session.execute(select(LessonClass.lesson_id, SchoolClass.name).join(SchoolClass)):
        classes.setdefault(row[0], []).append(row[1])
    teachers: dict[int, list[str]] = {}
    for row in session.execute(select(LessonTeacher.lesson_id, User.email).join(User)):
        teachers.setdefault(row[0], []).append(row[1])
    return {
        one.key: WeeklyLesson(
            one.key,
            term,
            one.weekday,
            one.starts,
            one.ends,
            one.subject,
            one.room,
            tuple(sorted(classes.get(one.id, ()))),
            tuple(sorted(teachers.get(one.id, ()))),
            one.is_class_teachers,
        )
        for one, term in session.execute(select(Lesson, Semester.name).join(Semester))
    }


def read_changes(session: Session) -> dict[tuple[str, date], SingleDate]:
    teachers: dict[int, list[str]] = {}
    for row in session.execute(select(LessonChangeTeacher.change_id, User.email).join(User)):
        teachers.setdefault(row[0], []).append(row[1])
    return {
        (key, one.taken_on): SingleDate(
            key,
            one.taken_on,
            one.cancelled,
            one.room,
            one.moved_to,
            one.starts,
            one.ends,
            tuple(sorted(teachers.get(one.id, ()))) if one.substituted else None,
        )
        for one, key in session.execute(select(LessonChange, Lesson.key).join(Lesson))
    }


def expected_lessons(paper: Paper, email: Callable[[str], str] | None = None) -> dict[str, Any]:
    address = email or (lambda one: f"{one.lower()}@school.example")
    return {
        key: replace(
            one,
            classes=tuple(sorted(paper.classes[each].name for each in one.classes)),
            teachers=tuple(sorted(map(address, one.teachers))),
        )
        for key, one in paper.lessons.items()
    }


def expected_changes(paper: Paper) -> dict[tuple[str, date], SingleDate]:
    return {
        key: replace(
            one,
            teachers=None
            if one.teachers is None
            else tuple(sorted(f"{each.lower()}@school.example" for each in one.teachers)),
        )
        for key, one in paper.changes.items()
    }


def contents(
    session: Session, *, without: tuple[str, ...] = ("timetable_run",)
) -> Mapping[str, Any]:
    """Return every row, with its place on Postgres: a row that is rewritten moves."""
    place = "ctid::text, " if session.get_bind().dialect.name == "postgresql" else ""
    return {
        name: sorted(map(repr, session.execute(text(f'select {place}* from "{name}"'))))
        for name in Base.metadata.tables
        if name not in without
    }


def day(weeks: int) -> date:
    """Return the Monday so many weeks after the first one that is to come."""
    return MONDAY + timedelta(weeks=weeks)
