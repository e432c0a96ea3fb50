import csv
import io
import shutil
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.orm import Session

from services.database import Base
from services.errors import InvalidInput
from services.school.loading import InvalidRows, load
from services.school.models import (
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    EventState,
    EventUser,
    IgnoredEvent,
    Lesson,
    LessonClass,
    LessonTeacher,
    Role,
    SchoolClass,
    Semester,
    SubscribedClass,
    SubscribedDepartment,
    Subscription,
    User,
)
from services.school.rows import YEARS, EventRow, event_id
from services.school.sheets import Problem, read_folder

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ZURICH = ZoneInfo("Europe/Zurich")
EXAMPLE = Path(__file__).parents[3] / "examples" / "school"

SCHOOL = {
    "departments.csv": "name,locale\nGymnasium,de\nBibliothek & Kultur,fr\n",
    "classes.csv": "name,department\n27Ga,Gymnasium\n27GA,Gymnasium\n28Wb,\n",
    "users.csv": (
        "email,first_name,last_name,role,class,untis_id\n"
        "Juerg@schule.example,Jürg,Müller,teacher,,MÜL\n"
        "anna@schule.example,Anna,Aebischer,student,27Ga,S1\n"
        "beat@schule.example,Beat,Bühler,student,27GA,\n"
    ),
    "semesters.csv": "name,starts,ends\nHerbst,2026-08-01,2027-01-31\n",
    "lessons.csv": (
        "id,semester,weekday,starts,ends,subject,classes,teachers,class_teacher\n"
        "L1,Herbst,mon,7:45,09:20,Mathematik,27Ga; 27GA,juerg@schule.example,yes\n"
    ),
    "events.csv": (
        "id,author,state,title,starts,ends,classes,class_groups,departments,users,version_of,cancelled\n"
        "sport-neu,,review,Sporttag 2,2026-12-03,2026-12-04,,,,,sport,\n"
        "sport,juerg@schule.example,published,Sporttag,2026-12-03,2026-12-03,27Ga;27GA,28W,Bibliothek & Kultur,"
        "BEAT@schule.example,,2026-11-20T16:45\n"
        "3F0C2A54-8d1b-4e0e-9a6f-0b6a1d2c7e55,,published,Abgabe,2026-11-30T23:59,2026-11-30T23:59,,,,,,\n"
    ),
    "subscriptions.csv": (
        "email,follows_me,departments,classes,ignored_events\nanna@schule.example,no,Gymnasium,28Wb;27GA,sport\n"
    ),
}


UNCLOSED = "cannot be read as CSV from here on (unexpected end of data); put the cell in quotes and double the quotes inside it"


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    return folder


def bring(session: Session, folder: Path, *, now: datetime = NOW) -> dict[str, int]:
    return load(session, folder, zone=ZURICH, now=now)


def refusals(session: Session, folder: Path) -> list[tuple[str, int, str]]:
    return [problem[:3] for problem in problems(session, folder)]


def problems(session: Session, folder: Path) -> list[Problem]:
    before = contents(session)
    with pytest.raises(InvalidRows) as refused:
        bring(session, folder)
    assert contents(session) == before
    return refused.value.problems


def contents(session: Session) -> dict[str, list[Any]]:
    """Every row but the change log's, with its place where the database has one: a row that is rewritten with equal values moves."""
    place = "ctid::text, " if session.get_bind().dialect.name == "postgresql" else ""
    return {
        name: sorted(map(repr, session.execute(text(f'select {place}* from "{name}"'))))
        for name in Base.metadata.tables
        if name != "change_log"
    }


def pairs(session: Session, owner: Any, other: Any) -> set[tuple[Any, Any]]:
    return set(session.execute(select(owner, other)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "school", SCHOOL)


def test_load_gives_the_number_of_rows_of_each_file(session: Session, folder: Path) -> None:
    counts = bring(session, folder)

    assert counts == {"departments": 2, "classes": 3, "users": 3, "semesters": 1, "lessons": 1, "events": 3, "subscriptions": 1}


def test_load_stores_what_the_cells_say(session: Session, folder: Path) -> None:
    bring(session, folder)

    teacher = session.scalars(select(User).where(User.untis_id == "MÜL")).one()
    assert (teacher.email, teacher.first_name, teacher.role) == ("juerg@schule.example", "Jürg", Role.TEACHER)
    assert (teacher.mail_events, teacher.mail_digest, teacher.created_at) == (True, False, NOW)
    semester = session.scalars(select(Semester)).one()
    assert (semester.name, semester.starts_on, semester.ends_on) == ("Herbst", date(2026, 8, 1), date(2027, 1, 31))
    lesson = session.scalars(select(Lesson)).one()
    assert (lesson.key, lesson.semester_id, lesson.weekday) == ("L1", semester.id, 1)
    assert (lesson.starts, lesson.ends, lesson.room, lesson.is_class_teachers) == (time(7, 45), time(9, 20), "", True)
    sport = session.get_one(Event, event_id("sport"))
    assert (sport.author_id, sport.state, sport.version_of_id) == (teacher.id, EventState.PUBLISHED, None)
    assert (sport.starts_on, sport.ends_on, sport.starts_at, sport.ends_at) == (date(2026, 12, 3), date(2026, 12, 3), None, None)
    assert sport.cancelled_at == datetime(2026, 11, 20, 15, 45, tzinfo=UTC)
    assert session.get_one(Event, event_id("sport-neu")).version_of_id == sport.id
    deadline = session.get_one(Event, UUID("3f0c2a54-8d1b-4e0e-9a6f-0b6a1d2c7e55"))
    assert (deadline.starts_on, deadline.starts_at) == (None, datetime(2026, 11, 30, 22, 59, tzinfo=UTC))
    assert deadline.ends_at == deadline.starts_at


def test_load_links_what_the_list_cells_name(session: Session, folder: Path) -> None:
    bring(session, folder)

    classes = dict(session.execute(select(SchoolClass.name, SchoolClass.id)).all())
    users = dict(session.execute(select(User.email, User.id)).all())
    departments = dict(session.execute(select(Department.name, Department.id)).all())
    lesson, sport, anna = session.scalars(select(Lesson.id)).one(), event_id("sport"), users["anna@schule.example"]
    assert pairs(session, LessonClass.lesson_id, LessonClass.class_id) == {(lesson, classes["27Ga"]), (lesson, classes["27GA"])}
    assert pairs(session, LessonTeacher.lesson_id, LessonTeacher.user_id) == {(lesson, users["juerg@schule.example"])}
    assert pairs(session, EventClass.event_id, EventClass.class_id) == {(sport, classes["27Ga"]), (sport, classes["27GA"])}
    assert pairs(session, EventClassGroup.event_id, EventClassGroup.class_group) == {(sport, "28W")}
    assert pairs(session, EventDepartment.event_id, EventDepartment.department_id) == {(sport, departments["Bibliothek & Kultur"])}
    assert pairs(session, EventUser.event_id, EventUser.user_id) == {(sport, users["beat@schule.example"])}
    assert pairs(session, Subscription.user_id, Subscription.follows_me) == {(anna, False)}
    subscribed = pairs(session, SubscribedClass.user_id, SubscribedClass.class_id)
    assert subscribed == {(anna, classes["28Wb"]), (anna, classes["27GA"])}
    assert pairs(session, SubscribedDepartment.user_id, SubscribedDepartment.department_id) == {(anna, departments["Gymnasium"])}
    assert pairs(session, IgnoredEvent.user_id, IgnoredEvent.event_id) == {(anna, sport)}


def test_class_names_that_differ_by_case_are_two_classes(session: Session, folder: Path) -> None:
    bring(session, folder)

    names = select(User.email, SchoolClass.name).join(SchoolClass, User.class_id == SchoolClass.id)
    assert set(session.execute(names)) == {("anna@schule.example", "27Ga"), ("beat@schule.example", "27GA")}


def test_second_load_writes_nothing(session: Session, folder: Path) -> None:
    bring(session, folder)
    before, changes = contents(session), written(session)

    bring(session, folder, now=NOW + timedelta(days=1))

    assert contents(session) == before
    assert written(session) == changes


def written(session: Session) -> int:
    """Rows written on this connection so far, by SQLite's own count; on Postgres the rows' places in `contents` tell."""
    if session.get_bind().dialect.name == "postgresql":
        return 0
    connection = session.connection().connection.driver_connection
    assert connection is not None
    return int(connection.total_changes)


def test_changed_row_is_updated_in_place_and_the_only_one_written(session: Session, folder: Path) -> None:
    bring(session, folder)
    before, ids, changes = contents(session), set(session.scalars(select(User.id))), written(session)
    write(folder, {"users.csv": SCHOOL["users.csv"].replace("Aebischer", "Äbischer")})

    bring(session, folder, now=NOW + timedelta(days=1))

    after = contents(session)
    assert {name for name in after if after[name] != before[name]} == {"user_account"}
    assert len(set(after["user_account"]) - set(before["user_account"])) == 1
    assert set(session.scalars(select(User.id))) == ids
    assert session.scalars(select(User.last_name).where(User.untis_id == "S1")).one() == "Äbischer"
    assert set(session.scalars(select(User.created_at))) == {NOW}
    if session.get_bind().dialect.name == "sqlite":
        assert written(session) - changes == 2  # the row, and its note in the change log


def test_links_that_a_row_no_longer_names_are_deleted_and_the_others_kept(session: Session, folder: Path) -> None:
    bring(session, folder)
    before = contents(session)
    write(folder, {"lessons.csv": SCHOOL["lessons.csv"].replace("27Ga; 27GA", "27GA;28Wb")})

    bring(session, folder)

    after = contents(session)
    assert set(session.scalars(select(SchoolClass.name).join(LessonClass))) == {"27GA", "28Wb"}
    assert {name for name in after if after[name] != before[name]} == {"lesson_class"}
    assert len(set(after["lesson_class"]) & set(before["lesson_class"])) == 1


def test_rows_and_columns_that_are_not_in_the_files_stay(session: Session, folder: Path, tmp_path: Path) -> None:
    bring(session, folder)
    later = write(
        tmp_path / "later",
        {"users.csv": "email,first_name,last_name,role\nANNA@schule.example,Änni,Aebischer,student\n"},
    )

    counts = bring(session, later)

    assert counts == {"users": 1}
    assert session.scalar(select(func.count()).select_from(User)) == 3
    anna = session.scalars(select(User).where(User.email == "anna@schule.example")).one()
    assert (anna.first_name, anna.untis_id) == ("Änni", "S1")
    assert anna.class_id is not None


def test_empty_cell_means_the_default(session: Session, folder: Path) -> None:
    bring(session, folder)
    write(folder, {"users.csv": SCHOOL["users.csv"].replace("27Ga,S1", ",")})

    bring(session, folder)

    anna = session.scalars(select(User).where(User.email == "anna@schule.example")).one()
    assert (anna.class_id, anna.untis_id) == (None, None)


def test_names_may_refer_to_rows_in_the_database(session: Session, folder: Path, tmp_path: Path) -> None:
    bring(session, folder)
    later = write(
        tmp_path / "later",
        {"events.csv": "id,state,title,starts,ends,classes,version_of\nx,draft,X,2026-12-01,2026-12-01,27GA,sport\n"},
    )

    bring(session, later)

    assert session.get_one(Event, event_id("x")).version_of_id == event_id("sport")
    names = select(SchoolClass.name).join(EventClass).where(EventClass.event_id == event_id("x"))
    assert session.scalars(names).all() == ["27GA"]


def test_swapped_untis_ids_are_loaded(session: Session, folder: Path) -> None:
    bring(session, folder)
    swapped = SCHOOL["users.csv"].replace("MÜL", "?").replace("S1", "MÜL").replace("?", "S1")
    write(folder, {"users.csv": swapped})

    bring(session, folder)

    assert pairs(session, User.email, User.untis_id) == {
        ("juerg@schule.example", "S1"),
        ("anna@schule.example", "MÜL"),
        ("beat@schule.example", None),
    }


def test_untis_id_of_somebody_outside_the_file_is_refused(session: Session, folder: Path, tmp_path: Path) -> None:
    bring(session, folder)
    later = write(tmp_path / "later", {"users.csv": "email,first_name,last_name,role,untis_id\nneu@x.example,N,N,teacher,MÜL\n"})

    found = problems(session, later)

    reason = "belongs to juerg@schule.example, who is in the database and not in this file; give that user's row as well"
    assert found == [Problem("users.csv", 2, "untis_id", reason)]


def test_all_bad_rows_of_all_files_are_reported_at_once(session: Session, folder: Path) -> None:
    write(
        folder,
        {
            "classes.csv": "name,graduation_year,department\n27Ga,soon,Nowhere\n27GA,,\n",
            "users.csv": (
                "email,first_name,last_name,role,class,untis_id\n"
                "juerg@schule.example,,Müller,boss,,\n"
                "anna@schule.example,Anna,A,student,99Zz,S1\n"
                "beat@schule.example,Beat,B,teacher,27Ga,S1\n"
                "no address,No,N,student,,\n"
                "ANNA@schule.example,Anna,A,student,,\n"
                "short@schule.example,S\n"
            ),
            "events.csv": (
                "id,state,title,starts,ends,class_groups,users,version_of\n"
                'a,published,"two\nlines",2026-05-04T09:00,2026-05-04T08:00,27Ga,,\n'
                "b,published,B,2026-05-04,2026-05-04T08:00,,nobody@schule.example,b\n"
                "c,published,C,2026-02-30,2026-03-01,,,z\n"
            ),
            "subscriptions.csv": "email,ignored_events\nanna@schule.example,a;missing\n",
        },
    )

    assert refusals(session, folder) == [
        ("classes.csv", 2, "graduation_year"),
        ("classes.csv", 2, "department"),
        ("users.csv", 2, "first_name"),
        ("users.csv", 2, "role"),
        ("users.csv", 3, "class"),
        ("users.csv", 4, "class"),
        ("users.csv", 4, "untis_id"),
        ("users.csv", 5, "email"),
        ("users.csv", 6, "email"),
        ("users.csv", 7, ""),
        ("events.csv", 2, "ends"),
        ("events.csv", 2, "class_groups"),
        ("events.csv", 4, "ends"),
        ("events.csv", 4, "users"),
        ("events.csv", 4, "version_of"),
        ("events.csv", 5, "starts"),
        ("events.csv", 5, "version_of"),
        ("subscriptions.csv", 2, "ignored_events"),
    ]


def test_problem_reads_as_file_line_column_reason(session: Session, tmp_path: Path) -> None:
    header = "id,state,title,starts,ends\n"
    folder = write(tmp_path, {"events.csv": f"{header}a,published,A,2026-05-04T09:00,2026-05-04T08:00\n"})

    with pytest.raises(InvalidRows) as refused:
        bring(session, folder)

    assert str(refused.value) == "events.csv:2: ends: is before starts (2026-05-04T08:00+02:00 < 2026-05-04T09:00+02:00)"
    assert refused.value.row_count == 1


@pytest.mark.parametrize(
    ("starts", "reason"),
    [
        (
            "2027-03-28T02:30",
            (
                "2027-03-28T02:30 does not exist, the clocks skip it in Europe/Zurich; "
                "write it with an offset: 2027-03-28T02:30+01:00 or 2027-03-28T02:30+02:00"
            ),
        ),
        (
            "2026-10-25T02:30",
            (
                "2026-10-25T02:30 happens twice, the clocks go back in Europe/Zurich; "
                "write it with an offset: 2026-10-25T02:30+01:00 or 2026-10-25T02:30+02:00"
            ),
        ),
        ("2026-13-01T08:00", "2026-13-01 is not in the calendar (month must be in 1..12)"),
        ("0206-05-04T08:00", "0206-05-04: the year must lie between 1900 and 2199"),
        ("2026-05-04T24:30", "2026-05-04T24:30 is no time of day (hour must be in 0..23)"),
        ("4.5.2026", "must be a date such as 2026-05-04, not '4.5.2026'"),
        ("4.5.2026 08:00", "must be a time such as 2026-05-04T08:15 or 2026-05-04T08:15+02:00, not '4.5.2026 08:00'"),
    ],
)
def test_times_that_name_no_one_instant_are_refused_with_the_fix(
    session: Session, tmp_path: Path, starts: str, reason: str
) -> None:
    row = f"a,published,A,{starts},2028-01-01T00:00\n"
    folder = write(tmp_path, {"events.csv": f"id,state,title,starts,ends\n{row}"})

    assert problems(session, folder) == [Problem("events.csv", 2, "starts", reason)]


def test_ambiguous_time_with_an_offset_is_taken(session: Session, tmp_path: Path) -> None:
    row = "a,published,A,2026-10-25T02:30+02:00,2026-10-25T01:30Z\n"

    bring(session, write(tmp_path, {"events.csv": f"id,state,title,starts,ends\n{row}"}))

    stored = session.scalars(select(Event)).one()
    assert stored.starts_at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert stored.ends_at == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_byte_order_mark_and_crlf_are_read(session: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, {"departments.csv": '\ufeffname,description\r\nA,"one\r\ntwo"\r\n\r\n,\r\nB,x\r\n'})

    assert bring(session, folder) == {"departments": 2}
    assert pairs(session, Department.name, Department.description) == {("A", "one\ntwo"), ("B", "x")}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            'name,description\nA,"one\ntwo\n\nthree"\n\nB,x,y\n',
            (7, "", "has 3 cells, the header 2; quote a cell that contains a comma"),
        ),
        ("name,description\nA,\nA,\n", (3, "name", "'A' stands already on line 2; keep one of the two")),
        ("name,description\nA,a\x00b\n", (2, "description", "contains the control character U+0000; remove it")),
        ("name,description\nA,\x1f\n", (2, "description", "contains the control character U+001F; remove it")),
        ("name,description\nA,M\udcfcller\n", (2, "description", "is not UTF-8; save the file as UTF-8")),
        ("\udcff\udcfen\x00a\x00", (1, "", "a column's name is not UTF-8; save the file as UTF-8")),
        ("name,nmae\n", (1, "nmae", "unknown column; the columns are name, letter, description, colour, locale")),
        ("name,name\nA,B\n", (1, "name", "stands 2 times in the header; keep one")),
        ("letter\nA\n", (1, "name", "this column is missing; add it to the header")),
        ("", (1, "name", "this column is missing; add it to the header")),
        ("name;letter\nA;B\n", (1, "", "the cells are not separated by commas; save the file as comma-separated")),
        ("name,locale\nA,it\n", (2, "locale", "must be de, fr or en, not 'it'")),
        (f"name,letter\nA,{'x' * 11}\n", (2, "letter", "is 11 characters long; shorten it to 10")),
        ("name\nA;B\n", (2, "name", "a name that others refer to cannot contain ';', a line break or a tab")),
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
def test_file_that_is_not_sound_is_refused(session: Session, tmp_path: Path, content: str, expected: tuple[int, str, str]) -> None:
    found = problems(session, write(tmp_path, {"departments.csv": content}))

    # A header that is no UTF-8 misses its columns as well.
    assert found[0] == Problem("departments.csv", *expected)
    assert len(found) == 1 + content.startswith("\udcff")


@pytest.mark.parametrize(
    ("cells", "column", "reason"),
    [
        ("x,Herbst,8,08:00,09:00,M,", "weekday", "must be 1 (Monday) to 7 or mon, tue, wed, thu, fri, sat, sun, not '8'"),
        ("x,Herbst,SUN,08:00,08:00,M,", "ends", "is not after starts (08:00 <= 08:00)"),
        ("x,Herbst,1,8 Uhr,09:00,M,", "starts", "must be a time such as 08:15, not '8 Uhr'"),
        ("x,Herbst,1,08:00,09:00,M,true", "class_teacher", "must be yes or no, not 'true'"),
        ("x,Herbst,1,08:00,09:00,,", "subject", "is empty; it needs a value"),
    ],
)
def test_lesson_that_cannot_be_is_refused(session: Session, folder: Path, cells: str, column: str, reason: str) -> None:
    write(folder, {"lessons.csv": f"id,semester,weekday,starts,ends,subject,class_teacher\n{cells}\n"})

    assert problems(session, folder) == [Problem("lessons.csv", 2, column, reason)]


def test_version_of_a_stored_version_is_refused(session: Session, folder: Path, tmp_path: Path) -> None:
    bring(session, folder)
    row = "x,draft,X,2026-12-01,2026-12-01,sport-neu\n"
    later = write(tmp_path / "later", {"events.csv": f"id,state,title,starts,ends,version_of\n{row}"})

    assert problems(session, later) == [
        Problem("events.csv", 2, "version_of", "'sport-neu' is itself a version; name the event that is current")
    ]


def test_refused_header_hides_no_problem_and_invents_none(session: Session, folder: Path) -> None:
    write(folder, {"classes.csv": "name,oops\n27Ga,x\n"})

    assert refusals(session, folder) == [("classes.csv", 1, "oops")]


def test_folder_that_is_no_school_is_refused(session: Session, tmp_path: Path) -> None:
    known = "departments.csv, classes.csv, users.csv, semesters.csv, lessons.csv, events.csv, subscriptions.csv"
    with pytest.raises(InvalidInput) as absent:
        bring(session, tmp_path / "absent")
    with pytest.raises(InvalidInput) as empty:
        bring(session, tmp_path)
    write(tmp_path, {"event.csv": "", "notes.txt": ""})
    with pytest.raises(InvalidInput) as unknown:
        bring(session, tmp_path)

    assert str(absent.value) == f"{tmp_path / 'absent'}: No such file or directory"
    assert str(empty.value) == f"{tmp_path} holds no file of a school; put at least one of these there: {known}"
    expected = f"{tmp_path}: event.csv: unknown file; rename or remove it, the files of a school are {known}"
    assert str(unknown.value) == expected


def test_number_of_statements_does_not_grow_with_the_rows(session: Session, tmp_path: Path) -> None:
    def statements(rows: int) -> int:
        users = "".join(f"u{i}@x.example,U,{i},student,27Ga,{i}\n" for i in range(rows))
        files = {"users.csv": f"email,first_name,last_name,role,class,untis_id\n{users}", "classes.csv": "name\n27Ga\n"}
        seen: list[str] = []

        def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        bind = session.get_bind()
        engine = bind if isinstance(bind, Engine) else bind.engine
        event.listen(engine, "before_cursor_execute", note)
        bring(session, write(tmp_path, files))
        event.remove(engine, "before_cursor_execute", note)
        return len(seen)

    # The first one also opens the transaction.
    statements(1)
    few = statements(5)
    assert few > 0
    assert statements(500) == few


def test_example_school_loads_and_loads_again(session: Session) -> None:
    counts = bring(session, EXAMPLE)
    before = contents(session)

    assert bring(session, EXAMPLE, now=NOW + timedelta(days=400)) == counts
    assert contents(session) == before
    assert counts == {
        "departments": 4,
        "classes": 6,
        "users": 23,
        "semesters": 3,
        "lessons": 26,
        "events": 23,
        "subscriptions": 4,
    }


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

    sheet = read_folder(folder, ZURICH)["departments.csv"]
    shutil.rmtree(folder)

    refused = {problem.line for problem in sheet.problems}
    assert {entry.line for entry in sheet.entries} | refused <= set(lines)
    assert {entry.line for entry in sheet.entries if entry.row is None} == refused
    assert {line for line, row in zip(lines, rows, strict=True) if len(row) != 2 and any(map(str.strip, row))} <= refused


LOCAL = st.datetimes(datetime.fromisoformat(f"{YEARS[0]}-01-02"), datetime.fromisoformat(f"{YEARS[-1]}-12-30"))


@given(
    LOCAL,
    st.sampled_from(["Europe/Zurich", "America/St_Johns", "UTC"]),
)
def test_wall_clock_time_means_one_instant_or_is_refused(local: datetime, name: str) -> None:
    local, zone = local.replace(second=0, microsecond=0, fold=0), ZoneInfo(name)
    cells = {"id": "x", "state": "draft", "title": "X", "starts": local.isoformat(timespec="minutes")}
    instants = {
        moment
        for fold in (0, 1)
        if (moment := local.replace(tzinfo=zone, fold=fold).astimezone(UTC)).astimezone(zone).replace(tzinfo=None, fold=0) == local
    }
    try:
        row = EventRow.model_validate(cells | {"ends": cells["starts"]}, context=zone)
    except ValueError:
        assert len(instants) != 1
    else:
        assert {row.starts} == instants


@given(st.text())
def test_event_id_is_stable_and_keeps_uuids(key: str) -> None:
    identity = event_id(key)

    assert event_id(key) == identity
    assert event_id(str(identity)) == event_id(str(identity).upper()) == identity


def test_event_id_of_text_never_changes() -> None:
    assert event_id("sporttag") == UUID("86ec7eec-855e-5721-84a3-661ce8de0b0e")
