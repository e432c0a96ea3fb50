"""Check the cells of a school's tables: each becomes a sheet of validated rows.

All that is wrong is collected; no problem stops the reading.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from nightshift.errors import InvalidInput
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from services.school.rows import ROWS, Row, RowKey
from services.school.tables import Table, Unreadable, find_tables
from services.school.texts import find_unwanted, normalise

Fields = TypeVar("Fields", bound=BaseModel)


class Problem(NamedTuple):
    """One thing that is wrong.

    `file` is the table's place, as `users.csv` or `school.xlsx[users]`, and `line` the line on
    which the row begins, or its number. `column` is empty for the whole row, and so is `value`, the
    cell as it was read. `reason` says what is wrong and how to correct it.
    """

    file: str
    line: int
    column: str
    reason: str
    value: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"{self.file}:{self.line}", self.column, self.reason)))


class InvalidRows(InvalidInput):
    """Rows were refused, and nothing was written.

    `problems` holds all of them, by file in loading order and by line.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        rows = len({(problem.file, problem.line) for problem in problems})
        total = f"nothing was loaded: {len(problems)} problems in {rows} rows"
        super().__init__("\n".join([*map(str, problems), total]))


class Entry(NamedTuple):
    """A row as it was read.

    `cells` are those that are names, of this row or of others, and not empty, by column. `values`
    are what the cells of all columns say, in the sheet's order; None when the row was refused.
    """

    line: int
    key: RowKey
    cells: dict[str, str]
    values: tuple[Any, ...] | None


@dataclass
class Sheet:
    """One table. `columns` are those of its header; empty when the header was refused."""

    kind: type[Row]
    place: str
    columns: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, line: int, column: str, reason: str, value: str = "") -> None:
        self.problems.append(Problem(self.place, line, column, reason, value))


def read_sheets(
    path: Path, zone: ZoneInfo, *, kinds: Sequence[type[Row]] = ROWS, encoding: str = "utf-8"
) -> dict[str, Sheet]:
    """Return the validated tables of a folder or a file, by `Row.file` in loading order.

    `kinds` are those of a school, or other ones. Each sheet's `problems` hold what is wrong. Raises
    InvalidInput as `find_tables` does.
    """
    names = {kind.file.removesuffix(".csv"): kind for kind in kinds}
    header = {column for kind in kinds for column in kind.columns()}
    tables = find_tables(path, names, header=header, encoding=encoding)
    return {
        kind.file: _read(kind, tables[name], zone) for name, kind in names.items() if name in tables
    }


def _read(kind: type[Row], table: Table, zone: ZoneInfo) -> Sheet:
    sheet = Sheet(kind, table.place)
    first: dict[tuple[str, RowKey], int] = {}
    try:
        line, header = next(table.records, (1, []))
        header = _trim([cell.strip() for cell in header])
        if not _header_is_sound(sheet, line, header):
            return sheet
        sheet.columns = header
        for line, cells in table.records:
            _add(sheet, line, _trim(cells, len(header)), zone, first)
    except Unreadable as stop:
        sheet.refuse(stop.line, "", stop.reason)
    return sheet


def _trim(cells: list[str], least: int = 0) -> list[str]:
    """Return cells without empty ones at the end, which spreadsheet programs add."""
    while len(cells) > least and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _header_is_sound(sheet: Sheet, line: int, header: list[str]) -> bool:
    columns = sheet.kind.columns()
    for name in dict.fromkeys(header):
        if reason := find_unwanted(name):
            sheet.refuse(line, "", f"a column's name {reason}")
        elif name not in columns:
            sheet.refuse(line, name, f"unknown column; the columns are {', '.join(columns)}")
        elif header.count(name) > 1:
            sheet.refuse(line, name, f"stands {header.count(name)} times in the header; keep one")
    for name in sheet.kind.required():
        if name not in header:
            sheet.refuse(line, name, "this column is missing; add it to the header")
    return not sheet.problems


def _add(
    sheet: Sheet, line: int, record: list[str], zone: ZoneInfo, first: dict[tuple[str, RowKey], int]
) -> None:
    """Validate one row and add it.

    A refused row is added too, so that references to it are not reported as well.
    """
    kind, earlier = sheet.kind, len(sheet.problems)
    cells = {
        column: text
        for column, cell in zip(sheet.columns, record, strict=False)
        if (text := clean(cell))
    }
    row: Row | None = None
    if len(record) != len(sheet.columns):
        sheet.refuse(
            line,
            "",
            f"has {len(record)} cells, the header {len(sheet.columns)}; quote a cell that contains"
            " a separator",
        )
    else:
        row, wrong = validate(kind, cells, zone)
        for column, reason in wrong:
            sheet.refuse(line, column, reason, cells.get(column, ""))
    cells = {
        column: cells[column]
        for column in kind.naming()
        # No database has what may not be written, and Postgres refuses the question.
        if column in cells and not find_unwanted(cells[column])
    }
    key = kind.find_key(cells)
    uniques: list[tuple[str, RowKey]] = [
        (kind.key_column, key),
        *((column, cells.get(column, "")) for column in kind.unique),
    ]
    for column, value in uniques:
        if column in cells and first.setdefault((column, value), line) != line:
            sheet.refuse(
                line,
                column,
                f"{cells[column]!r} stands already on line {first[column, value]}; keep one of the"
                " two",
                cells[column],
            )
    values = None
    if row is not None and len(sheet.problems) == earlier:
        fields = kind.columns()
        values = tuple(getattr(row, fields[column]) for column in sheet.columns)
    sheet.entries.append(Entry(line, key, cells, values))


def validate(
    kind: type[Fields], cells: Mapping[str, Any], zone: ZoneInfo
) -> tuple[Fields | None, list[tuple[str, str]]]:
    """Return what clean cells say, or None, and each column that is wrong with the reason."""
    wrong = [
        (column, reason)
        for column, cell in cells.items()
        if isinstance(cell, str) and (reason := find_unwanted(cell))
    ]
    spoilt = [column for column, _ in wrong]
    fields: Fields | None = None
    try:
        fields = kind.model_validate(cells, context=zone)
    except ValidationError as invalid:
        errors = (
            (str(error["loc"][0]), _reason(error)) for error in invalid.errors(include_url=False)
        )
        wrong += [(column, reason) for column, reason in errors if column not in spoilt]
    return fields, wrong


def clean(cell: str) -> str:
    """Return a cell without white space around it, with usual line ends and composed letters."""
    if cell.isascii() and cell.isprintable():
        return cell.strip(" ")
    # str.strip() would also remove some control characters, which must be refused, and keep others.
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    return normalise(re.sub(r"\A[^\S\x0b-\x1f\x85]+|[^\S\x0b-\x1f\x85]+\Z", "", cell))


def _reason(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "is empty; it needs a value"
        case "value_error":
            return str(context["error"])
        case "enum":
            return f"must be {context['expected'].replace(chr(39), '')}, not {error['input']!r}"
        case "int_parsing":
            return f"must be a whole number, not {error['input']!r}"
        case "string_too_long" | "too_long":
            return (
                f"is {len(error['input'])} characters long; shorten it to {context['max_length']}"
            )
        case _:
            return f"{error['msg'][0].lower()}{error['msg'][1:]}"
