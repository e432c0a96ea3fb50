"""A timetable from a folder, a spreadsheet and an address."""

import shutil
from datetime import date, time
from pathlib import Path

import pytest
import xlsxwriter
from nightshift.errors import InvalidInput

from services.school.timetable.source import Question, Term
from services.school.timetable.tables import Tables
from tests.services.school.timetable.builders import FIRST, LAST, MONDAY, TERM, make_paper

QUESTION = Question(date(2026, 11, 21), (Term(TERM, FIRST, LAST),))


def not_asked(address: str) -> bytes:
    raise AssertionError(address)


@pytest.fixture
def paper():
    paper = make_paper()
    paper.change("L0000", MONDAY, cancelled=True)
    paper.change("L0001", MONDAY, room="Aula", teachers=("T000", "T001"))
    paper.change("L0002", MONDAY, moved_to=date(2026, 12, 1), starts=time(16), ends=time(17))
    return paper


def test_folder_says_what_is_written(paper, tmp_path):
    folder = paper.write(tmp_path / "timetable")

    assert Tables(str(folder), not_asked).read(QUESTION) == paper.read(QUESTION)


def test_address_of_a_folder_has_all_four_files(paper, tmp_path):
    folder = paper.write(tmp_path / "timetable")
    asked = []

    def fetch(address: str) -> bytes:
        asked.append(address)
        return (folder / address.rpartition("/")[2]).read_bytes()

    found = Tables("https://school.example/plan/", fetch).read(QUESTION)

    assert found == paper.read(QUESTION)
    assert asked == [
        f"https://school.example/plan/{name}.csv"
        for name in ("teachers", "classes", "lessons", "changes")
    ]


def test_address_of_a_spreadsheet(paper, tmp_path):
    folder = paper.write(tmp_path / "timetable")
    book = tmp_path / "plan.xlsx"
    with xlsxwriter.Workbook(book) as workbook:
        for file in sorted(folder.iterdir()):
            sheet = workbook.add_worksheet(file.stem)
            for row, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
                sheet.write_row(row, 0, line.split(","))

    found = Tables("https://school.example/plan.xlsx?key=1", lambda _: book.read_bytes())

    assert found.read(QUESTION) == paper.read(QUESTION)


def test_lessons_alone_name_classes_and_teachers_and_say_nothing_of_dates(paper, tmp_path):
    folder = paper.write(tmp_path / "timetable")
    for name in ("teachers", "classes", "changes"):
        (folder / f"{name}.csv").unlink()

    found = Tables(str(folder), not_asked).read(QUESTION)

    assert (found.teachers, found.classes, found.changes) == (None, None, None)
    assert len(found.lessons) == 12


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "lessons.csv",
            "id,semester,weekday,starts,ends,subject\nL1,H,mon,8:00,7:00,M\n",
            "lessons.csv:2: ends: is not after starts (07:00 <= 08:00)",
        ),
        (
            "changes.csv",
            "lesson,date\nL1,2026-13-01\n",
            "changes.csv:2: date: 2026-13-01 is not in the calendar",
        ),
        ("changes.csv", "lesson\nL1\n", "changes.csv:1: date: this column is missing"),
        (
            "classes.csv",
            "id,name\n1,A\n1,B\n",
            "classes.csv:3: id: '1' stands already on line 2; keep one of the two",
        ),
        (
            "teachers.csv",
            "id,email\n1,nobody\n",
            "teachers.csv:2: email: 'nobody' is no address",
        ),
    ],
)
def test_what_is_wrong_is_named(paper, tmp_path, file, content, said):
    folder: Path = paper.write(tmp_path / "timetable")
    (folder / file).write_text(content, encoding="utf-8")

    with pytest.raises(InvalidInput) as refused:
        Tables(str(folder), not_asked).read(QUESTION)

    assert str(refused.value).startswith(said)


def test_address_of_another_file_is_refused():
    with pytest.raises(InvalidInput, match=r"plan.pdf: such a file is not read; name one that"):
        Tables("https://school.example/plan.pdf", not_asked).read(QUESTION)


def test_folder_without_lessons_is_refused(paper, tmp_path):
    folder = paper.write(tmp_path / "timetable")
    (folder / "lessons.csv").unlink()

    with pytest.raises(InvalidInput, match="there is no table of lessons"):
        Tables(str(folder), not_asked).read(QUESTION)


def test_folder_that_is_not_there_is_refused(paper, tmp_path):
    folder = paper.write(tmp_path / "timetable")
    shutil.rmtree(folder)

    with pytest.raises(InvalidInput, match="No such file or directory"):
        Tables(str(folder), not_asked).read(QUESTION)
