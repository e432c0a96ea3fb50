"""The same school from CSV files and spreadsheets, on both databases; and what cannot be read."""

import csv
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
import xlsxwriter
from nightshift.errors import InvalidInput
from sqlalchemy.orm import Session

from services.school import tables
from services.school.loading import InvalidRows, check
from tests.services.school.builders import ZURICH, bring, contents, problems, write

EXAMPLE = Path(__file__).parents[3] / "examples" / "school"


def read_example() -> dict[str, list[list[str]]]:
    return {
        path.stem: list(csv.reader(StringIO(path.read_text("utf-8"), newline="")))
        for path in sorted(EXAMPLE.glob("*.csv"))
    }


def as_value(column: str, cell: str) -> Any:
    """Return what a spreadsheet program makes of a cell that a person types."""
    if column in ("starts", "ends") and cell[2:3] == ":":
        return time.fromisoformat(cell)
    if column in ("starts", "ends") and len(cell) == len("2026-05-04"):
        return date.fromisoformat(cell)
    if column in ("starts", "ends") and len(cell) == len("2026-05-04T08:15"):
        return datetime.fromisoformat(cell)
    if column in ("weekday", "graduation_year") and cell.isdigit():
        return int(cell)
    return cell or None


def write_xlsx(
    file: Path, sheets: dict[str, list[list[str]]], *, far: tuple[int, int] | None = None
) -> None:
    """Write a workbook; with `far`, one whose last cell, by its position, is not the tables'."""
    with xlsxwriter.Workbook(file) as book:
        formats = {
            date: book.add_format({"num_format": "dd.mm.yyyy"}),
            datetime: book.add_format({"num_format": "dd.mm.yyyy hh:mm"}),
            time: book.add_format({"num_format": "hh:mm"}),
        }
        for name, (header, *rows) in sheets.items():
            sheet = book.add_worksheet(name)
            sheet.write_row(0, 0, header)
            for number, row in enumerate(rows, 1):
                for position, pair in enumerate(zip(header, row, strict=True)):
                    value = as_value(*pair)
                    if type(value) in formats:
                        sheet.write_datetime(number, position, value, formats[type(value)])
                    else:
                        sheet.write(number, position, value)
            if far:
                sheet.write(*far, "x")
        book.add_worksheet("Sheet9")  # an empty one, as Excel leaves it
        choices = book.add_worksheet("Choices")  # of a form
        choices.write("A1", "teacher")
        choices.hide()


def write_ods(file: Path, sheets: dict[str, list[list[str]]]) -> None:
    tables = "".join(
        f'<table:table table:name="{name}">{_write_rows(rows)}</table:table>'
        for name, rows in sheets.items()
    )
    names = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "table", "text", "manifest")
    )
    content = (
        f"<office:document-content {names}><office:body><office:spreadsheet>{tables}"
        "</office:spreadsheet></office:body></office:document-content>"
    )
    with zipfile.ZipFile(file, "w") as parts:
        parts.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        parts.writestr("META-INF/manifest.xml", f"<manifest:manifest {names}/>")
        parts.writestr("content.xml", content)


def _write_rows(rows: list[list[str]]) -> str:
    header = rows[0]
    return "".join(
        "<table:table-row>"
        + "".join(
            _write_cell(as_value(column, cell) if row is not header else cell)
            for column, cell in zip(header, row, strict=True)
        )
        + "</table:table-row>"
        for row in rows
    )


def _write_cell(value: Any) -> str:
    match value:
        case None:
            return "<table:table-cell/>"
        case date():
            about = f'date" office:date-value="{value.isoformat()}'
        case time():
            about = f'time" office:time-value="PT{value:%H}H{value:%M}M00S'
        case int():
            about = f'float" office:value="{value}'
        case _:
            about = "string"
    text = "".join(f"<text:p>{escape(line)}</text:p>" for line in str(value).split("\n"))
    return f'<table:table-cell office:value-type="{about}">{text}</table:table-cell>'


def write_csv(
    folder: Path, encoding: str, separator: str = ",", *, hint: str = "", extra: str = ""
) -> None:
    for name, rows in read_example().items():
        out = StringIO(newline="")
        csv.writer(out, delimiter=separator).writerows(rows)
        text = out.getvalue().replace("\r\n", f"{extra}\r\n")
        (folder / f"{name}.csv").write_bytes((hint + text).encode(encoding, "ignore"))


def write_workbook(suffix: str) -> Callable[[Path], None]:
    def write_one(folder: Path) -> None:
        {".xlsx": write_xlsx, ".ods": write_ods}[suffix](folder / f"school{suffix}", read_example())

    return write_one


def write_one_each(folder: Path) -> None:
    for name, rows in read_example().items():
        # A file with one sheet may have the table's name, whatever the sheet's is.
        with xlsxwriter.Workbook(folder / f"{name}.xlsx") as book:
            sheet = book.add_worksheet()
            for number, row in enumerate(rows):
                for position, cell in enumerate(row):
                    sheet.write_string(number, position, cell)


@pytest.mark.parametrize(
    ("write_school", "encoding"),
    [
        (write_workbook(".xlsx"), "utf-8"),
        (write_workbook(".ods"), "utf-8"),
        (write_one_each, "utf-8"),
        (lambda folder: write_csv(folder, "utf-8", ";"), "utf-8"),
        (lambda folder: write_csv(folder, "utf-8-sig", "\t"), "utf-8"),
        (lambda folder: write_csv(folder, "utf-8", "|", hint="sep=|\r\n"), "utf-8"),
        (lambda folder: write_csv(folder, "utf-8", ";", extra=";;"), "utf-8"),
        (lambda folder: write_csv(folder, "utf-16", "\t"), "utf-16"),
    ],
    ids=["xlsx", "ods", "one each", "semicolons", "tabs", "hint", "empty", "utf-16"],
)
def test_same_school_in_another_form_gives_the_same_rows(
    session: Session, tmp_path: Path, write_school: Callable[[Path], None], encoding: str
) -> None:
    bring(session, EXAMPLE)
    before = contents(session)
    write_school(tmp_path)

    loaded = bring(session, tmp_path, encoding=encoding)

    assert {name: rows for name, (rows, _) in loaded.items()} == {
        name: len([row for row in rows[1:] if any(row)]) for name, rows in read_example().items()
    }
    assert not any(written for _, written in loaded.values())
    assert contents(session) == before


def test_windows_1252_is_read_where_it_is_named(session: Session, tmp_path: Path) -> None:
    write_csv(tmp_path, "windows-1252", ";")
    for file in tmp_path.iterdir():
        (tmp_path / "utf8").mkdir(exist_ok=True)
        if file.suffix == ".csv":
            text = file.read_bytes().decode("windows-1252")
            (tmp_path / "utf8" / file.name).write_bytes(text.encode())
    bring(session, tmp_path / "utf8")
    before = contents(session)
    assert not any(
        row.written for row in bring(session, tmp_path, encoding="windows-1252").values()
    )
    assert contents(session) == before


def test_one_file_is_a_school_too(session: Session, tmp_path: Path) -> None:
    write_xlsx(tmp_path / "everything.xlsx", read_example())
    loaded = bring(session, tmp_path / "everything.xlsx")
    assert loaded["users"].written == len(read_example()["users"]) - 1


def test_dates_as_excel_writes_them_are_read(session: Session, tmp_path: Path) -> None:
    iso = "id,state,title,starts,ends\n"
    write(
        tmp_path,
        {
            "events.csv": iso
            + "a,draft,A,2026-05-04T08:05,2026-05-04T18:00\nb,draft,B,2026-05-04,2026-05-05\n"
        },
    )
    bring(session, tmp_path)
    excel = "id;state;title;starts;ends\n"
    write(
        tmp_path,
        {
            "events.csv": excel
            + "a;draft;A;04.05.2026 8:05;4.5.2026 18:00\nb;draft;B;4.5.2026;05.05.2026\n"
        },
    )
    assert bring(session, tmp_path)["events"] == (2, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (27.0, "27"),
        (27.5, "27.5"),
        (datetime.fromisoformat("2026-05-04T08:19:59.999990"), "2026-05-04T08:20"),
        (datetime.fromisoformat("2026-05-04T08:20:30"), "2026-05-04T08:20:30"),
        (date(2026, 5, 4), "2026-05-04"),
        (time(8, 15), "08:15"),
        (timedelta(hours=8, minutes=15), "08:15"),
        (timedelta(days=2), "2 days, 0:00:00"),
        (" x ", " x "),
    ],
)
def test_value_of_a_spreadsheet_is_written_out(value: Any, text: str) -> None:
    assert tables._write_out(value) == text


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (
            "name\nMüller\n".encode("latin-1"),
            2,
            (
                "is not UTF-8, but seems to be Latin-1: 'Müller'; save the file as UTF-8, or load"
                " it with --encoding latin-1 where that is the right word"
            ),
        ),
        (
            "name\nA\n–Müller–,x\n".encode("windows-1252"),
            3,
            (
                "is not UTF-8, but seems to be Windows-1252: '–Müller–'; save the file as UTF-8, or"
                " load it with --encoding windows-1252 where that is the right word"
            ),
        ),
        (
            "name\nA\n".encode("utf-16"),
            1,
            "is UTF-16; save the file as UTF-8, or load it with --encoding utf-16",
        ),
    ],
)
def test_encoding_is_named(
    session: Session, tmp_path: Path, content: bytes, line: int, reason: str
) -> None:
    (tmp_path / "departments.csv").write_bytes(content)
    assert problems(session, tmp_path) == [("departments.csv", line, "", reason, "")]


def test_byte_that_the_given_encoding_lacks_is_named(session: Session, tmp_path: Path) -> None:
    (tmp_path / "departments.csv").write_bytes(b"name\n\x81\n")
    with pytest.raises(InvalidRows, match="is not windows-1252: byte 0x81 means nothing there"):
        bring(session, tmp_path, encoding="windows-1252")


@pytest.mark.parametrize("bad", ["\x00", "\u202e", "a\x1fb"])
def test_reference_that_no_database_can_hold_is_refused(
    session: Session, tmp_path: Path, bad: str
) -> None:
    write(tmp_path, {"classes.csv": f"name,department\n27Ga,X{bad}\n{bad},\n"})
    assert [(problem.line, problem.column) for problem in problems(session, tmp_path)] == [
        (2, "department"),
        (3, "name"),
    ]


def refuse(session: Session, path: Path) -> str:
    before = contents(session)
    with pytest.raises(InvalidInput) as refused:
        bring(session, path)
    assert contents(session) == before
    return str(refused.value)


def test_workbook_that_is_none_is_named(session: Session, tmp_path: Path) -> None:
    (tmp_path / "users.xlsx").write_bytes(b"no zip")
    assert refuse(session, tmp_path) == (
        "users.xlsx: is no spreadsheet, or has a password; open it in a spreadsheet program, and"
        " save it again without one"
    )


def test_damaged_workbook_is_named(session: Session, tmp_path: Path) -> None:
    write_xlsx(tmp_path / "school.xlsx", read_example())
    with zipfile.ZipFile(tmp_path / "school.xlsx") as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    parts["xl/worksheets/sheet1.xml"] = parts["xl/worksheets/sheet1.xml"][:-200] + b"<<<"
    with zipfile.ZipFile(tmp_path / "school.xlsx", "w") as spoilt:
        for name, content in parts.items():
            spoilt.writestr(name, content)
    assert refuse(session, tmp_path).startswith("school.xlsx: cannot be read (")


def test_workbook_that_would_fill_the_memory_is_refused(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_xlsx(tmp_path / "school.xlsx", read_example(), far=(1_048_575, 16_383))
    assert "its last cell is XFD1048576; delete the rows" in refuse(session, tmp_path)
    monkeypatch.setattr(tables, "LARGEST_UNPACKED", 10_000)
    assert "the limit is 10,000" in refuse(session, tmp_path)
    monkeypatch.setattr(tables, "LARGEST_FILE", 1_000)
    assert "the limit is 1,000; split the table" in refuse(session, tmp_path)


def test_table_in_two_places_is_refused(session: Session, tmp_path: Path) -> None:
    write_xlsx(tmp_path / "school.xlsx", read_example())
    shutil.copy(EXAMPLE / "users.csv", tmp_path)
    assert refuse(session, tmp_path) == (
        "users.csv: school.xlsx[users] has the table users, too; keep one of the two"
    )


@pytest.mark.parametrize("name", ["school.xls", "school.xlsm", "school.numbers"])
def test_other_kinds_of_spreadsheets_are_named(session: Session, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert refuse(session, tmp_path) == (
        f"{name}: such a file is not read; save it as .csv, .xlsx or .ods"
    )


def test_unknown_sheet_is_refused_and_an_editors_own_files_are_not_read(
    session: Session, tmp_path: Path
) -> None:
    sheets = read_example()
    write_xlsx(tmp_path / "school.xlsx", sheets)
    (tmp_path / "~$school.xlsx").write_bytes(b"lock")
    bring(session, tmp_path)
    write_xlsx(tmp_path / "school.xlsx", {**sheets, "Notes": [["x"], ["y"]]})
    assert refuse(session, tmp_path).startswith("school.xlsx[Notes]: unknown table; rename or")


def test_problem_names_the_sheet_the_row_the_column_and_the_value(
    session: Session, tmp_path: Path
) -> None:
    sheets = read_example()
    column = sheets["users"][0].index("role")
    sheets["users"][3][column] = "principal"
    write_xlsx(tmp_path / "school.xlsx", sheets)
    with pytest.raises(InvalidRows) as refused:
        bring(session, tmp_path)
    [problem] = refused.value.problems
    assert problem[:3] == ("school.xlsx[users]", 4, "role")
    assert problem.value == "principal"


def test_check_says_what_a_load_would_and_writes_nothing(session: Session, tmp_path: Path) -> None:
    before = contents(session)
    counts = check(session, EXAMPLE, zone=ZURICH)
    assert contents(session) == before
    assert counts == {name: rows for name, (rows, _) in bring(session, EXAMPLE).items()}
    write(tmp_path, {"classes.csv": "name,department\n27Ga,Nothing\n"})
    with pytest.raises(InvalidRows, match="there is no department 'Nothing'"):
        check(session, tmp_path, zone=ZURICH)


def test_address_that_the_outbox_would_refuse_is_refused(session: Session, tmp_path: Path) -> None:
    rows = "email,first_name,last_name,role\na@schule.local,A,B,teacher\n"
    write(tmp_path, {"users.csv": rows})
    [problem] = problems(session, tmp_path)
    assert problem[:3] == ("users.csv", 2, "email")
    assert "'a@schule.local' is no address that mail can be sent to" in problem.reason


def test_random_bytes_end_in_a_message(session: Session, tmp_path: Path) -> None:
    write_xlsx(tmp_path / "departments.xlsx", {"departments": [["name"], ["A"]]})
    good = (tmp_path / "departments.xlsx").read_bytes()
    for position in range(0, len(good), 97):
        spoilt = bytearray(good)
        spoilt[position] ^= 0xFF
        (tmp_path / "departments.xlsx").write_bytes(bytes(spoilt))
        with suppress(InvalidInput):
            bring(session, tmp_path)
