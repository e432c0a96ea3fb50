"""Find a school's tables in CSV files and spreadsheets, and read their cells as text.

A table is `users.csv`, or the sheet `users` of any `.xlsx` or `.ods` file; a file with one sheet
may have the table's name in the sheet's place: `users.xlsx`. All kinds give the same text, so the
rules of the cells are the same for all.
"""

import csv
import re
import zlib
from collections.abc import Collection, Iterator
from datetime import date, datetime, time, timedelta
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

from nightshift.errors import InvalidInput, first_line
from python_calamine import (
    CalamineError,
    CalamineWorkbook,
    PasswordError,
    SheetTypeEnum,
    SheetVisibleEnum,
)

WORKBOOKS = (".xlsx", ".ods")
# Saved by other programs, or by older ones.
OTHER_WORKBOOKS = (".xls", ".xlsb", ".xlsm", ".numbers", ".fods")

# Bytes of a file, and of what a workbook unpacks to; and cells of a sheet, which are in memory at
# once: ten times what the largest school has.
LARGEST_FILE = 200_000_000
LARGEST_UNPACKED = 1_000_000_000
MOST_CELLS = 20_000_000

SEPARATORS = ",;\t"

_DIMENSION = re.compile(rb'<dimension ref="(?:[A-Z]+\d+:)?([A-Z]+)(\d+)"')


class Unreadable(Exception):
    """A table cannot be read from this line on. `reason` says why and how to correct it."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class Table(NamedTuple):
    """A table as it was found.

    `place` is how a message names it: `users.csv`, `school.xlsx[users]`. `records` yields the rows
    that are not blank, each with the number of its first line, or of its row; it raises Unreadable.
    """

    place: str
    records: Iterator[tuple[int, list[str]]]


def find_tables(
    path: Path, names: Collection[str], *, header: Collection[str], encoding: str = "utf-8"
) -> dict[str, Table]:
    """Return the tables called `names` that a folder, or one file, has.

    `header` has the columns' names, by which the separator of a CSV file is known; `encoding` is
    that of CSV files, as Python names it.

    Raises:
        InvalidInput: A file or a sheet is unknown, cannot be read, or is too large; two of them
            hold the same table; there is none.

    """
    known = ", ".join(names)
    tables: dict[str, Table] = {}
    try:
        path.stat()
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            for name, table in _open(file, path, header, encoding):
                if name not in names:
                    raise InvalidInput(
                        f"{table.place}: unknown table; rename or remove it, the tables of a school"
                        f" are {known}"
                    )
                if name in tables:
                    raise InvalidInput(
                        f"{table.place}: {tables[name].place} has the table {name}, too; keep one"
                        " of the two"
                    )
                tables[name] = table
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from error
    if not tables:
        raise InvalidInput(
            f"{path} holds no table of a school; put at least one of these there, as a .csv file,"
            f" or as a sheet of an .xlsx or .ods file: {known}"
        )
    return tables


def _open(
    file: Path, given: Path, header: Collection[str], encoding: str
) -> Iterator[tuple[str, Table]]:
    """Yield the tables of a file by their names: of one that holds none, nothing."""
    kind = file.suffix.lower()
    # Not what an editor puts beside an open file.
    if file.name.startswith(("~$", ".")):
        return
    if kind in OTHER_WORKBOOKS or (file == given and kind not in (".csv", *WORKBOOKS)):
        raise InvalidInput(f"{file.name}: such a file is not read; save it as .csv, .xlsx or .ods")
    if kind not in (".csv", *WORKBOOKS):
        return
    if (size := file.stat().st_size) > LARGEST_FILE:
        raise InvalidInput(
            f"{file.name}: has {size:,} bytes, the limit is {LARGEST_FILE:,}; split the table, and"
            " load the parts one after the other"
        )
    content = file.read_bytes()
    if kind == ".csv":
        yield file.stem, Table(file.name, _read_csv(content, header, encoding))
        return
    sheets = dict(_open_workbook(file.name, content))
    alone = file.stem if len(sheets) == 1 else None
    for name, rows in sheets.items():
        yield alone or name.strip().lower(), Table(f"{file.name}[{name}]", _read_sheet(rows))


# --- spreadsheets ---


def _open_workbook(name: str, content: bytes) -> Iterator[tuple[str, list[list[Any]]]]:
    """Yield the visible sheets that are not empty, with their cells."""
    _check_size(name, content)
    try:
        workbook = CalamineWorkbook.from_filelike(BytesIO(content))
        for sheet in workbook.sheets_metadata:
            # A hidden one holds what a form chooses from.
            if (sheet.typ, sheet.visible) == (SheetTypeEnum.WorkSheet, SheetVisibleEnum.Visible):
                rows = workbook.get_sheet_by_name(sheet.name).to_python(skip_empty_area=False)
                if rows:
                    yield sheet.name, rows
    except PasswordError as error:
        raise InvalidInput(f"{name}: has a password; save it without one") from error
    except CalamineError as error:
        raise InvalidInput(
            f"{name}: cannot be read ({first_line(error)}); open it in a spreadsheet program, and"
            " save it again"
        ) from error


def _check_size(name: str, content: bytes) -> None:
    """Refuse a workbook that would fill the memory, before it is unpacked."""
    try:
        with ZipFile(BytesIO(content)) as parts:
            if (size := sum(part.file_size for part in parts.infolist())) > LARGEST_UNPACKED:
                raise InvalidInput(
                    f"{name}: unpacks to {size:,} bytes, the limit is {LARGEST_UNPACKED:,}"
                )
            for part in parts.infolist():
                if part.filename.startswith("xl/worksheets/") and not part.is_dir():
                    with parts.open(part) as sheet:
                        _check_extent(name, sheet.read(4096))
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise InvalidInput(
            f"{name}: is no spreadsheet, or has a password; open it in a spreadsheet program, and"
            " save it again without one"
        ) from error


def _check_extent(name: str, beginning: bytes) -> None:
    if not (found := _DIMENSION.search(beginning)):
        return
    column = 0
    for letter in found[1]:
        column = 26 * column + letter - ord("A") + 1
    if column * int(found[2]) > MOST_CELLS:
        raise InvalidInput(
            f"{name}: its last cell is {(found[1] + found[2]).decode()}; delete the rows and"
            " columns that are beside the table and look empty"
        )


def _read_sheet(rows: list[list[Any]]) -> Iterator[tuple[int, list[str]]]:
    for number, row in enumerate(rows, 1):
        cells = [_write_out(cell) for cell in row]
        if any(cells):
            yield number, cells


def _write_out(cell: Any) -> str:
    """Return a spreadsheet's value as it would stand in a CSV file."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float) and cell.is_integer():
        return f"{cell:.0f}"
    if isinstance(cell, datetime):
        return _write_instant(cell)
    # OpenDocument's times of day are durations.
    if isinstance(cell, timedelta) and cell.days == 0:
        cell = (datetime.combine(date.min, time.min) + cell).time()
    if isinstance(cell, time):
        return _write_instant(datetime.combine(date(2000, 1, 1), cell)).partition("T")[2]
    return cell if isinstance(cell, str) else str(cell)


def _write_instant(moment: datetime) -> str:
    # A time of day is a fraction of a day there, and 08:20 is not exactly one.
    shown = (moment + timedelta(milliseconds=500)).replace(microsecond=0)
    return shown.isoformat(timespec="seconds" if shown.second else "minutes")


# --- CSV ---


def _read_csv(
    content: bytes, header: Collection[str], encoding: str
) -> Iterator[tuple[int, list[str]]]:
    text = _decode(content, encoding)
    # Excel reads this line and shows it to nobody.
    hint = re.match(r"sep=(.)\r?\n", text)
    separator = hint[1] if hint else _find_separator(text, header)
    skipped = 1 if hint else 0
    reader = csv.reader(
        StringIO(text[hint.end() :] if hint else text, newline=""), strict=True, delimiter=separator
    )
    while True:
        line = reader.line_num + 1 + skipped
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Unreadable(
                line,
                f"cannot be read as CSV from here on ({error}); put the cell in quotes and double"
                " the quotes inside it",
            ) from error
        if any(cell.strip() for cell in cells):
            yield line, cells


def _find_separator(text: str, header: Collection[str]) -> str:
    """Return what separates the cells of the first line: that which gives most known columns."""
    first = text.lstrip("\r\n").partition("\n")[0]

    def count_known(separator: str) -> int:
        return sum(cell.strip().strip('"') in header for cell in first.split(separator))

    return max(SEPARATORS, key=count_known)


def _decode(content: bytes, encoding: str) -> str:
    """Return a file's text. Raises Unreadable, and names the encoding that it seems to have."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        if "16" in encoding:
            return content.decode("utf-16", "replace")
        raise Unreadable(1, "is UTF-16; save the file as UTF-8, or load it with --encoding utf-16")
    try:
        return content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, _explain_encoding(content, error.start, encoding)) from error


def _explain_encoding(content: bytes, position: int, encoding: str) -> str:
    if encoding != "utf-8":
        return (
            f"is not {encoding}: byte 0x{content[position]:02X} means nothing there; name another"
            " encoding, or save the file as UTF-8"
        )
    # What Windows-1252 has beside Latin-1 stands where Latin-1 has control characters only.
    windows = re.search(rb"[\x80-\x9f]", content) is not None
    found, option = ("Windows-1252", "windows-1252") if windows else ("Latin-1", "latin-1")
    word = _find_word(content, position).decode(option, "replace")
    return (
        f"is not UTF-8, but seems to be {found}: {word!r}; save the file as UTF-8, or load it with"
        f" --encoding {option} where that is the right word"
    )


def _find_word(content: bytes, position: int) -> bytes:
    """Return the word around a byte."""
    ends = rb"[\s,;\"]"
    before = re.split(ends, content[max(0, position - 30) : position])[-1]
    return before + re.split(ends, content[position : position + 30])[0]
