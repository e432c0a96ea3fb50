"""The rules of who sees what, against a second implementation.

It is the rules' sentences as loops over plans.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from nightshift.database import Base, Session
from sqlalchemy import insert

from services.calendars.audience import UserFacts, read_school
from services.calendars.models import EventRevision
from services.calendars.window import Window
from services.school.models import (
    Audience,
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    EventState,
    EventUser,
    Holiday,
    IgnoredEvent,
    Lesson,
    LessonChange,
    LessonChangeTeacher,
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

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ZONE = ZoneInfo("Europe/Zurich")
DAYS_PAST, DAYS_AHEAD = 31, 465
WINDOW = Window.around(NOW, ZONE, days_past=DAYS_PAST, days_ahead=DAYS_AHEAD)

MON, TUE, WED, THU, FRI, SAT, SUN = range(1, 8)


# --- a school on paper: whoever is named is named by their place in the list ---


@dataclass(frozen=True)
class ChangePlan:
    day: date
    cancelled: bool = False
    moved_to: date | None = None
    starts: time | None = None
    ends: time | None = None
    teachers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LessonPlan:
    weekday: int
    starts: time = time(8)
    ends: time = time(8, 45)
    classes: tuple[int, ...] = (0,)
    teachers: tuple[int, ...] = (1,)
    class_teacher: bool = False
    semester: int = 0
    changes: tuple[ChangePlan, ...] = ()


@dataclass(frozen=True)
class SubscriptionPlan:
    follows_me: bool = True
    departments: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True)
class PersonPlan:
    role: Role
    class_: int | None = None
    subscription: SubscriptionPlan | None = None


@dataclass(frozen=True)
class EventPlan:
    starts: datetime | date
    ends: datetime | date
    audience: Audience = Audience.ALL
    classes: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    departments: tuple[int, ...] = ()
    people: tuple[int, ...] = ()
    state: EventState = EventState.PUBLISHED
    version_of: int | None = None
    cancelled: bool = False
    deleted: bool = False
    invalid: bool = False


@dataclass(frozen=True)
class SchoolPlan:
    events: tuple[EventPlan, ...]
    departments: int = 2
    classes: tuple[tuple[str, int | None], ...] = (("27Ga", 0), ("27GA", 0), ("28Wb", None))
    semesters: tuple[tuple[date, date], ...] = (
        (date(2026, 8, 1), date(2027, 1, 31)),
        (date(2027, 2, 1), date(2027, 7, 31)),
    )
    people: tuple[PersonPlan, ...] = (PersonPlan(Role.STUDENT, 0), PersonPlan(Role.TEACHER))
    lessons: tuple[LessonPlan, ...] = field(default=())
    holidays: tuple[tuple[date, date], ...] = ()


Calendars = dict[str, set[int]]


# --- what the rules say ---


def expected(plan: SchoolPlan) -> Calendars:
    of_class = {
        number: {
            at
            for at, event in shown_events(plan)
            if number in matching(plan, event) and for_students(event)
        }
        for number in range(len(plan.classes))
    }
    of_department = {
        number: {at for at, event in shown_events(plan) if concerns_department(plan, event, number)}
        for number in range(plan.departments)
    }
    calendars = {f"class {number}": events for number, events in of_class.items()}
    calendars |= {f"department {number}": events for number, events in of_department.items()}
    for number, person in enumerate(plan.people):
        subscription = person.subscription or SubscriptionPlan()
        events = {at for at, event in shown_events(plan) if number in event.people}
        if subscription.follows_me:
            events |= {at for at, event in shown_events(plan) if affects(plan, event, number)}
        for department in subscription.departments:
            events |= of_department[department]
        for class_ in subscription.classes:
            events |= of_class[class_]
        calendars[f"user {number}"] = events - set(subscription.ignored)
    return calendars


def shown_events(plan: SchoolPlan) -> Iterator[tuple[int, EventPlan]]:
    """Yield the published, current events that overlap the window.

    A cancelled one goes when it has passed.
    """
    for at, event in enumerate(plan.events):
        if event.state != EventState.PUBLISHED or event.version_of is not None or event.invalid:
            continue
        today = NOW.astimezone(ZONE).date()
        first, last = today - timedelta(days=DAYS_PAST), today + timedelta(days=DAYS_AHEAD)
        if isinstance(event.starts, datetime):
            overlaps = event.ends >= instant(first, time()) and event.starts < instant(
                last + timedelta(days=1), time()
            )
            passed = event.ends < NOW
        else:
            overlaps = event.ends >= first and event.starts <= last
            passed = event.ends < today
        if overlaps and not ((event.cancelled or event.deleted) and passed):
            yield at, event


def matching(plan: SchoolPlan, event: EventPlan) -> set[int]:
    matches = set()
    for number, (name, department) in enumerate(plan.classes):
        if (
            number in event.classes
            or name[:3] in event.groups
            or department in event.departments
            or for_whole_school(event)
        ):
            matches.add(number)
    return matches


def for_whole_school(event: EventPlan) -> bool:
    return not (event.classes or event.groups or event.departments or event.people)


def for_students(event: EventPlan) -> bool:
    return event.audience in (Audience.STUDENTS, Audience.ALL)


def concerns_department(plan: SchoolPlan, event: EventPlan, department: int) -> bool:
    if department in event.departments or for_whole_school(event):
        return True
    return any(plan.classes[class_][1] == department for class_ in matching(plan, event))


# By role: the audiences to which every user of that role belongs.
OF_EVERYBODY = {
    Role.STUDENT: (Audience.STUDENTS, Audience.ALL),
    Role.TEACHER: (Audience.TEACHERS, Audience.ALL),
    Role.ADMIN: (Audience.TEACHERS, Audience.ALL),
}


def affects(plan: SchoolPlan, event: EventPlan, number: int) -> bool:
    person = plan.people[number]
    if for_whole_school(event) and event.audience in OF_EVERYBODY[person.role]:
        return True
    if person.role == Role.STUDENT:
        return for_students(event) and person.class_ in matching(plan, event)
    of_classes = [lesson for lesson in plan.lessons if set(lesson.classes) & matching(plan, event)]
    taught = [lesson for lesson in of_classes if number in lesson.teachers]
    then = [lesson for lesson in taught if lesson.semester in semesters_of(plan, event)]
    if event.audience in (Audience.TEACHERS, Audience.ALL):
        return bool(then)
    is_class_teacher = any(lesson.class_teacher for lesson in then)
    if event.audience == Audience.CLASS_TEACHERS:
        return is_class_teacher
    return is_class_teacher or any(
        during(event, day, begins, ends)
        for lesson in of_classes
        for day, begins, ends in given_by(plan, event, lesson, number)
    )


def semesters_of(plan: SchoolPlan, event: EventPlan) -> set[int]:
    days = days_of(event)
    falls_in = {
        number
        for number, (first, last) in enumerate(plan.semesters)
        if any(first <= day <= last for day in days)
    }
    if falls_in:
        return falls_in
    before = [
        (first, number) for number, (first, _) in enumerate(plan.semesters) if first < days[0]
    ]
    return {max(before)[1]} if before else set()


def days_of(event: EventPlan) -> list[date]:
    if not isinstance(event.starts, datetime):
        first, last = event.starts, event.ends
    else:
        first = event.starts.astimezone(ZONE).date()
        last = event.ends.astimezone(ZONE).date()
        if last > first and event.ends.astimezone(ZONE).time() == time():
            last -= timedelta(days=1)
    return [first + timedelta(days=offset) for offset in range((last - first).days + 1)]


def given_by(
    plan: SchoolPlan, event: EventPlan, lesson: LessonPlan, number: int
) -> Iterator[tuple[date, time, time]]:
    """Yield when a person gives a lesson during an event's days."""
    first, last = plan.semesters[lesson.semester]
    changes = {change.day: change for change in lesson.changes}
    given = []
    for day in days_of(event):
        is_weekday = day.isoweekday() == lesson.weekday and first <= day <= last
        if is_weekday and day not in changes and number in lesson.teachers:
            given.append((day, lesson.starts, lesson.ends))
    for day, change in changes.items():
        teachers = lesson.teachers if change.teachers is None else change.teachers
        if not change.cancelled and number in teachers:
            then = change.moved_to or day
            given.append((then, change.starts or lesson.starts, change.ends or lesson.ends))
    for one in given:
        if not any(begin <= one[0] <= end for begin, end in plan.holidays):
            yield one


def during(event: EventPlan, day: date, starts: time, ends: time) -> bool:
    if day not in days_of(event):
        return False
    if not isinstance(event.starts, datetime):
        return True
    begins, finishes = instant(day, starts), instant(day, ends)
    if event.starts == event.ends:
        return begins <= event.starts < finishes
    return event.starts < finishes and event.ends > begins


def instant(day: date, clock: time, fold: int = 0) -> datetime:
    return datetime.combine(day, clock.replace(fold=fold), ZONE).astimezone(UTC)


# --- what the code says ---


def found(session: Session, plan: SchoolPlan, *, all_users: bool = True) -> Calendars:
    savepoint = session.begin_nested()
    try:
        store(session, plan)
        people = [
            UserFacts(number + 1, person.role, None if person.class_ is None else person.class_ + 1)
            for number, person in enumerate(plan.people)
        ]
        school = read_school(session, WINDOW, people, all_users=all_users)
    finally:
        savepoint.rollback()
    by_index = [event.id.int - 1 for event in school.events]
    calendars = {
        f"class {number}": school.of_class(number + 1) for number in range(len(plan.classes))
    }
    calendars |= {
        f"department {number}": school.of_department(number + 1)
        for number in range(plan.departments)
    }
    calendars |= {f"user {person.id - 1}": school.of_user(person) for person in people}
    return {name: {by_index[index] for index in indexes} for name, indexes in calendars.items()}


def store(session: Session, plan: SchoolPlan) -> None:
    people, events = list(enumerate(plan.people, 1)), list(enumerate(plan.events, 1))
    lessons = list(enumerate(plan.lessons, 1))
    subscriptions = [
        (number, person.subscription)
        for number, person in people
        if person.subscription is not None
    ]
    write(
        session,
        Department,
        [{"id": number + 1, "name": f"Department {number}"} for number in range(plan.departments)],
    )
    write(
        session,
        SchoolClass,
        [
            {
                "id": number,
                "name": name,
                "department_id": None if department is None else department + 1,
            }
            for number, (name, department) in enumerate(plan.classes, 1)
        ],
    )
    write(
        session,
        Semester,
        [
            {"id": n, "name": f"S{n}", "starts_on": first, "ends_on": last}
            for n, (first, last) in enumerate(plan.semesters, 1)
        ],
    )
    write(
        session,
        User,
        [
            {
                "id": number,
                "email": f"{number}@school.example",
                "first_name": "A",
                "last_name": "B",
                "role": person.role,
                "class_id": None if person.class_ is None else person.class_ + 1,
                "created_at": NOW,
            }
            for number, person in people
        ],
    )
    write(
        session,
        Lesson,
        [
            {
                "id": number,
                "key": str(number),
                "semester_id": lesson.semester + 1,
                "weekday": lesson.weekday,
                "starts": lesson.starts,
                "ends": lesson.ends,
                "subject": "",
                "is_class_teachers": lesson.class_teacher,
            }
            for number, lesson in lessons
        ],
    )
    write(
        session,
        LessonClass,
        [
            {"lesson_id": n, "class_id": other + 1}
            for n, lesson in lessons
            for other in lesson.classes
        ],
    )
    write(
        session,
        LessonTeacher,
        [
            {"lesson_id": n, "user_id": other + 1}
            for n, lesson in lessons
            for other in lesson.teachers
        ],
    )
    changes = [(n, change) for n, lesson in lessons for change in lesson.changes]
    numbered = list(enumerate(changes, 1))
    write(
        session,
        LessonChange,
        [
            {
                "id": number,
                "lesson_id": lesson_id,
                "taken_on": change.day,
                "cancelled": change.cancelled,
                "moved_to": change.moved_to,
                "starts": change.starts,
                "ends": change.ends,
                "substituted": change.teachers is not None,
            }
            for number, (lesson_id, change) in numbered
        ],
    )
    write(
        session,
        LessonChangeTeacher,
        [
            {"change_id": number, "user_id": other + 1}
            for number, (_, change) in numbered
            for other in change.teachers or ()
        ],
    )
    write(
        session,
        Holiday,
        [
            {"id": n, "key": str(n), "name": "", "starts_on": first, "ends_on": last}
            for n, (first, last) in enumerate(plan.holidays, 1)
        ],
    )
    write(session, Event, [event_row(number, event) for number, event in events])
    write(
        session,
        EventClass,
        [
            {"event_id": UUID(int=n), "class_id": other + 1}
            for n, event in events
            for other in event.classes
        ],
    )
    write(
        session,
        EventClassGroup,
        [
            {"event_id": UUID(int=n), "class_group": group}
            for n, event in events
            for group in event.groups
        ],
    )
    write(
        session,
        EventDepartment,
        [
            {"event_id": UUID(int=n), "department_id": other + 1}
            for n, event in events
            for other in event.departments
        ],
    )
    write(
        session,
        EventUser,
        [
            {"event_id": UUID(int=n), "user_id": other + 1}
            for n, event in events
            for other in event.people
        ],
    )
    write(
        session,
        EventRevision,
        [
            {
                "event_id": UUID(int=n),
                "sequence": 0,
                "modified_at": NOW,
                "source": b"",
                "digest": b"",
                "error": "ends before it starts" if event.invalid else None,
            }
            for n, event in events
        ],
    )
    write(
        session,
        Subscription,
        [
            {"user_id": n, "follows_me": subscription.follows_me}
            for n, subscription in subscriptions
        ],
    )
    write(
        session,
        SubscribedDepartment,
        [
            {"user_id": n, "department_id": other + 1}
            for n, s in subscriptions
            for other in s.departments
        ],
    )
    write(
        session,
        SubscribedClass,
        [{"user_id": n, "class_id": other + 1} for n, s in subscriptions for other in s.classes],
    )
    write(
        session,
        IgnoredEvent,
        [
            {"user_id": n, "event_id": UUID(int=other + 1)}
            for n, s in subscriptions
            for other in s.ignored
        ],
    )


def event_row(number: int, event: EventPlan) -> dict[str, object]:
    timed = isinstance(event.starts, datetime)
    return {
        "id": UUID(int=number),
        "state": event.state,
        "title": f"Event {number}",
        "starts_at": event.starts if timed else None,
        "ends_at": event.ends if timed else None,
        "starts_on": None if timed else event.starts,
        "ends_on": None if timed else event.ends,
        "audience": event.audience,
        "version_of_id": None if event.version_of is None else UUID(int=event.version_of + 1),
        "created_at": NOW,
        "cancelled_at": NOW if event.cancelled else None,
        "deleted_at": NOW if event.deleted else None,
    }


def write(session: Session, model: type[Base], rows: list[dict[str, object]]) -> None:
    if rows:
        session.execute(insert(model.__table__), rows)  # type: ignore[arg-type]


# --- the property ---

# Days on which something changes: the window's and the semesters' edges, those on which the clocks
# change, and any weekday.
EDGES = [
    date(2026, 10, 21),
    date(2026, 10, 25),
    date(2026, 11, 21),
    date(2026, 12, 7),
    date(2027, 1, 31),
    date(2027, 2, 15),
    date(2027, 3, 28),
    date(2027, 7, 31),
    date(2028, 2, 29),
]
CLOCKS = [
    time(),
    time(6, 30),
    time(7, 45),
    time(8),
    time(8, 45),
    time(9, 30),
    time(10, 15),
    time(12, 10),
    time(17),
    time(23, 59),
]
SPANS = [timedelta(minutes=minutes) for minutes in (0, 1, 15, 45, 90, 600)] + [
    timedelta(days=days, hours=hours)
    for days, hours in (
        (1, 0),
        (1, 3),
        (3, 0),
        (6, 23),
        (7, 0),
        (8, 2),
        (40, 0),
        (200, 5),
        (700, 0),
    )
]
NAMES = ["27Ga", "27GA", "27Gb", "28Ga", "28Wb", "27g", "27", "2"]
GROUPS = ["27G", "28G", "28W", "27g", "27", "99Z"]
SEMESTERS = [
    (date(2026, 2, 2), date(2026, 7, 31)),
    (date(2026, 8, 17), date(2027, 1, 31)),
    (date(2027, 2, 15), date(2027, 7, 31)),
    (date(2027, 8, 1), date(2028, 1, 31)),
]


def some(count: int, most: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    if count == 0:
        return st.just(())
    return st.lists(st.integers(0, count - 1), max_size=most, unique=True).map(tuple)


@st.composite
def event_plans(
    draw: st.DrawFn, classes: int, departments: int, people: int, earlier: int
) -> EventPlan:
    day = draw(st.sampled_from(EDGES)) + timedelta(days=draw(st.integers(-7, 7)))
    span = draw(st.sampled_from(SPANS))
    starts: datetime | date = day
    ends: datetime | date = day + timedelta(days=span.days)
    if draw(st.booleans()):
        starts = instant(
            day, draw(st.sampled_from([*CLOCKS, time(2, 30)])), draw(st.integers(0, 1))
        )
        starts += timedelta(seconds=draw(st.sampled_from([0, 0, 0, 30])))
        ends = starts + span
    names_nobody = draw(st.sampled_from([True, False, False, False]))
    published = draw(st.sampled_from([True] * 8 + [False]))
    version = bool(earlier) and draw(st.sampled_from([True] + [False] * 8))
    return EventPlan(
        starts,
        ends,
        draw(st.sampled_from(Audience)),
        classes=() if names_nobody else draw(some(classes)),
        groups=() if names_nobody else tuple(draw(st.lists(st.sampled_from(GROUPS), max_size=1))),
        departments=() if names_nobody else draw(some(departments, 1)),
        people=() if names_nobody else draw(some(people, 1)),
        state=EventState.PUBLISHED if published else draw(st.sampled_from(EventState)),
        version_of=draw(st.integers(0, earlier - 1)) if version else None,
        cancelled=draw(st.sampled_from([True] + [False] * 5)),
        deleted=draw(st.sampled_from([True] + [False] * 8)),
        invalid=draw(st.sampled_from([True] + [False] * 8)),
    )


@st.composite
def lesson_plans(draw: st.DrawFn, classes: int, people: int, semesters: int) -> LessonPlan:
    starts, ends = sorted(
        draw(st.lists(st.sampled_from(CLOCKS[1:-1]), min_size=2, max_size=2, unique=True))
    )
    weekday = draw(st.integers(MON, SUN))
    return LessonPlan(
        weekday,
        starts,
        ends,
        draw(some(classes)),
        draw(some(people)),
        draw(st.booleans()),
        draw(st.integers(0, semesters - 1)),
        tuple(
            draw(
                st.lists(
                    change_plans(weekday, people), max_size=2, unique_by=lambda change: change.day
                )
            )
        ),
    )


@st.composite
def change_plans(draw: st.DrawFn, weekday: int, people: int) -> ChangePlan:
    near = draw(st.sampled_from(EDGES)) + timedelta(days=draw(st.integers(-7, 7)))
    day = near + timedelta(days=weekday - near.isoweekday())
    moves = draw(st.booleans())
    starts, ends = sorted(
        draw(st.lists(st.sampled_from(CLOCKS[1:-1]), min_size=2, max_size=2, unique=True))
    )
    return ChangePlan(
        day,
        draw(st.booleans()),
        draw(st.none() | st.sampled_from(EDGES)),
        starts if moves else None,
        ends if moves else None,
        draw(st.none() | some(people)),
    )


@st.composite
def school_plans(draw: st.DrawFn) -> SchoolPlan:
    departments = draw(st.integers(0, 3))
    of_department = st.none() if departments == 0 else st.none() | st.integers(0, departments - 1)
    names = draw(st.lists(st.sampled_from(NAMES), max_size=5, unique=True))
    classes = tuple((name, draw(of_department)) for name in names)
    semesters = tuple(sorted(draw(st.lists(st.sampled_from(SEMESTERS), max_size=4, unique=True))))
    people_count = draw(st.integers(0, 5))
    events_count = draw(st.integers(1, 6))
    events = tuple(
        draw(event_plans(len(classes), departments, people_count, at)) for at in range(events_count)
    )
    subscriptions = st.none() | st.builds(
        SubscriptionPlan,
        st.booleans(),
        some(departments),
        some(len(classes)),
        some(events_count, 3),
    )
    of_class = st.none() if not classes else st.none() | st.integers(0, len(classes) - 1)
    people = tuple(
        PersonPlan(
            draw(st.sampled_from([Role.TEACHER, Role.TEACHER, Role.STUDENT, Role.ADMIN])),
            draw(of_class),
            draw(subscriptions),
        )
        for _ in range(people_count)
    )
    lessons: tuple[LessonPlan, ...] = ()
    if semesters:
        lessons = tuple(
            draw(st.lists(lesson_plans(len(classes), people_count, len(semesters)), max_size=8))
        )
    holidays = tuple(
        (first, first + timedelta(days=draw(st.sampled_from([0, 1, 4, 13]))))
        for first in draw(st.lists(st.sampled_from(EDGES), max_size=2))
    )
    return SchoolPlan(events, departments, classes, semesters, people, lessons, holidays)


@given(plan=school_plans(), all_users=st.booleans())
@example(  # A lesson from 08:00 and an event that reaches half a minute into it.
    plan=SchoolPlan(
        (
            EventPlan(
                instant(date(2026, 12, 7), time(7)),
                instant(date(2026, 12, 7), time(8, 0, 30)),
                Audience.STUDENTS,
            ),
        ),
        lessons=(LessonPlan(MON),),
    ),
    all_users=False,
)
@settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_calendars_hold_what_the_rules_say(
    session: Session, plan: SchoolPlan, all_users: bool
) -> None:
    assert found(session, plan, all_users=all_users) == expected(plan)


# --- rule by rule ---

STUDENT, TEACHER = 0, 1
MONDAY = date(2026, 12, 7)
MORNING = EventPlan(instant(MONDAY, time(8)), instant(MONDAY, time(9)))


def shown_to(
    session: Session, calendar: str, *events: EventPlan, plan: SchoolPlan | None = None
) -> list[int]:
    """Give the events of one calendar, and hold the second implementation to the same answer."""
    plan = replace(plan or SchoolPlan(()), events=events)
    calendars = found(session, plan)
    assert calendars == expected(plan)
    return sorted(calendars[calendar])


@pytest.mark.parametrize(
    ("starts", "ends", "shown"),
    [
        (date(2025, 1, 1), date(2029, 1, 1), [0]),
        (date(2026, 10, 1), date(2026, 10, 20), []),
        (date(2026, 10, 1), date(2026, 10, 21), [0]),
        (date(2028, 2, 29), date(2028, 3, 9), [0]),
        (date(2028, 3, 1), date(2028, 3, 9), []),
        (instant(date(2025, 1, 1), time(8)), instant(date(2029, 1, 1), time(8)), [0]),
        (instant(date(2026, 10, 20), time(22)), instant(date(2026, 10, 20), time(23, 59)), []),
        (instant(date(2026, 10, 20), time(22)), instant(date(2026, 10, 21), time(0, 1)), [0]),
        (instant(date(2026, 10, 21), time()), instant(date(2026, 10, 21), time()), [0]),
        (instant(date(2028, 2, 29), time(23, 59)), instant(date(2028, 3, 1), time(1)), [0]),
        (instant(date(2028, 3, 1), time()), instant(date(2028, 3, 1), time(1)), []),
    ],
)
def test_window_is_tested_by_overlap(
    session: Session, starts: date, ends: date, shown: list[int]
) -> None:
    assert shown_to(session, "class 0", EventPlan(starts, ends)) == shown


@pytest.mark.parametrize("state", [EventState.DRAFT, EventState.REVIEW, EventState.REFUSED])
def test_unpublished_event_is_in_no_calendar(session: Session, state: EventState) -> None:
    assert shown_to(session, "department 0", replace(MORNING, state=state)) == []


def test_version_of_an_event_is_in_no_calendar(session: Session) -> None:
    assert shown_to(session, "class 0", MORNING, replace(MORNING, version_of=0)) == [0]


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_cancelled_event_stays_until_it_has_passed(session: Session, how: str) -> None:
    def event(starts: datetime | date, ends: datetime | date) -> EventPlan:
        return replace(EventPlan(starts, ends), **{how: True})

    minute = timedelta(minutes=1)
    events = (
        event(NOW - 9 * minute, NOW + minute),
        event(NOW - 9 * minute, NOW - minute),
        event(date(2026, 11, 19), date(2026, 11, 21)),
        event(date(2026, 11, 19), date(2026, 11, 20)),
        EventPlan(date(2026, 11, 19), date(2026, 11, 20)),
    )

    assert shown_to(session, "class 0", *events) == [0, 2, 4]


def test_event_without_a_name_is_for_the_whole_school(session: Session) -> None:
    plan = SchoolPlan((MORNING,), lessons=(LessonPlan(FRI, classes=(2,)),))

    assert found(session, plan) == {
        name: {0}
        for name in (
            "class 0",
            "class 1",
            "class 2",
            "department 0",
            "department 1",
            "user 0",
            "user 1",
        )
    }


def test_event_that_names_only_a_person_is_theirs_alone(session: Session) -> None:
    plan = SchoolPlan((replace(MORNING, people=(STUDENT,)),), lessons=(LessonPlan(MON),))

    assert found(session, plan) == {
        "class 0": set(),
        "class 1": set(),
        "class 2": set(),
        "department 0": set(),
        "department 1": set(),
        "user 0": {0},
        "user 1": set(),
    }


def test_event_for_a_group_without_classes_is_not_for_the_whole_school(session: Session) -> None:
    assert shown_to(session, "department 0", replace(MORNING, groups=("99Z",))) == []


def test_classes_whose_names_differ_in_case_are_two(session: Session) -> None:
    event = replace(MORNING, classes=(0,))

    assert shown_to(session, "class 0", event) == [0]
    assert shown_to(session, "class 1", event) == []


def test_class_group_is_the_names_first_three_characters(session: Session) -> None:
    plan = SchoolPlan((), classes=(("27Ga", None), ("27GA", None), ("27ga", None), ("127G", None)))
    event = replace(MORNING, groups=("27G",))

    assert [shown_to(session, f"class {number}", event, plan=plan) for number in range(4)] == [
        [0],
        [0],
        [],
        [],
    ]


def test_event_of_a_department_reaches_its_classes(session: Session) -> None:
    event = replace(MORNING, departments=(0,))

    assert [shown_to(session, f"class {number}", event) for number in range(3)] == [[0], [0], []]
    assert shown_to(session, "user 0", event) == [0]


def test_department_without_classes_has_the_events_that_name_it(session: Session) -> None:
    named = replace(MORNING, departments=(1,), audience=Audience.CLASS_TEACHERS)

    assert shown_to(session, "department 1", named, replace(MORNING, classes=(0,))) == [0]


@pytest.mark.parametrize("audience", Audience)
def test_department_has_every_audience_of_its_classes(session: Session, audience: Audience) -> None:
    assert shown_to(
        session, "department 0", replace(MORNING, audience=audience, groups=("27G",))
    ) == [0]


def test_class_and_students_have_only_what_is_for_students(session: Session) -> None:
    events = tuple(replace(MORNING, audience=audience, classes=(0,)) for audience in Audience)

    assert list(Audience) == [
        Audience.TEACHERS,
        Audience.CLASS_TEACHERS,
        Audience.STUDENTS,
        Audience.ALL,
    ]
    assert shown_to(session, "class 0", *events) == [2, 3]
    assert shown_to(session, "user 0", *events) == [2, 3]


def test_teacher_has_what_is_for_teachers_of_a_class_they_teach(session: Session) -> None:
    events = tuple(replace(MORNING, audience=audience, classes=(0,)) for audience in Audience)
    teaches, other = LessonPlan(FRI), LessonPlan(MON, classes=(1,))

    assert shown_to(session, "user 1", *events, plan=SchoolPlan((), lessons=(teaches,))) == [0, 3]
    assert shown_to(session, "user 1", *events, plan=SchoolPlan((), lessons=(other,))) == []


def test_class_teacher_has_what_is_for_class_teachers_and_all_of_their_students(
    session: Session,
) -> None:
    events = tuple(replace(MORNING, audience=audience, classes=(0,)) for audience in Audience)
    plan = SchoolPlan(
        (), lessons=(LessonPlan(FRI, class_teacher=True), LessonPlan(FRI, classes=(1,)))
    )

    assert shown_to(session, "user 1", *events, plan=plan) == [0, 1, 2, 3]


def test_class_teacher_of_one_class_only_teaches_another(session: Session) -> None:
    events = tuple(replace(MORNING, audience=audience, classes=(1,)) for audience in Audience)
    plan = SchoolPlan(
        (), lessons=(LessonPlan(FRI, class_teacher=True), LessonPlan(FRI, classes=(1,)))
    )

    assert shown_to(session, "user 1", *events, plan=plan) == [0, 3]


@pytest.mark.parametrize(
    ("lesson", "shown"),
    [
        (LessonPlan(MON, time(8), time(8, 45)), [0]),
        (LessonPlan(MON, time(8, 59), time(9, 45)), [0]),
        (LessonPlan(MON, time(7), time(8)), []),
        (LessonPlan(MON, time(9), time(9, 45)), []),
        (LessonPlan(TUE, time(8), time(8, 45)), []),
        (LessonPlan(MON, time(8), time(8, 45), semester=1), []),
        (LessonPlan(MON, time(8), time(8, 45), classes=(1,)), []),
        (LessonPlan(MON, time(8), time(8, 45), classes=(1, 0)), [0]),
    ],
)
def test_students_event_affects_a_teacher_whose_lesson_it_overlaps(
    session: Session, lesson: LessonPlan, shown: list[int]
) -> None:
    event = replace(MORNING, audience=Audience.STUDENTS, classes=(0,))

    assert shown_to(session, "user 1", event, plan=SchoolPlan((), lessons=(lesson,))) == shown


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (ChangePlan(MONDAY, cancelled=True), set()),
        (ChangePlan(MONDAY, starts=time(14), ends=time(15)), set()),
        (ChangePlan(MONDAY, moved_to=date(2026, 12, 8)), set()),
        (ChangePlan(MONDAY, teachers=(2,)), set()),
        (ChangePlan(MONDAY, teachers=(1, 2)), {0}),
        (ChangePlan(date(2026, 12, 14), cancelled=True), {0}),
        (ChangePlan(date(2026, 12, 9), moved_to=MONDAY), {0}),
    ],
)
def test_lesson_is_given_as_its_change_on_the_events_date_says(
    session: Session, change: ChangePlan, shown: set[int]
) -> None:
    event = EventPlan(instant(MONDAY, time(8)), instant(MONDAY, time(10)), Audience.STUDENTS)
    people = (PersonPlan(Role.STUDENT, 0), PersonPlan(Role.TEACHER), PersonPlan(Role.TEACHER))
    lessons = (LessonPlan(MON, changes=(change,)),)
    plan = SchoolPlan((event,), people=people, lessons=lessons)

    calendars = found(session, plan)

    assert calendars["user 1"] == shown
    assert calendars["user 2"] == ({0} if change.teachers else set())


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        (MONDAY, MONDAY, set()),
        (date(2026, 12, 1), date(2026, 12, 20), set()),
        (date(2026, 12, 8), date(2026, 12, 20), {0}),
    ],
)
def test_lesson_is_not_given_on_holidays(
    session: Session, first: date, last: date, shown: set[int]
) -> None:
    event = EventPlan(MONDAY, date(2026, 12, 9), Audience.STUDENTS)
    substitute = (ChangePlan(MONDAY, teachers=(1,)),)
    plan = SchoolPlan(
        (event,),
        lessons=(LessonPlan(MON), LessonPlan(MON, teachers=(0,), changes=substitute)),
        holidays=((first, last),),
    )

    assert found(session, plan)["user 1"] == shown


def test_trip_over_holidays_meets_the_lesson_of_a_later_week(session: Session) -> None:
    event = EventPlan(MONDAY, date(2026, 12, 21), Audience.STUDENTS)
    plan = SchoolPlan(
        (event,), lessons=(LessonPlan(MON),), holidays=((MONDAY, date(2026, 12, 20)),)
    )

    assert found(session, plan)["user 1"] == {0}


@pytest.mark.parametrize(
    ("minute", "shown"),
    [(time(7, 59), []), (time(8), [0]), (time(8, 20), [0]), (time(8, 45), [])],
)
def test_deadline_affects_a_teacher_in_whose_lesson_it_falls(
    session: Session, minute: time, shown: list[int]
) -> None:
    moment = instant(MONDAY, minute)

    assert (
        shown_to(
            session,
            "user 1",
            EventPlan(moment, moment, Audience.STUDENTS),
            plan=SchoolPlan((), lessons=(LessonPlan(MON),)),
        )
        == shown
    )


@pytest.mark.parametrize(
    ("weekday", "shown"), [(MON, []), (TUE, [0]), (WED, [0]), (THU, [0]), (FRI, []), (SAT, [])]
)
def test_trip_affects_teachers_on_all_of_its_days(
    session: Session, weekday: int, shown: list[int]
) -> None:
    trip = EventPlan(date(2026, 12, 8), date(2026, 12, 10), Audience.STUDENTS, classes=(0,))

    assert (
        shown_to(session, "user 1", trip, plan=SchoolPlan((), lessons=(LessonPlan(weekday),)))
        == shown
    )


@pytest.mark.parametrize(("weekday", "shown"), [(MON, []), (TUE, [0]), (WED, [])])
def test_trip_with_times_takes_its_first_and_last_day_in_part(
    session: Session, weekday: int, shown: list[int]
) -> None:
    # From Monday after the lesson to Wednesday before it.
    trip = EventPlan(
        instant(MONDAY, time(8, 45)),
        instant(MONDAY + timedelta(days=2), time(8)),
        Audience.STUDENTS,
    )

    assert (
        shown_to(session, "user 1", trip, plan=SchoolPlan((), lessons=(LessonPlan(weekday),)))
        == shown
    )


@pytest.mark.parametrize("days", [6, 7, 8, 9, 14, 15])
def test_long_trip_affects_a_lesson_that_its_first_day_misses(session: Session, days: int) -> None:
    starts = instant(MONDAY, time(9))
    trip = EventPlan(starts, starts + timedelta(days=days), Audience.STUDENTS)

    assert shown_to(session, "user 1", trip, plan=SchoolPlan((), lessons=(LessonPlan(MON),))) == (
        [] if days == 6 else [0]
    )


def test_event_until_midnight_does_not_reach_into_the_next_day(session: Session) -> None:
    event = EventPlan(
        instant(MONDAY, time(20)), instant(MONDAY + timedelta(days=1), time()), Audience.STUDENTS
    )
    lesson = LessonPlan(TUE, time(), time(8))

    assert shown_to(session, "user 1", event, plan=SchoolPlan((), lessons=(lesson,))) == []


@pytest.mark.parametrize("day", [date(2026, 10, 25), date(2027, 3, 28)])
def test_lesson_keeps_its_wall_clock_time_when_the_clocks_change(
    session: Session, day: date
) -> None:
    lessons = tuple(LessonPlan(SUN, semester=semester) for semester in (0, 1))
    event = EventPlan(instant(day, time(8, 44)), instant(day, time(9)), Audience.STUDENTS)
    after = EventPlan(instant(day, time(8, 45)), instant(day, time(9)), Audience.STUDENTS)

    assert shown_to(session, "user 1", event, after, plan=SchoolPlan((), lessons=lessons)) == [0]


@pytest.mark.parametrize(
    ("day", "shown"),
    [
        (date(2026, 12, 1), [0]),
        (date(2027, 1, 31), [0]),
        (date(2027, 2, 10), [0]),
        (date(2027, 3, 1), []),
        (date(2028, 1, 1), []),
    ],
)
def test_teaching_is_read_in_the_events_semester_else_in_the_latest_before(
    session: Session, day: date, shown: list[int]
) -> None:
    plan = SchoolPlan(
        (),
        semesters=((date(2026, 8, 1), date(2027, 1, 31)), (date(2027, 2, 22), date(2027, 7, 31))),
        lessons=(LessonPlan(MON, semester=0),),
    )

    event = EventPlan(day, day, Audience.TEACHERS, classes=(0,))
    assert shown_to(session, "user 1", event, plan=plan) == shown


def test_teaching_counts_for_nothing_before_the_first_semester(session: Session) -> None:
    plan = SchoolPlan(
        (), semesters=((date(2027, 2, 22), date(2027, 7, 31)),), lessons=(LessonPlan(MON),)
    )

    assert shown_to(session, "user 1", replace(MORNING, classes=(0,)), plan=plan) == []


def test_lessons_of_the_fallback_semester_do_not_overlap_events_after_it(session: Session) -> None:
    monday = date(2027, 2, 8)
    plan = SchoolPlan(
        (), semesters=((date(2026, 8, 1), date(2027, 1, 31)),), lessons=(LessonPlan(MON),)
    )

    assert (
        shown_to(session, "user 1", EventPlan(monday, monday, Audience.STUDENTS), plan=plan) == []
    )


def test_event_over_two_semesters_affects_the_teachers_of_both(session: Session) -> None:
    event = EventPlan(date(2026, 12, 1), date(2027, 3, 1), Audience.TEACHERS, classes=(0,))

    for semester in (0, 1):
        assert shown_to(
            session,
            "user 1",
            event,
            plan=SchoolPlan((), lessons=(LessonPlan(MON, semester=semester),)),
        ) == [0]


def with_subscription(subscription: SubscriptionPlan) -> SchoolPlan:
    return SchoolPlan(
        (), people=(PersonPlan(Role.STUDENT, 0, subscription), PersonPlan(Role.TEACHER))
    )


def test_subscription_can_leave_out_what_affects_oneself(session: Session) -> None:
    plan = with_subscription(SubscriptionPlan(follows_me=False))

    assert shown_to(session, "user 0", MORNING, replace(MORNING, people=(STUDENT,)), plan=plan) == [
        1
    ]


def test_subscription_shows_exactly_what_the_subscribed_feeds_contain(session: Session) -> None:
    events = tuple(replace(MORNING, audience=audience, classes=(2,)) for audience in Audience)
    named = replace(MORNING, audience=Audience.TEACHERS, departments=(1,))

    to_class = with_subscription(SubscriptionPlan(classes=(2,)))
    to_department = with_subscription(SubscriptionPlan(departments=(1,)))

    assert shown_to(session, "user 0", *events, named, plan=to_class) == [2, 3]
    assert shown_to(session, "user 0", *events, named, plan=to_department) == [4]


def test_ignored_event_goes_whatever_brings_it(session: Session) -> None:
    subscription = SubscriptionPlan(departments=(0,), classes=(0,), ignored=(0, 1))
    named = replace(MORNING, people=(STUDENT,))

    assert shown_to(
        session, "user 0", MORNING, named, MORNING, plan=with_subscription(subscription)
    ) == [2]


def test_admin_who_teaches_nothing_has_what_names_them_and_what_they_subscribe_to(
    session: Session,
) -> None:
    subscription = SubscriptionPlan(departments=(1,))
    plan = SchoolPlan((), people=(PersonPlan(Role.ADMIN, None, subscription),))

    assert shown_to(
        session,
        "user 0",
        MORNING,
        replace(MORNING, classes=(0,)),
        replace(MORNING, people=(0,)),
        plan=plan,
    ) == [0, 2]


def test_events_are_in_calendar_order(session: Session) -> None:
    store(
        session,
        SchoolPlan(
            (
                MORNING,
                EventPlan(date(2026, 12, 1), date(2027, 1, 1)),
                replace(MORNING, starts=MORNING.ends),
                MORNING,
            )
        ),
    )

    school = read_school(session, WINDOW, [])

    assert [event.id.int - 1 for event in school.events] == [1, 0, 3, 2]


def test_load_completes_only_the_users_it_is_given(session: Session) -> None:
    plan = SchoolPlan(
        (replace(MORNING, people=(0, 1)),),
        people=(
            PersonPlan(Role.TEACHER, None, SubscriptionPlan(follows_me=False)),
            PersonPlan(Role.TEACHER),
        ),
        lessons=(LessonPlan(MON, teachers=(0, 1)), LessonPlan(TUE, teachers=(0,))),
    )
    store(session, plan)
    alone, both = (
        [UserFacts(2, Role.TEACHER, None)],
        [UserFacts(1, Role.TEACHER, None), UserFacts(2, Role.TEACHER, None)],
    )

    read_school(session, WINDOW, alone)
    read_school(session, WINDOW, both, all_users=True)

    assert alone == both[1:]
    assert [len(facts.lessons) for facts in both] == [2, 1]
    assert [facts.follows_me for facts in both] == [False, True]


@pytest.mark.parametrize(
    ("person", "shown"),
    [
        (PersonPlan(Role.STUDENT), [2, 3]),
        (PersonPlan(Role.STUDENT, 0), [2, 3]),
        (PersonPlan(Role.TEACHER), [0, 3]),
        (PersonPlan(Role.ADMIN), [0, 3]),
    ],
)
def test_event_for_the_whole_school_reaches_everybody_of_its_audience(
    session: Session, person: PersonPlan, shown: list[int]
) -> None:
    events = tuple(replace(MORNING, audience=audience) for audience in Audience)
    plan = SchoolPlan((), people=(person,))

    assert shown_to(session, "user 0", *events, plan=plan) == shown


def test_whole_schools_event_for_class_teachers_or_students_asks_what_a_teacher_teaches(
    session: Session,
) -> None:
    events = tuple(replace(MORNING, audience=audience) for audience in Audience)
    class_teacher = SchoolPlan((), lessons=(LessonPlan(FRI, class_teacher=True),))
    teaches_then = SchoolPlan((), lessons=(LessonPlan(MON),))

    assert shown_to(session, "user 1", *events, plan=class_teacher) == [0, 1, 2, 3]
    assert shown_to(session, "user 1", *events, plan=teaches_then) == [0, 2, 3]
