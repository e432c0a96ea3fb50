"""Weekly lessons and single dates from what takes place on each date."""

from datetime import date, time, timedelta

from hypothesis import given, settings, strategies as st

from services.school.timetable.deriving import LONGEST_GROUP, Occurrence, derive
from services.school.timetable.source import SingleDate, Term, WeeklyLesson
from tests.services.school.timetable.builders import FIRST, LAST, MONDAY, STARTS, TERM, ends

WHOLE = Term(TERM, FIRST, LAST)


def weekly(group: str, weekday: int = 1, **values: object) -> list[Occurrence]:
    days = [FIRST + timedelta(days=at) for at in range((LAST - FIRST).days + 1)]
    return [occurrence(group, day, **values) for day in days if day.isoweekday() == weekday]


def occurrence(group: str, day: date, **values: object) -> Occurrence:
    usual = {
        "starts": STARTS[0],
        "ends": ends(STARTS[0]),
        "subject": "Mathematik",
        "room": "12",
        "classes": ("c0",),
        "teachers": ("T000",),
    }
    return Occurrence(group=group, day=day, **usual | values)  # type: ignore[arg-type]


def replaced(occurrences: list[Occurrence], day: date, **values: object) -> list[Occurrence]:
    others = [one for one in occurrences if one.day != day]
    return [*others, occurrence(occurrences[0].group, values.pop("to", day), **values)]  # type: ignore[arg-type]


def test_lesson_of_every_week_has_no_single_dates():
    assert derive(weekly("7"), WHOLE, ()) == (
        [
            WeeklyLesson(
                "7-1-0745-2608",
                TERM,
                1,
                time(7, 45),
                time(8, 30),
                "Mathematik",
                "12",
                ("c0",),
                ("T000",),
            )
        ],
        [],
    )


def test_missing_date_is_cancelled_when_others_are_given():
    given = [one for one in weekly("7") if one.day != MONDAY] + weekly("8", classes=("c0",))

    _, changes = derive(given, WHOLE, ())

    assert changes == [SingleDate("7-1-0745-2608", MONDAY, cancelled=True)]


def test_missing_date_on_a_holiday_says_nothing():
    given = [one for one in weekly("7") if one.day != MONDAY] + weekly("8")

    assert derive(given, WHOLE, {MONDAY})[1] == []


def test_lesson_at_another_time_in_one_week_is_moved():
    given = replaced(
        weekly("7"),
        MONDAY,
        to=MONDAY + timedelta(days=2),
        starts=time(16),
        ends=time(17),
        room="Aula",
    )
    given += weekly("8")

    lessons, changes = derive(given, WHOLE, ())

    assert [one.id for one in lessons] == ["7-1-0745-2608", "8-1-0745-2608"]
    assert changes == [
        SingleDate(
            "7-1-0745-2608",
            MONDAY,
            room="Aula",
            moved_to=MONDAY + timedelta(days=2),
            starts=time(16),
            ends=time(17),
        )
    ]


def test_lesson_every_other_week_is_cancelled_in_between():
    given = weekly("7")[::2] + weekly("8")

    lessons, changes = derive(given, WHOLE, ())

    off = {one.day for one in weekly("7")[1::2]}
    assert [one.id for one in lessons] == ["7-1-0745-2608", "8-1-0745-2608"]
    assert {(one.day, one.cancelled) for one in changes} == {(day, True) for day in off}


def test_replaced_teacher_is_not_the_usual_one_however_often():
    given = [
        occurrence("7", one.day, teachers=("T009",), usual_teachers=("T000",))
        if one.day >= MONDAY - timedelta(weeks=10)
        else one
        for one in weekly("7")
    ]

    [lesson], changes = derive(given, WHOLE, ())

    assert lesson.teachers == ("T000",)
    assert {one.teachers for one in changes} == {("T009",)}


def test_two_lessons_of_one_group_at_once_are_two():
    given = weekly("7", teachers=("T000",)) + weekly("7", teachers=("T001",))

    lessons, changes = derive(given, WHOLE, ())

    assert [(one.id, one.teachers) for one in lessons] == [
        ("7 T000-1-0745-2608", ("T000",)),
        ("7 T001-1-0745-2608", ("T001",)),
    ]
    assert changes == []


def test_lesson_that_is_shorter_on_some_dates_is_one_lesson():
    given = [
        occurrence("7", one.day, ends=time(8)) if one.day in (MONDAY, FIRST) else one
        for one in weekly("7")
    ]

    [lesson], changes = derive(given, WHOLE, ())

    assert lesson.ends == time(8, 30)
    assert changes == [SingleDate(lesson.id, day, ends=time(8)) for day in (FIRST, MONDAY)]


def test_lessons_of_two_semesters_are_two():
    spring = Term("Frühling 2027", date(2027, 2, 1), date(2027, 7, 31))
    later = [occurrence("7", spring.first + timedelta(weeks=at)) for at in range(20)]

    ids = [derive(weekly("7") + later, term, ())[0][0].id for term in (WHOLE, spring)]

    assert ids == ["7-1-0745-2608", "7-1-0745-2702"]


def test_long_group_has_a_short_id_that_stays():
    group = "x" * (LONGEST_GROUP + 1)

    [one], [two] = (derive(weekly(group), WHOLE, ())[0] for _ in range(2))

    assert one.id == two.id
    assert len(one.id) <= 50


@st.composite
def single_dates(draw: st.DrawFn) -> dict[date, SingleDate]:
    days = draw(st.lists(st.integers(0, 23), max_size=5, unique=True))
    found = {}
    for at in days:
        day = FIRST + timedelta(weeks=at)
        kind = draw(st.sampled_from(["cancelled", "room", "teachers", "moved", "day"]))
        found[day] = {
            "cancelled": SingleDate("7-1-0745-2608", day, cancelled=True),
            "room": SingleDate("7-1-0745-2608", day, room="Aula"),
            "teachers": SingleDate("7-1-0745-2608", day, teachers=("T001", "T002")),
            "moved": SingleDate("7-1-0745-2608", day, starts=time(17), ends=time(18, at)),
            "day": SingleDate(
                "7-1-0745-2608", day, moved_to=day + timedelta(days=2), ends=time(8, 31 + at)
            ),
        }[kind]
    return found


@given(changes=single_dates())
@settings(deadline=None, max_examples=60)
def test_single_dates_are_found_again(changes: dict[date, SingleDate]):
    given = weekly("8")
    for one in weekly("7"):
        change = changes.get(one.day)
        if change is None:
            given.append(one)
        elif not change.cancelled:
            given.append(
                occurrence(
                    "7",
                    change.moved_to or one.day,
                    starts=change.starts or one.starts,
                    ends=change.ends or one.ends,
                    room=change.room or one.room,
                    teachers=change.teachers or one.teachers,
                )
            )

    lessons, found = derive(given, WHOLE, ())

    assert [one.id for one in lessons] == ["7-1-0745-2608", "8-1-0745-2608"]
    assert {one.day: one for one in found} == changes
