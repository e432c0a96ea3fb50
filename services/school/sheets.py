"""Read a folder of CSV files into sheets of validated rows.

All that is wrong is collected; no problem stops the reading.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from nightshift.errors import InvalidInput
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from services.school.rows import ROW_OF, ROWS, Row, RowKey
from services.school.texts import find_unwanted, normalise

Fields = TypeVar("Fields", bound=BaseModel)


class Problem(NamedTuple):
    """One thing that is wrong.

    `line` is the file's line on which the row begins; `column` is empty for the whole row.
    """

    file: str
    line: int
    column: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"{self.file}:{self.line}", self.column, self.reason)))


class InvalidRows(InvalidInput):
    """Rows were refused, and nothing was written.

    `problems` holds all of them, by file in loading order and by line.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(
            problems, key=lambda problem: (list(ROW_OF).index(problem.file), problem.line)
        )
        rows = len({(problem.file, problem.line) for problem in self.problems})
        total = f"nothing was loaded: {len(self.problems)} problems in {rows} rows"
        super().__init__("\n".join([*map(str, self.problems), total]))


@dataclass(frozen=True)
class Entry:
    """A row as it was read.

    `cells` are those that are not empty, by column; `row` is None when the row was refused.
    """

    line: int
    key: RowKey
    cells: dict[str, str]
    row: Row | None


@dataclass
class Sheet:
    """One file. `columns` are those of its header; empty when the header was refused."""

    kind: type[Row]
    columns: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, line: int, column: str, reason: str) -> None:
        self.problems.append(Problem(self.kind.file, line, column, reason))


def read_folder(folder: Path, zone: ZoneInfo) -> dict[str, Sheet]:
    """Return the validated files of a folder, by file name in loading order.

    Each sheet's `problems` hold what is wrong.

    Raises:
        InvalidInput: The folder does not exist, cannot be read, has none of the known files, or has
            a CSV file that is not known.
    """
    known = ", ".join(ROW_OF)
    try:
        found = {path.name: path for path in folder.iterdir() if path.suffix.lower() == ".csv"}
        if unknown := sorted(found.keys() - ROW_OF.keys()):
            raise InvalidInput(
                f"{folder}: {', '.join(unknown)}: unknown file; rename or remove it, the files of a"
                f" school are {known}"
            )
        if not found:
            raise InvalidInput(
                f"{folder} holds no file of a school; put at least one of these there: {known}"
            )
        return {
            kind.file: _read(kind, found[kind.file].read_bytes(), zone)
            for kind in ROWS
            if kind.file in found
        }
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from error


def _read(kind: type[Row], content: bytes, zone: ZoneInfo) -> Sheet:
    sheet = Sheet(kind)
    records = _records(content.decode("utf-8-sig", "surrogateescape"))
    line, header = next(records, (1, []))
    if isinstance(header, csv.Error):
        sheet.refuse(line, "", _not_csv(header))
        return sheet
    header = [cell.strip() for cell in header]
    if not _header_is_sound(sheet, line, header):
        return sheet
    sheet.columns = header
    first: dict[tuple[str, RowKey], int] = {}
    for line, cells in records:
        if isinstance(cells, csv.Error):
            sheet.refuse(line, "", _not_csv(cells))
        else:
            _add(sheet, line, cells, zone, first)
    return sheet


def _records(text: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield the rows that are not blank, each with the line on which it begins.

    Text that is not CSV ends them with an error.
    """
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, error
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _not_csv(error: csv.Error) -> str:
    return (
        f"cannot be read as CSV from here on ({error}); put the cell in quotes and double the"
        " quotes inside it"
    )


def _header_is_sound(sheet: Sheet, line: int, header: list[str]) -> bool:
    columns = sheet.kind.columns()
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        sheet.refuse(
            line, "", "the cells are not separated by commas; save the file as comma-separated"
        )
        return False
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
            " a comma",
        )
    else:
        row, wrong = validate(kind, cells, zone)
        for column, reason in wrong:
            sheet.refuse(line, column, reason)
    key = kind.identify(cells.get(kind.key_column, ""))
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
            )
    sheet.entries.append(Entry(line, key, cells, row if len(sheet.problems) == earlier else None))


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
