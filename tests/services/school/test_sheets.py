"""CSV files as sheets of cells: what is read, and what is refused on its line."""

import csv
import io
import shutil
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from nightshift.errors import InvalidInput
from sqlalchemy.orm import Session

from services.school.models import (
    Department,
)
from services.school.sheets import Problem, read_sheets
from tests.services.school.builders import (
    ZURICH,
    bring,
    pairs,
    problems,
    write,
)

UNCLOSED = (
    "cannot be read as CSV from here on (unexpected end of data); put the cell in quotes and double"
    " the quotes inside it"
)


def test_byte_order_mark_and_crlf_are_read(session: Session, tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {"departments.csv": '\ufeffname,description\r\nA,"one\r\ntwo"\r\n\r\n,\r\nB,x\r\n'},
    )

    assert bring(session, folder) == {"departments": (2, 2)}
    assert pairs(session, Department.name, Department.description) == {
        ("A", "one\ntwo"),
        ("B", "x"),
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            'name,description\nA,"one\ntwo\n\nthree"\n\nB,x,y\n',
            (7, "", "has 3 cells, the header 2; quote a cell that contains a separator"),
        ),
        (
            "name,description\nA,\nA,\n",
            (3, "name", "'A' stands already on line 2; keep one of the two"),
        ),
        (
            "name,description\nA,a\x00b\n",
            (2, "description", "contains the control character U+0000; remove it"),
        ),
        (
            "name,description\nA,\x1f\n",
            (
                2,
                "description",
                "contains the control character U+001F; replace it by a line break or a space",
            ),
        ),
        (
            "name,nmae\n",
            (
                1,
                "nmae",
                "unknown column; the columns are name, letter, description, colour, locale",
            ),
        ),
        ("name,name\nA,B\n", (1, "name", "stands 2 times in the header; keep one")),
        ("letter\nA\n", (1, "name", "this column is missing; add it to the header")),
        ("", (1, "name", "this column is missing; add it to the header")),
        (
            "name|letter\nA|B\n",
            (
                1,
                "name|letter",
                "unknown column; the columns are name, letter, description, colour, locale",
            ),
        ),
        ("name,locale\nA,it\n", (2, "locale", "must be de, fr or en, not 'it'")),
        (f"name,letter\nA,{'x' * 11}\n", (2, "letter", "is 11 characters long; shorten it to 10")),
        (
            "name\nA;B\n",
            (2, "name", "a name that others refer to cannot contain ';', a line break or a tab"),
        ),
        (
            'name,letter\nA,"b\nC,d\n',
            (
                2,
                "",
                UNCLOSED,
            ),
        ),
    ],
)
def test_file_that_is_not_sound_is_refused(
    session: Session, tmp_path: Path, content: str, expected: tuple[int, str, str]
) -> None:
    found = problems(session, write(tmp_path, {"departments.csv": content}))

    assert found[0] == Problem("departments.csv", *expected)
    # A header with one wrong column misses the right one as well.
    assert len(found) == 1 + ("|" in content)


def test_folder_that_is_no_school_is_refused(session: Session, tmp_path: Path) -> None:
    known = (
        "departments, classes, users, semesters, holidays, lessons, events, event_dates,"
        " subscriptions"
    )
    with pytest.raises(InvalidInput) as absent:
        bring(session, tmp_path / "absent")
    with pytest.raises(InvalidInput) as empty:
        bring(session, tmp_path)
    write(tmp_path, {"event.csv": "", "notes.txt": ""})
    with pytest.raises(InvalidInput) as unknown:
        bring(session, tmp_path)

    assert str(absent.value) == f"{tmp_path / 'absent'}: No such file or directory"
    assert str(empty.value) == (
        f"{tmp_path} holds no table of a school; put at least one of these there, as a .csv file,"
        f" or as a sheet of an .xlsx or .ods file: {known}"
    )
    assert str(unknown.value) == (
        f"event.csv: unknown table; rename or remove it, the tables of a school are {known}"
    )


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=8))
def test_whatever_stands_in_a_file_is_read_or_refused_on_its_own_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    lines, out = [], io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["name", "description"])
    for row in rows:
        # An editor counts a lone carriage return as the end of a line, too.
        lines.append(1 + out.getvalue().replace("\r\n", "\n").replace("\r", "\n").count("\n"))
        writer.writerow(row)
    folder = tmp_path_factory.mktemp("any")
    (folder / "departments.csv").write_bytes(out.getvalue().encode())

    sheet = read_sheets(folder, ZURICH)["departments.csv"]
    shutil.rmtree(folder)

    refused = {problem.line for problem in sheet.problems}
    assert {entry.line for entry in sheet.entries} | refused <= set(lines)
    assert {entry.line for entry in sheet.entries if entry.values is None} == refused
    assert {
        line for line, row in zip(lines, rows, strict=True) if any(map(str.strip, row[2:]))
    } <= refused
