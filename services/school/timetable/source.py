"""What a source of the timetable is asked, and what it says: plain values, whatever it speaks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, time
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Term:
    """A semester of the school, both days included."""

    name: str
    first: date
    last: date


@dataclass(frozen=True, slots=True)
class Question:
    """What a source is asked for: the timetable of these semesters.

    `holidays` are the days without lessons. `classes` and `teachers` are the names that the school
    knows, for a source that says them in a text: of classes, and teachers' ids by address.
    """

    today: date
    terms: tuple[Term, ...]
    holidays: frozenset[date] = frozenset()
    classes: frozenset[str] = frozenset()
    teachers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher, under the source's id (`user_account.untis_id`)."""

    id: str
    first_name: str = ""
    last_name: str = ""
    email: str = ""


@dataclass(frozen=True, slots=True)
class TaughtClass:
    """A class, under the source's id. The id of a class that is renamed stays."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class WeeklyLesson:
    """A weekly lesson of a semester. `weekday` is ISO's; times are the school's wall-clock time.

    `classes` and `teachers` are the source's ids.
    """

    id: str
    term: str
    weekday: int
    starts: time
    ends: time
    subject: str
    room: str = ""
    classes: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    class_teacher: bool = False


@dataclass(frozen=True, slots=True)
class SingleDate:
    """What differs from a weekly lesson on one of its dates; None is as usual.

    `teachers` are the source's ids of those who teach it instead.
    """

    lesson: str
    day: date
    cancelled: bool = False
    room: str | None = None
    moved_to: date | None = None
    starts: time | None = None
    ends: time | None = None
    teachers: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Timetable:
    """All that a source says.

    `terms` are the semesters that it speaks of: a lesson of these that is missing is gone. Where
    `classes`, `teachers` or `changes` is None, the source has no such list: then lessons name
    classes by their names and teachers by their `untis_id`, and single dates stay as they are.
    `notices` say what could not be read.
    """

    terms: frozenset[str]
    lessons: tuple[WeeklyLesson, ...]
    teachers: tuple[Teacher, ...] | None = None
    classes: tuple[TaughtClass, ...] | None = None
    changes: tuple[SingleDate, ...] | None = None
    notices: tuple[str, ...] = ()


class Source(Protocol):
    """Where a timetable comes from."""

    def read(self, question: Question) -> Timetable:
        """Return the timetable, and write nothing.

        Raises:
            TransientError: The source does not answer now.
            PermanentError: It refuses, or what it says cannot be read. The message says why.

        """
