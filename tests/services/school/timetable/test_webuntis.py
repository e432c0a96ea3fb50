"""The timetable from a stub of WebUntis, and each of its faults."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, time, timedelta
from typing import Any

import pytest
from nightshift.errors import PermanentError, TransientError

from services.school.models import SchoolClass
from services.school.timetable.models import State
from services.school.timetable.plan import What
from services.school.timetable.source import TaughtClass, Teacher
from services.school.timetable.sync import find_last_run, sync
from services.school.timetable.webuntis import Account, WebUntis
from tests.conftest import NOW
from tests.services.school.timetable.builders import (
    MONDAY,
    Paper,
    add_school,
    contents,
    day,
    make_paper,
    read_changes,
    read_lessons,
    sources,
)
from tests.services.school.timetable.untis import PASSWORD, SCHOOL, USER, Untis, serving


@pytest.fixture
def untis(runtime) -> Iterator[Untis]:
    """Yield a WebUntis; the school has the semester and the teachers."""
    paper = make_paper()
    with runtime.unit_of_work() as session:
        add_school(session, paper)
    with serving(Untis(paper)) as untis:
        yield untis


# Short only where the test waits for it: elsewhere a slow machine must not look like a fault.
PATIENCE = {"hang": {"silence": 1.0}, "drip": {"seconds": 3.0}}


def make_source(untis: Untis, **values: Any) -> WebUntis:
    account = Account(
        f"http://127.0.0.1:{untis.port}", SCHOOL, USER, PASSWORD, silence=60.0, seconds=200.0
    )
    return WebUntis(replace(account, **values))


def bring(runtime, untis: Untis, *, accept: bool = False, **values: Any):
    source = sources(untis=make_source(untis, **values))
    return sync(runtime, source, "untis", now=NOW, accept=accept)


def expected(paper: Paper) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Return lessons and changes under the ids that the source gives them."""
    ids = {
        one.id: f"{at}-{one.weekday}-{one.starts:%H%M}-2608"
        for at, one in enumerate(paper.lessons.values(), 1)
    }
    lessons = {
        ids[one.id]: replace(
            one,
            id=ids[one.id],
            classes=tuple(sorted(paper.classes[each].name for each in one.classes)),
            teachers=tuple(sorted(f"{each.lower()}@school.example" for each in one.teachers)),
            class_teacher=False,
        )
        for one in paper.lessons.values()
    }
    changes = {
        (ids[one.lesson], one.day): replace(
            one,
            lesson=ids[one.lesson],
            teachers=None
            if one.teachers is None
            else tuple(sorted(f"{each.lower()}@school.example" for each in one.teachers)),
        )
        for one in paper.changes.values()
    }
    return lessons, changes


def is_as(runtime, paper: Paper) -> bool:
    with runtime.read_only() as session:
        return (read_lessons(session), read_changes(session)) == expected(paper)


def notices(result) -> list[str]:
    return [one.detail for one in result.plan.items if one.what is What.NOTICE]


def test_timetable_and_its_single_dates_come_in(runtime, untis):
    untis.paper.change("L0000", MONDAY, cancelled=True)
    untis.paper.change("L0001", MONDAY, room="Aula")
    untis.paper.change("L0002", MONDAY, teachers=("T000",))
    untis.paper.change("L0003", MONDAY, starts=time(16), ends=time(17))
    untis.paper.change("L0004", MONDAY, moved_to=MONDAY + timedelta(days=3))

    result = bring(runtime, untis)

    assert result.plan.counts == {"comes": {"class": 3, "lesson": 12, "change": 5}}
    assert is_as(runtime, untis.paper)
    assert untis.methods[-1] == "logout"
    assert untis.sessions == set()


def test_second_sync_writes_nothing(runtime, untis):
    untis.paper.change("L0002", MONDAY, teachers=("T000",))
    bring(runtime, untis)
    with runtime.read_only() as session:
        before = contents(session)

    assert bring(runtime, untis).state is State.UNCHANGED
    with runtime.read_only() as session:
        assert contents(session) == before


def test_changes_that_end_go(runtime, untis):
    untis.paper.change("L0000", MONDAY, cancelled=True)
    untis.paper.change("L0001", day(1), room="Aula")
    bring(runtime, untis)
    untis.paper.changes.clear()

    bring(runtime, untis)

    assert is_as(runtime, untis.paper)


def test_session_that_expires_is_opened_again(runtime, untis):
    untis.fault = "expired"

    assert bring(runtime, untis).state is State.APPLIED
    assert untis.methods.count("authenticate") == 2
    assert is_as(runtime, untis.paper)


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("always expired", TransientError, "WebUntis ends the session again and again"),
        ("500", TransientError, "WebUntis answers 500"),
        (
            "404",
            PermanentError,
            "WebUntis answers 404; correct the server in TIMETABLE_SOURCES",
        ),
        ("hang", TransientError, "WebUntis does not answer: ReadTimeout"),
        ("drip", TransientError, "WebUntis does not answer: Timeout"),
        ("html", TransientError, "WebUntis answers with what is no timetable"),
        ("list", TransientError, "WebUntis answers with what is no timetable"),
        (
            "no right",
            PermanentError,
            "WebUntis: no right for getTeachers(); give nightshift the right to it",
        ),
        (
            "no method",
            PermanentError,
            "WebUntis has no such method any more: Method not found",
        ),
        (
            "no date",
            PermanentError,
            "WebUntis shows nightshift no timetable of these days; give the account the right",
        ),
    ],
)
def test_fault_changes_nothing_and_is_recorded(runtime, untis, fault, error, said):
    bring(runtime, untis)
    with runtime.read_only() as session:
        before = contents(session)
    untis.fault = fault
    untis.paper.lesson("L0000", room="elsewhere")

    with pytest.raises(error) as raised:
        bring(runtime, untis, **PATIENCE.get(fault, {}))

    assert str(raised.value).startswith(said)
    with runtime.read_only() as session:
        assert contents(session) == before
        last = find_last_run(session, "untis")
        assert last is not None
        assert last.state is State.FAILED
        assert last.error is not None
        assert last.error.startswith(said)


def test_wrong_login_is_named_without_the_password(runtime, untis):
    with pytest.raises(PermanentError) as raised:
        bring(runtime, untis, password="another-one")

    assert str(raised.value) == (
        "WebUntis refuses the login of nightshift; correct TIMETABLE_USER and TIMETABLE_PASSWORD"
    )
    assert PASSWORD not in repr(make_source(untis))


def test_server_that_is_not_there(runtime, untis):
    with pytest.raises(TransientError, match="WebUntis does not answer: ConnectionError"):
        bring(runtime, untis, server="http://127.0.0.1:1")


def test_week_without_lessons_cancels_none(runtime, untis):
    untis.holidays = {MONDAY + timedelta(days=at) for at in range(7)}

    bring(runtime, untis)

    assert is_as(runtime, untis.paper)


def test_week_that_one_class_misses_cancels_none_of_its_lessons(runtime, untis):
    untis.missing = {("c1", MONDAY)}

    bring(runtime, untis)

    assert is_as(runtime, untis.paper)


def test_answer_without_lessons_is_refused(runtime, untis):
    bring(runtime, untis)
    with runtime.read_only() as session:
        before = contents(session)
    untis.missing = {
        (one, date(2026, 8, 17) + timedelta(weeks=at))
        for one in untis.paper.classes
        for at in range(30)
    }

    result = bring(runtime, untis)

    assert (result.state, result.plan.refusal) == (State.REFUSED, "the source has no lesson")
    with runtime.read_only() as session:
        assert contents(session) == before


def test_renamed_classes_are_renamed(runtime, untis):
    bring(runtime, untis)
    with runtime.read_only() as session:
        ids = {one.name: one.id for one in session.query(SchoolClass)}
    for one, name in (("c0", "31G0"), ("c1", "31G1")):
        untis.paper.classes[one] = TaughtClass(one, name)

    bring(runtime, untis)

    assert is_as(runtime, untis.paper)
    with runtime.read_only() as session:
        after = {one.name: one.id for one in session.query(SchoolClass)}
    assert (after["31G0"], after["31G1"]) == (ids["20G0"], ids["21G1"])


def test_teacher_whose_short_name_changed_keeps_the_lessons(runtime, untis):
    bring(runtime, untis)
    untis.paper.teachers = {
        "NEW" if key == "T001" else key: replace(one, id="NEW") if key == "T001" else one
        for key, one in untis.paper.teachers.items()
    }
    for key, one in untis.paper.lessons.items():
        ids = tuple("NEW" if each == "T001" else each for each in one.teachers)
        untis.paper.lessons[key] = replace(one, teachers=ids)

    result = bring(runtime, untis)

    assert [(one.kind, one.row) for one in result.plan.items] == [("teacher", "NEW")]
    assert result.plan.items[0].detail.endswith(": untis_id T001 → NEW")


def test_duplicate_names_are_named(runtime, untis):
    untis.paper.classes["c7"] = TaughtClass("c7", "20G0")
    untis.paper.teachers["X"] = Teacher("X", "Vera", "Muster0")

    result = bring(runtime, untis)

    assert notices(result) == [
        "the source has this name under the ids 100, 107",
        "several have this name; give the user's untis_id or the teacher's address",
    ]
    assert is_as(runtime, untis.paper)


def test_periods_that_cannot_be_read_are_counted_and_the_others_come_in(runtime, untis):
    untis.fault = "garbage"

    result = bring(runtime, untis)

    [notice] = notices(result)
    assert notice.startswith("4 periods cannot be read; the first: ")
    with runtime.read_only() as session:
        assert len(read_lessons(session)) == 12
