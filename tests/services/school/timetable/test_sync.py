"""A timetable in the school's rows, its changes, and what is refused or left as it is."""

from dataclasses import replace
from datetime import date, datetime, time, timedelta
from typing import Any

import pytest
from nightshift.errors import TransientError
from sqlalchemy import delete, func, select, update

from services.calendars.models import ChangeLog, FeedKind
from services.school.models import (
    Audience,
    Event,
    EventClass,
    EventState,
    Lesson,
    LessonChange,
    SchoolClass,
    Semester,
    User,
)
from services.school.timetable.models import State, TimetableRun
from services.school.timetable.plan import What
from services.school.timetable.source import TaughtClass, Teacher
from services.school.timetable.sync import find_last_good, find_last_run, list_runs, sync
from tests.conftest import NOW, ZONE
from tests.services.calendars.builders import titles
from tests.services.school.timetable.builders import (
    MONDAY,
    STARTS,
    TERM,
    Paper,
    add_school,
    contents,
    day,
    ends,
    expected_changes,
    expected_lessons,
    make_paper,
    read_changes,
    read_lessons,
    sources,
)


@pytest.fixture
def paper(runtime) -> Paper:
    """Return a small timetable. The school has its semester and its teachers."""
    paper = make_paper()
    with runtime.unit_of_work() as session:
        add_school(session, paper)
    return paper


def bring(runtime, paper: Any, name: str = "main", **options: Any):
    return sync(runtime, sources(**{name: paper}), name, now=NOW, **options)


def said(result, *what: What) -> list[tuple[str, str, str]]:
    return [(one.kind, one.row, one.detail) for one in result.plan.items if one.what in what]


def is_as(runtime, paper: Paper) -> bool:
    with runtime.read_only() as session:
        return (read_lessons(session), read_changes(session)) == (
            expected_lessons(paper),
            expected_changes(paper),
        )


def test_timetable_comes_in(runtime, paper):
    paper.change("L0000", MONDAY, cancelled=True)
    paper.change("L0001", MONDAY, room="Aula", teachers=("T003",))
    paper.change("L0002", MONDAY, moved_to=day(1), starts=time(13), ends=time(14))

    state, plan = bring(runtime, paper)

    assert state is State.APPLIED
    assert plan.counts == {"comes": {"class": 3, "lesson": 12, "change": 3}}
    assert is_as(runtime, paper)


def test_unchanged_source_writes_nothing(runtime, paper):
    paper.change("L0001", MONDAY, room="Aula", teachers=("T003",))
    bring(runtime, paper)
    with runtime.unit_of_work() as session:
        session.execute(delete(ChangeLog))
        before = contents(session)

    state, plan = bring(runtime, paper)

    with runtime.read_only() as session:
        assert contents(session) == before
    assert (state, plan.items) == (State.UNCHANGED, [])


def test_dry_run_writes_nothing_at_all(runtime, paper):
    with runtime.read_only() as session:
        before = contents(session, without=())

    state, plan = bring(runtime, paper, dry_run=True)

    with runtime.read_only() as session:
        assert contents(session, without=()) == before
    assert (state, plan.counts["comes"]["lesson"]) == (State.APPLIED, 12)


def test_changes_of_every_kind_come_in(runtime, paper):
    paper.change("L0000", MONDAY, cancelled=True)
    paper.change("L0001", MONDAY, room="Aula")
    bring(runtime, paper)

    paper.lesson("L0003", weekday=5, room="12", teachers=("T000", "T001"))
    paper.lesson("L0099", weekday=4, classes=("c1", "c2"), teachers=("T002",))
    del paper.lessons["L0011"]
    del paper.changes["L0000", MONDAY]
    paper.change("L0001", MONDAY, room="Turnhalle", teachers=("T003",))
    paper.change("L0099", day(1), cancelled=True)
    result = bring(runtime, paper)

    assert is_as(runtime, paper)
    assert said(result, What.GOES) == [
        ("lesson", "L0011", "Mon 10:30–11:15 Fach 3 22G2"),
        ("change", "L0000@2026-11-30", "cancelled"),
    ]
    assert said(result, What.COMES) == [
        ("lesson", "L0099", "Thu 07:45–08:30 Mathematik 21G1, 22G2"),
        ("change", "L0099@2026-12-07", "cancelled"),
    ]
    assert said(result, What.CHANGES) == [
        (
            "lesson",
            "L0003",
            ("weekday: 1 → 5; room: 100 → 12; teachers: T003 → T000, T001"),
        ),
        (
            "change",
            "L0001@2026-11-30",
            "room Aula → room Turnhalle, taught by T003",
        ),
    ]


@pytest.mark.parametrize(
    ("gone", "state"), [(2, State.APPLIED), (3, State.REFUSED), (12, State.REFUSED)]
)
def test_answer_that_removes_more_than_a_fifth_is_refused(runtime, paper, gone, state):
    bring(runtime, paper)
    before = Paper(**vars(paper) | {"lessons": dict(paper.lessons)})
    for key in list(paper.lessons)[:gone]:
        del paper.lessons[key]

    refused = bring(runtime, paper)

    assert refused.state is state
    assert is_as(runtime, before if state is State.REFUSED else paper)
    assert bring(runtime, paper, accept=True).state in (State.APPLIED, State.UNCHANGED)
    assert is_as(runtime, paper)


def test_answer_without_teachers_is_refused(runtime, paper):
    bring(runtime, paper)
    before = Paper(**vars(paper))
    paper.teachers = {}

    result = bring(runtime, paper)

    assert result.state is State.REFUSED
    assert result.plan.refusal == (
        "12 of its 12 lessons in Herbst 2026 would go, or lose their classes or teachers"
    )
    assert is_as(runtime, before)


def test_empty_answer_is_refused_and_recorded(runtime, paper):
    bring(runtime, paper)

    assert bring(runtime, Paper()).state is State.REFUSED

    with runtime.read_only() as session:
        last, good = find_last_run(session, "main"), find_last_good(session, "main")
        assert last is not None
        assert (last.state, last.error) == (State.REFUSED, "the source has no lesson")
        assert good is not None
        assert good < last.finished_at
        assert [row["state"] for row in list_runs(session, limit=5)] == ["refused", "applied"]


def test_first_empty_answer_is_refused(runtime, paper):
    assert bring(runtime, Paper()).state is State.REFUSED


@pytest.mark.parametrize(("gone", "state"), [(19, State.APPLIED), (20, State.REFUSED)])
def test_many_single_dates_do_not_go_at_once(runtime, paper, gone, state):
    for weeks in range(30):
        paper.change("L0000", MONDAY + timedelta(days=weeks), cancelled=True)
    bring(runtime, paper)
    for at in list(paper.changes)[:gone]:
        del paper.changes[at]

    assert bring(runtime, paper).state is state


def test_past_changes_stay(runtime, paper):
    past = MONDAY - timedelta(weeks=2)
    paper.change("L0000", past, cancelled=True)
    bring(runtime, paper)
    del paper.changes["L0000", past]

    assert bring(runtime, paper).state is State.UNCHANGED


def test_source_without_a_list_of_changes_leaves_them(runtime, paper):
    paper.change("L0000", MONDAY, cancelled=True)
    bring(runtime, paper)

    class WithoutChanges:
        def read(self, question):
            return replace(paper.read(question), changes=None)

    assert bring(runtime, WithoutChanges()).state is State.UNCHANGED


def test_source_that_is_away_is_recorded(runtime, paper):
    class Away:
        def read(self, question):
            raise TransientError("the timetable does not answer")

    with pytest.raises(TransientError):
        bring(runtime, Away())

    with runtime.read_only() as session:
        last = find_last_run(session, "main")
        assert last is not None
        assert (last.state, last.error) == (State.FAILED, "the timetable does not answer")


# --- what a person entered ---


def test_field_that_a_person_changed_stays_and_the_others_follow(runtime, paper):
    bring(runtime, paper)
    with runtime.unit_of_work() as session:
        session.execute(update(Lesson).where(Lesson.key == "L0000").values(room="Labor"))
    assert bring(runtime, paper).state is State.UNCHANGED

    paper.lesson("L0000", room="7", subject="Physik")
    result = bring(runtime, paper)

    with runtime.read_only() as session:
        lesson = session.scalar(select(Lesson).where(Lesson.key == "L0000"))
        assert (lesson.room, lesson.subject) == ("Labor", "Physik")
    assert said(result, What.KEPT) == [("lesson", "L0000", "a person changed room")]


def test_field_is_the_sources_again_when_both_say_the_same(runtime, paper):
    bring(runtime, paper)
    with runtime.unit_of_work() as session:
        session.execute(update(Lesson).where(Lesson.key == "L0000").values(room="Labor"))
    paper.lesson("L0000", room="Labor")
    bring(runtime, paper)
    paper.lesson("L0000", room="8")
    bring(runtime, paper)

    assert is_as(runtime, paper)


def test_lesson_that_a_person_changed_does_not_go(runtime, paper):
    bring(runtime, paper)
    with runtime.unit_of_work() as session:
        session.execute(update(Lesson).where(Lesson.key == "L0000").values(room="Labor"))
    del paper.lessons["L0000"]

    result = bring(runtime, paper)

    assert said(result, What.KEPT) == [
        ("lesson", "L0000", "is not in the source any more, but a person changed it")
    ]
    with runtime.read_only() as session:
        assert "L0000" in read_lessons(session)


def test_rows_that_a_person_entered_stay(runtime, paper):
    with runtime.unit_of_work() as session:
        semester = session.scalars(select(Semester.id)).one()
        lesson = Lesson(
            key="L0000",
            semester_id=semester,
            weekday=3,
            starts=time(8),
            ends=time(9),
            subject="Chor",
        )
        session.add(lesson)
        session.flush()
        session.add(LessonChange(lesson_id=lesson.id, taken_on=day(1), room="Kirche"))
    paper.change("L0000", day(1), cancelled=True)
    paper.change("L0000", day(2), cancelled=True)

    result = bring(runtime, paper)

    with runtime.read_only() as session:
        found = read_lessons(session)["L0000"]
        assert (found.weekday, found.subject, found.teachers) == (3, "Chor", ())
        changes = read_changes(session)
        assert changes["L0000", day(1)].room == "Kirche"
        assert changes["L0000", day(2)].cancelled
    assert [one[:2] for one in said(result, What.KEPT)] == [
        ("lesson", "L0000"),
        ("change", "L0000@2026-12-07"),
    ]


def test_lesson_that_was_deleted_and_entered_again_is_a_persons(runtime, paper):
    bring(runtime, paper)
    with runtime.unit_of_work() as session:
        semester = session.scalars(select(Semester.id)).one()
        session.execute(delete(Lesson).where(Lesson.key == "L0011"))
        session.add(
            Lesson(
                key="Chor",
                semester_id=semester,
                weekday=3,
                starts=time(8),
                ends=time(9),
                subject="Chor",
            )
        )

    bring(runtime, paper)

    with runtime.read_only() as session:
        assert read_lessons(session).keys() == {*paper.lessons, "Chor"}


def test_deleted_user_is_not_a_persons_change(runtime, paper):
    bring(runtime, paper)
    with runtime.unit_of_work() as session:
        session.execute(delete(User).where(User.untis_id == "T003"))
    paper.lesson("L0003", room="9", teachers=("T000",))

    result = bring(runtime, paper)

    assert said(result, What.KEPT) == []
    with runtime.read_only() as session:
        assert read_lessons(session)["L0003"].teachers == ("t000@school.example",)


# --- two sources ---


def test_of_two_sources_the_first_keeps_a_row(runtime, paper):
    bring(runtime, paper)
    other = make_paper(lessons=1)
    other.lesson("L0000", subject="Musik")
    other.lesson("M1", weekday=4, subject="Musik", classes=("c0",))
    other.change("L0000", MONDAY, cancelled=True)

    result = bring(runtime, other, "music")

    detail = "main has this lesson; what music says is left out"
    assert ("lesson", "L0000", detail) in said(result, What.KEPT)
    with runtime.read_only() as session:
        assert read_lessons(session)["L0000"].subject == "Fach 0"
        assert read_lessons(session)["M1"].subject == "Musik"
        assert read_changes(session) == {}
    # Neither removes what is the other's.
    assert bring(runtime, paper).state is State.UNCHANGED


# --- classes and teachers ---


def test_renamed_class_stays_the_same_class(runtime, paper):
    bring(runtime, paper)
    with runtime.read_only() as session:
        before = session.scalar(select(SchoolClass.id).where(SchoolClass.name == "20G0"))
    paper.classes["c0"] = TaughtClass("c0", "30G0")

    result = bring(runtime, paper)

    with runtime.read_only() as session:
        assert session.scalar(select(SchoolClass.id).where(SchoolClass.name == "30G0")) == before
    assert said(result, What.CHANGES) == [("class", "20G0", "name: 20G0 → 30G0")]
    assert is_as(runtime, paper)


def test_classes_move_up_a_year_at_once(runtime, paper):
    bring(runtime, paper)
    for one, name in (("c0", "21G1"), ("c1", "22G2"), ("c2", "23G3")):
        paper.classes[one] = TaughtClass(one, name)

    bring(runtime, paper)

    assert is_as(runtime, paper)


def test_class_that_a_person_named_keeps_its_name(runtime, paper):
    with runtime.unit_of_work() as session:
        session.add(SchoolClass(name="20G0"))
    bring(runtime, paper)
    renamed = Paper(**vars(paper) | {"classes": dict(paper.classes)})
    renamed.classes["c0"] = TaughtClass("c0", "30G0")

    result = bring(runtime, renamed)

    assert is_as(runtime, paper)
    assert said(result, What.KEPT) == [
        ("class", "20G0", "is called 30G0 in the source; a person named it")
    ]


def test_class_whose_id_moved_is_found_by_its_name(runtime, paper):
    bring(runtime, paper)
    paper.classes["x0"] = TaughtClass("x0", paper.classes.pop("c0").name)
    for key, one in paper.lessons.items():
        paper.lessons[key] = replace(
            one, classes=tuple("x0" if each == "c0" else each for each in one.classes)
        )

    result = bring(runtime, paper)

    assert result.plan.items == []
    assert is_as(runtime, paper)
    assert bring(runtime, paper).state is State.UNCHANGED


def test_class_that_is_gone_stays_and_is_named(runtime, paper):
    bring(runtime, paper)
    paper.classes["c9"] = TaughtClass("c9", "29Z")
    bring(runtime, paper)
    del paper.classes["c9"]

    result = bring(runtime, paper)

    assert said(result, What.KEPT) == [
        ("class", "29Z", "is not in the source any more; no sync deletes a class")
    ]
    with runtime.read_only() as session:
        assert session.scalar(select(func.count()).select_from(SchoolClass)) == 4


def test_teacher_whose_id_moved_keeps_the_feed_and_its_address(installed, paper):
    runtime = installed.runtime
    bring(runtime, paper)
    installed.sync()
    with runtime.read_only() as session:
        user = session.scalars(select(User).where(User.untis_id == "T001")).one()
        path = installed.store.locate(FeedKind.USER, user.id)
    before = feed_address(runtime, user.id)
    paper.teachers["X9"] = replace(paper.teachers.pop("T001"), id="X9")
    for key, one in paper.lessons.items():
        ids = tuple("X9" if each == "T001" else each for each in one.teachers)
        paper.lessons[key] = replace(one, teachers=ids)

    result = bring(runtime, paper)

    assert said(result, What.CHANGES) == [("teacher", "X9", f"user {user.id}: untis_id T001 → X9")]
    installed.refresh()
    assert feed_address(runtime, user.id) == before
    assert installed.store.locate(FeedKind.USER, user.id) == path
    assert installed.is_right()


def feed_address(runtime, user_id: int) -> Any:
    from services.calendars.models import Feed

    with runtime.read_only() as session:
        query = select(Feed.id, Feed.token).where(
            Feed.kind == FeedKind.USER, Feed.owner_id == user_id
        )
        return session.execute(query).one()


def test_teachers_who_swap_their_ids_are_found_by_their_names(runtime, paper):
    bring(runtime, paper)
    one, two = paper.teachers["T000"], paper.teachers["T001"]
    paper.teachers |= {"T000": replace(two, id="T000"), "T001": replace(one, id="T001")}

    bring(runtime, paper)

    with runtime.read_only() as session:
        found = dict(session.execute(select(User.email, User.untis_id)).all())
    assert (found["t000@school.example"], found["t001@school.example"]) == ("T001", "T000")


def test_teacher_is_found_by_address_before_name_and_id(runtime, paper):
    paper.teachers["T000"] = Teacher("T000", "Vera", "Neu", "t002@school.example")
    del paper.teachers["T002"]

    result = bring(runtime, paper)

    with runtime.read_only() as session:
        user_id = session.scalar(select(User.id).where(User.email == "t002@school.example"))
        assert said(result, What.NOTICE) == [
            ("teacher", "T000", f"user {user_id} should get this id, but another user has it")
        ]
        assert read_lessons(session)["L0000"].teachers == ("t002@school.example",)


def test_teachers_with_one_name_are_not_guessed(runtime, paper):
    paper.teachers["A"] = Teacher("A", "Eva", "Doppel")
    paper.teachers["B"] = Teacher("B", "Eva", "Doppel")
    paper.lesson("L0001", teachers=("A",))
    with runtime.unit_of_work() as session:
        session.execute(
            update(User)
            .where(User.untis_id == "T003")
            .values(first_name="Eva", last_name="Doppel", untis_id=None)
        )

    result = bring(runtime, paper)

    notices = [one[:2] for one in said(result, What.NOTICE)]
    assert notices == [("teacher", "T003"), ("teacher", "A"), ("teacher", "B")]
    with runtime.read_only() as session:
        assert read_lessons(session)["L0001"].teachers == ()


def test_lesson_of_an_unknown_semester_is_left_out(runtime, paper):
    paper.lesson("L0000", term="Herbst 1999")

    result = bring(runtime, paper)

    assert said(result, What.NOTICE) == [
        ("lesson", "L0000", "no semester 'Herbst 1999' that has not ended is known")
    ]


# --- a whole school ---


def test_school_of_sixty_classes(installed):
    runtime = installed.runtime
    paper = make_paper(classes=60, teachers=120, lessons=1500)
    with runtime.unit_of_work() as session:
        add_school(session, paper)

    assert bring(runtime, paper).plan.counts == {"comes": {"class": 60, "lesson": 1500}}
    assert is_as(runtime, paper)

    with runtime.unit_of_work() as session:
        classes = dict(session.execute(select(SchoolClass.name, SchoolClass.id)).all())
        for number in range(60):
            name = paper.classes[f"c{number}"].name
            at = datetime.combine(MONDAY, STARTS[0], ZONE)
            event = Event(
                title=f"Ausflug {name}",
                state=EventState.PUBLISHED,
                audience=Audience.STUDENTS,
                starts_at=at,
                ends_at=at + timedelta(minutes=45),
                created_at=NOW,
            )
            session.add(event)
            session.flush()
            session.add(EventClass(event_id=event.id, class_id=classes[name]))
    installed.sync()
    assert feeds(installed) == meeting(paper)
    with runtime.unit_of_work() as session:
        session.execute(delete(ChangeLog))
        before = contents(session)
    files = installed.stamps()

    assert bring(runtime, paper).state is State.UNCHANGED
    with runtime.read_only() as session:
        assert contents(session) == before

    change_thirty(paper)
    result = bring(runtime, paper)
    assert sum(sum(kinds.values()) for kinds in result.plan.counts.values()) == 30
    assert is_as(runtime, paper)
    touched = installed.refresh()
    assert feeds(installed) == meeting(paper)
    assert installed.is_right()
    # Those of the lessons concerned, and no others.
    assert 0 < len(touched) < 30 < len(files)


def change_thirty(paper: Paper) -> None:
    # On Monday, in the first hour: L0000 to L0059, one for each class.
    for number in range(8):
        paper.change(f"L{number:04}", MONDAY, cancelled=True)
    for number in range(10, 16):
        paper.change(f"L{number:04}", MONDAY, teachers=(f"T{number + 60:03}",))
    for number in range(20, 25):
        paper.change(f"L{number:04}", MONDAY, room="Aula")
    paper.change("L0030", MONDAY, starts=time(16), ends=time(17))
    paper.change("L0031", MONDAY, moved_to=day(0) + timedelta(days=3))
    for number in range(40, 44):
        paper.lesson(f"L{number:04}", starts=time(15, 30), ends=time(16, 15))
    paper.lesson("L0050", weekday=2)
    paper.lesson("L0051", teachers=("T119",))
    paper.lesson("L9000", weekday=6, classes=("c5",), teachers=("T005",))
    del paper.lessons["L1499"]
    paper.classes["c59"] = TaughtClass("c59", "99Z")


def feeds(installed) -> dict[str, set[str]]:
    """Return the titles in each teacher's calendar."""
    with installed.runtime.read_only() as session:
        users = session.execute(select(User.id, User.untis_id)).all()
    return {
        untis_id: set(titles(installed.store.read(FeedKind.USER, user_id)))
        for user_id, untis_id in users
    }


def meeting(paper: Paper) -> dict[str, set[str]]:
    """Return which trips on that Monday, from 7:45 to 8:30, a teacher's lessons meet."""
    found: dict[str, set[str]] = {one: set() for one in paper.teachers}
    for key, lesson in paper.lessons.items():
        change = paper.changes.get((key, MONDAY))
        given = lesson.weekday == 1 and lesson.starts < time(8, 30) and lesson.ends > time(7, 45)
        teachers: Any = lesson.teachers
        if change is not None:
            given = given and not (change.cancelled or change.moved_to or change.starts)
            teachers = lesson.teachers if change.teachers is None else change.teachers
        # A class teacher has all of their class, whatever the hour.
        for one in lesson.teachers if lesson.class_teacher else ():
            found[one] |= {f"Ausflug {name_at_first(each)}" for each in lesson.classes}
        for one in teachers if given else ():
            found[one] |= {f"Ausflug {name_at_first(each)}" for each in lesson.classes}
    return found


def name_at_first(class_id: str) -> str:
    return make_paper(classes=60, teachers=1, lessons=0).classes[class_id].name


def test_each_run_leaves_a_record_and_old_ones_go(runtime, paper):
    for _ in range(2):
        bring(runtime, paper)
    with runtime.unit_of_work() as session:
        old = NOW - timedelta(days=400)
        session.add(
            TimetableRun(source="main", started_at=old, finished_at=old, state=State.APPLIED)
        )
    bring(runtime, paper)

    with runtime.read_only() as session:
        states = session.scalars(select(TimetableRun.state)).all()
    assert sorted(states) == [State.APPLIED, State.UNCHANGED, State.UNCHANGED]


def test_holiday_is_asked_of_no_source(runtime, paper):
    asked = []

    class Asking:
        def read(self, question):
            asked.append(question)
            return paper.read(question)

    bring(runtime, Asking())

    [question] = asked
    assert [(term.name, term.first) for term in question.terms] == [(TERM, date(2026, 8, 17))]
    assert question.teachers["t000@school.example"] == "T000"
    assert ends(STARTS[0]) == time(8, 30)


def test_report_names_no_person(runtime, paper):
    paper.teachers["Z"] = Teacher("Z", "Zoë", "Unbekannt", "zoe@school.example")
    paper.lesson("L0000", teachers=("T001",))
    paper.change("L0001", MONDAY, teachers=("T000",))
    bring(runtime, paper)
    paper.lesson("L0000", teachers=("T002",))
    paper.teachers["X9"] = replace(paper.teachers.pop("T003"), id="X9")
    bring(runtime, paper)

    with runtime.read_only() as session:
        kept = "".join(str(one) for one in session.scalars(select(TimetableRun.report)))
    assert "T001 → T002" in kept
    assert [
        word for word in ("school.example", "Vera", "Muster", "Unbekannt") if word in kept
    ] == []
