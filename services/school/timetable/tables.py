"""A timetable as tables: a folder of CSV files, a spreadsheet, or either at an address."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from nightshift.errors import InvalidInput
from pydantic import Field

from services.school.rows import Clock, Day, Email, Flag, Key, LessonRow, List, Row
from services.school.sheets import InvalidRows, Sheet, read_sheets
from services.school.tables import WORKBOOKS
from services.school.timetable.source import (
    Question,
    SingleDate,
    TaughtClass,
    Teacher,
    Timetable,
    WeeklyLesson,
)

# Return the content of the file at an address.
Fetch = Callable[[str], bytes]

UTC = ZoneInfo("UTC")
FILES = (".csv", *WORKBOOKS)
LONGEST_NAME = 100


class TeacherRow(Row):
    """A teacher of the timetable: `id` is the user's `untis_id`."""

    file, noun, key_column = "teachers.csv", "teacher", "id"

    id: Key = Field(max_length=50)
    first_name: str = Field("", max_length=200)
    last_name: str = Field("", max_length=200)
    email: Email | None = None


class TaughtClassRow(Row):
    file, noun, key_column = "classes.csv", "class", "id"

    id: Key = Field(max_length=50)
    name: Key = Field(max_length=50)


class ChangeRow(Row):
    """What differs on one date. No column alone names the row."""

    file, noun, key_column = "changes.csv", "change", ""
    references: ClassVar = {"lesson": "lessons.csv"}

    lesson: str
    day: Day = Field(alias="date")
    cancelled: Flag = False
    room: str | None = Field(None, max_length=100)
    moved_to: Day | None = None
    starts: Clock | None = None
    ends: Clock | None = None
    teachers: List | None = None


ROWS: tuple[type[Row], ...] = (TeacherRow, TaughtClassRow, LessonRow, ChangeRow)


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a timetable.

    `place` is a folder or a file; or the address of a file, or of a folder (with a slash at its
    end), which has all four files.
    """

    place: str
    fetch: Fetch

    def read(self, question: Question) -> Timetable:
        """Return what the tables say. Raises InvalidInput, and says what is wrong in which line."""
        if "://" not in self.place:
            return read_tables(Path(self.place), question)
        name = urlsplit(self.place).path.rpartition("/")[2][-LONGEST_NAME:]
        if name and not name.lower().endswith(FILES):
            raise InvalidInput(
                f"{name}: such a file is not read; name one that ends with {', '.join(FILES)} or"
                " .ics, or a folder with a slash at its end"
            )
        names = [name] if name else [kind.file for kind in ROWS]
        with TemporaryDirectory(prefix="timetable-") as folder:
            for one in names:
                address = self.place if name else self.place + one
                (Path(folder) / one).write_bytes(self.fetch(address))
            return read_tables(Path(folder) / name, question)


def read_tables(path: Path, question: Question) -> Timetable:
    """Return what a folder's or a file's tables say. Raises InvalidInput."""
    sheets = read_sheets(path, UTC, kinds=ROWS)
    if problems := [problem for sheet in sheets.values() for problem in sheet.problems]:
        raise InvalidRows(problems)
    if LessonRow.file not in sheets:
        raise InvalidInput(f"{path.name}: there is no table of lessons; put lessons.csv there")
    return Timetable(
        terms=frozenset(term.name for term in question.terms),
        lessons=tuple(_read_lesson(row) for row in _rows(sheets[LessonRow.file])),
        teachers=_read_list(sheets.get(TeacherRow.file), _read_teacher),
        classes=_read_list(
            sheets.get(TaughtClassRow.file), lambda row: TaughtClass(row["id"], row["name"])
        ),
        changes=_read_list(sheets.get(ChangeRow.file), _read_change),
    )


def _rows(sheet: Sheet) -> list[dict[str, Any]]:
    """Return a sheet's rows by their columns: a column that it leaves out has its default."""
    defaults = {
        column: sheet.kind.model_fields[name].default
        for column, name in sheet.kind.columns().items()
    }
    return [
        defaults | dict(zip(sheet.columns, entry.values or (), strict=True))
        for entry in sheet.entries
    ]


def _read_list(sheet: Sheet | None, read: Callable[[dict[str, Any]], Any]) -> Any:
    return None if sheet is None else tuple(map(read, _rows(sheet)))


def _read_teacher(row: dict[str, Any]) -> Teacher:
    return Teacher(row["id"], row["first_name"], row["last_name"], row["email"] or "")


def _read_lesson(row: dict[str, Any]) -> WeeklyLesson:
    return WeeklyLesson(
        id=row["id"],
        term=row["semester"],
        weekday=row["weekday"],
        starts=row["starts"],
        ends=row["ends"],
        subject=row["subject"],
        room=row["room"],
        classes=row["classes"],
        teachers=row["teachers"],
        class_teacher=row["class_teacher"],
    )


def _read_change(row: dict[str, Any]) -> SingleDate:
    day: date = row["date"]
    return SingleDate(
        lesson=row["lesson"],
        day=day,
        cancelled=row["cancelled"],
        room=row["room"],
        moved_to=row["moved_to"],
        starts=row["starts"],
        ends=row["ends"],
        teachers=row["teachers"] or None,
    )
