"""Who sees which events: the rules of the school, over rows that are read once for many calendars.

An event is an index into `School.events`, which is in calendar order. What a calendar holds is a
set of such indexes.

- A class's feed: events that match the class and are for students or for all.
- A department's feed: events that name the department or match one of its classes, for any
  audience.
- A user's feed: the events that affect the user (if their subscription says so), those that name
  the user, and those of the departments' and classes' feeds that the user subscribed to; without
  the events that the user ignores.

The *matching classes* of an event are its classes, those of its class groups and those of its
departments. An event that names none of these, and no user, matches all classes and is in every
department's feed.

A teacher of a class is also affected by an event for students that overlaps one of their lessons
with it. A lesson takes place on its weekday in its semester, except on holidays, and as its changes
of single dates say: cancelled, at another time, or taught by other teachers.

An event for the whole school also affects users of its audience who attend and teach no class:
students by what is for students or for all, all others by what is for teachers or for all. Every
user who is not a student counts as a teacher.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import Reader, Session, plain, reader
from sqlalchemy import ColumnElement, exists, func, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute

from services.calendars.models import EventRevision
from services.calendars.window import Window
from services.school.models import (
    CLASS_GROUP_LENGTH,
    Audience,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
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
from services.school.recurrences import (
    DateChange,
    Series,
    find_local_days,
    find_occurrences_or_first,
)
from services.school.series import read_changes

Indexes = frozenset[int]
MINUTES_A_DAY = 24 * 60

# What EventFacts are made from.
EVENT_COLUMNS = (
    Event.id,
    plain(Event.audience),
    Event.addressed,
    Event.starts_at,
    Event.ends_at,
    Event.starts_on,
    Event.ends_on,
    Event.rrule,
)

# Raise it when the rules change: then the next sync works out every calendar again, although the
# school is the same.
RULES_VERSION = 4


# Named tuples: a school has tens of thousands of these, and a frozen dataclass takes three times as
# long to make.


Times = tuple[datetime | date, datetime | date]


class EventFacts(NamedTuple):
    """What the rules and a feed's fingerprint need of an event. They do not need its text."""

    id: UUID
    audience: Audience
    addressed: bool
    starts: datetime | date
    ends: datetime | date
    key: bytes
    # Each time that a repeated event takes place; empty for one that does not repeat.
    times: tuple[Times, ...] = ()

    @property
    def all_times(self) -> tuple[Times, ...]:
        """Return each time that the event takes place."""
        return self.times or ((self.starts, self.ends),)


class SemesterFacts(NamedTuple):
    id: int
    first: date
    last: date


class LessonFacts(NamedTuple):
    semester_id: int
    weekday: int
    begins: int  # minutes of the day
    ends: int
    is_class_teachers: bool
    class_ids: tuple[int, ...]
    # The dates on which this teacher does not teach it at its usual time.
    not_on: frozenset[date] = frozenset()


class OnceFacts(NamedTuple):
    """What a teacher teaches on one date beside their weekly lessons."""

    day: date
    begins: int
    ends: int
    class_ids: tuple[int, ...]


@dataclass(slots=True)
class UserFacts:
    """What the rules need of a user. The defaults are those of a user without a subscription."""

    id: int
    role: str
    class_id: int | None
    follows_me: bool = True
    departments: Sequence[int] = ()
    classes: Sequence[int] = ()
    ignored: Collection[int] = ()
    linked: Collection[int] = ()
    lessons: Sequence[LessonFacts] = ()
    once: Sequence[OnceFacts] = ()


class School:
    """The events of a window, and the classes, departments and users that they concern."""

    def __init__(
        self,
        events: list[EventFacts],
        semesters: list[SemesterFacts],
        classes: dict[int, tuple[str, int | None]],
        zone: ZoneInfo,
        holidays: frozenset[date] = frozenset(),
    ) -> None:
        self.events = events
        self.classes = classes.keys()
        self._zone = zone
        self._holidays = holidays
        self._semesters = semesters
        self._classes_of_department: dict[int, list[int]] = defaultdict(list)
        self._classes_of_group: dict[str, list[int]] = defaultdict(list)
        for class_id, (name, department_id) in classes.items():
            self._classes_of_group[name[:CLASS_GROUP_LENGTH]].append(class_id)
            if department_id is not None:
                self._classes_of_department[department_id].append(class_id)
        self._matching: dict[int, set[int]] = defaultdict(set)
        self._naming: dict[int, set[int]] = defaultdict(set)
        self._whole_school: set[int] = {
            index for index, event in enumerate(events) if not event.addressed
        }
        self._by_audience = {
            audience: frozenset(
                index for index, event in enumerate(events) if event.audience == audience
            )
            for audience in Audience
        }
        self._semesters_of = [
            self._semesters_at([find_local_days(*times, zone) for times in event.all_times])
            for event in events
        ]
        self._of_class: dict[int, Indexes] = {}
        self._of_department: dict[int, Indexes] = {}
        self._listed: dict[Indexes, tuple[list[int], bytes]] = {}
        self._teaching: dict[int, dict[tuple[int, bool], Indexes]] = {}
        self._during: dict[int, dict[tuple[int, int], list[tuple[int, int, int]]]] = {}

    # --- what events name ---

    def name_class(self, index: int, class_id: int) -> None:
        """Note that the event names a class."""
        self._matching[class_id].add(index)
        self._whole_school.discard(index)

    def name_group(self, index: int, group: str) -> None:
        """Note that the event names a class group."""
        for class_id in self._classes_of_group.get(group, ()):
            self._matching[class_id].add(index)
        self._whole_school.discard(index)

    def name_department(self, index: int, department_id: int) -> None:
        """Note that the event names a department."""
        self._naming[department_id].add(index)
        for class_id in self._classes_of_department.get(department_id, ()):
            self._matching[class_id].add(index)
        self._whole_school.discard(index)

    def name_person(self, index: int) -> None:
        """Note that the event names a user, so it is not for the whole school."""
        self._whole_school.discard(index)

    # --- what calendars hold ---

    def of_class(self, class_id: int) -> Indexes:
        """Return the events of a class's feed."""
        found = self._of_class.get(class_id)
        if found is None:
            for_students = self._by_audience[Audience.STUDENTS] | self._by_audience[Audience.ALL]
            found = self._of_class[class_id] = frozenset(self.matching(class_id) & for_students)
        return found

    def of_department(self, department_id: int) -> Indexes:
        """Return the events of a department's feed."""
        found = self._of_department.get(department_id)
        if found is None:
            of_classes = (
                self._matching[class_id]
                for class_id in self._classes_of_department.get(department_id, ())
            )
            found = self._of_department[department_id] = frozenset(
                self._whole_school.union(self._naming[department_id], *of_classes)
            )
        return found

    def of_user(self, user: UserFacts) -> Indexes:
        """Return the events of a user's feed."""
        affecting = self._affecting(user) if user.follows_me else frozenset()
        subscribed = [*map(self.of_department, user.departments), *map(self.of_class, user.classes)]
        if not (subscribed or user.linked or user.ignored):
            # Most students: the set of their class, which is one object for all of them.
            return affecting
        return affecting.union(user.linked, *subscribed).difference(user.ignored)

    def listed(self, indexes: Indexes) -> tuple[list[int], bytes]:
        """Return the events in calendar order, and a digest of their rendered revisions."""
        found = self._listed.get(indexes)
        if found is None:
            events = sorted(indexes)
            digest = hashlib.blake2b(
                b"".join([self.events[index].key for index in events]), digest_size=16
            )
            found = self._listed[indexes] = (events, digest.digest())
        return found

    def matching(self, class_id: int) -> set[int]:
        """Return the events that match a class, for any audience."""
        return self._matching[class_id] | self._whole_school

    def is_for_the_whole_school(self, index: int) -> bool:
        """Return whether an event names no class, group, department or user."""
        return index in self._whole_school

    def _affecting(self, user: UserFacts) -> Indexes:
        if user.role == Role.STUDENT:
            # A class's events include those of the whole school.
            if user.class_id is not None:
                return self.of_class(user.class_id)
            return self._for_every_student
        affecting = self._for_every_teacher | self._affecting_teacher(user.lessons)
        return affecting.union(*map(self._during_once, user.once)) if user.once else affecting

    @cached_property
    def _for_every_student(self) -> Indexes:
        return self._of_whole_school(Audience.STUDENTS, Audience.ALL)

    @cached_property
    def _for_every_teacher(self) -> Indexes:
        return self._of_whole_school(Audience.TEACHERS, Audience.ALL)

    def _of_whole_school(self, *audiences: Audience) -> Indexes:
        of_audiences = frozenset().union(*map(self._by_audience.__getitem__, audiences))
        return of_audiences & self._whole_school

    def _affecting_teacher(self, lessons: Sequence[LessonFacts]) -> Indexes:
        affecting: set[int] = set()
        taught = {
            (class_id, lesson.semester_id, lesson.is_class_teachers)
            for lesson in lessons
            for class_id in lesson.class_ids
        }
        for class_id, semester_id, class_teacher in taught:
            affecting |= self._by_teaching(class_id, semester_id, class_teacher=class_teacher)
        for lesson in lessons:
            for class_id in lesson.class_ids:
                for index, begins, ends in self._students_events(class_id).get(
                    (lesson.semester_id, lesson.weekday), ()
                ):
                    if _overlap(begins, ends, lesson) and (
                        not lesson.not_on or self._overlaps_as_given(lesson, index)
                    ):
                        affecting.add(index)
        return frozenset(affecting)

    def _overlaps_as_given(self, lesson: LessonFacts, index: int) -> bool:
        """Return whether an event overlaps a lesson on a date on which it is given as usual."""
        semester = next(one for one in self._semesters if one.id == lesson.semester_id)
        return any(
            day.isoweekday() == lesson.weekday
            and day not in lesson.not_on
            and any(
                _overlap(begins, ends, lesson)
                for _, begins, ends in self._minutes_taken(index, day, day)
            )
            for day in self._days(index, semester)
        )

    def _days(self, index: int, semester: SemesterFacts) -> Iterator[date]:
        for times in self.events[index].all_times:
            first, last = find_local_days(*times, self._zone)
            begin, end = max(first, semester.first), min(last, semester.last)
            for offset in range((end - begin).days + 1):
                yield begin + timedelta(days=offset)

    def _during_once(self, once: OnceFacts) -> Indexes:
        """Return the events for students of a class during what is taught on one date."""
        return frozenset(
            index
            for class_id in once.class_ids
            for index in self.matching(class_id) & self._by_audience[Audience.STUDENTS]
            for _, begins, ends in self._minutes_taken(index, once.day, once.day)
            if _overlap(begins, ends, once)
        )

    def _minutes_taken(
        self, index: int, first: date, last: date
    ) -> tuple[tuple[int, int, int], ...]:
        all_times = self.events[index].all_times
        return find_all_minutes_taken(all_times, (first, last), self._zone, self._holidays)

    def _by_teaching(self, class_id: int, semester_id: int, *, class_teacher: bool) -> Indexes:
        """Return the events that affect every teacher of a class in a semester.

        With `class_teacher`, those that affect its class teacher.
        """
        cached = self._teaching.setdefault(class_id, {})
        found = cached.get((semester_id, class_teacher))
        if found is None:
            wanted = {Audience.TEACHERS, Audience.ALL} | (
                {Audience.CLASS_TEACHERS, Audience.STUDENTS} if class_teacher else set()
            )
            found = cached[semester_id, class_teacher] = frozenset(
                index
                for index in self.matching(class_id)
                if self.events[index].audience in wanted
                and semester_id in self._semesters_of[index]
            )
        return found

    def _students_events(self, class_id: int) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
        """Return a class's events for students, by semester and ISO weekday.

        Each is (event, begin, end): the minutes of the day that the event takes.
        """
        found = self._during.get(class_id)
        if found is None:
            found = self._during[class_id] = defaultdict(list)
            for index in self.matching(class_id) & self._by_audience[Audience.STUDENTS]:
                for semester in self._semesters:
                    for weekday, begins, ends in self._minutes_taken(
                        index, semester.first, semester.last
                    ):
                        found[semester.id, weekday].append((index, begins, ends))
        return found

    def _semesters_at(self, spans: Sequence[tuple[date, date]]) -> tuple[int, ...]:
        """Return the semesters that these days fall in, else the latest that began before them."""
        during = tuple(
            semester.id
            for semester in self._semesters
            if any(semester.first <= last and semester.last >= first for first, last in spans)
        )
        if during:
            return during
        first = min(first for first, _ in spans)
        before = [semester for semester in self._semesters if semester.first <= first]
        return (max(before, key=lambda semester: semester.first).id,) if before else ()


def find_minutes_taken(
    starts: datetime | date,
    ends: datetime | date,
    within: tuple[date, date],
    zone: ZoneInfo,
    holidays: frozenset[date],
) -> tuple[tuple[int, int, int], ...]:
    """Return which minutes of a day an event takes on its days within two days.

    Each is (ISO weekday, begin, end), without repeats. Holidays are left out.
    """
    event_first, event_last = find_local_days(starts, ends, zone)
    taken: set[tuple[int, int, int]] = set()
    begin, end = max(within[0], event_first), min(within[1], event_last)
    every = (begin + timedelta(days=offset) for offset in range((end - begin).days + 1))
    days = [day for day in every if day not in holidays]
    # The event may take a part of its first and last day. The days between take all minutes, so
    # one of each weekday is enough.
    between = {day.isoweekday(): day for day in days}
    for day in {*days[:1], *days[-1:], *between.values()}:
        begins, finishes = 0, MINUTES_A_DAY
        if isinstance(starts, datetime) and isinstance(ends, datetime):
            local = starts.astimezone(zone)
            if day == local.date():
                begins = local.hour * 60 + local.minute
            local = ends.astimezone(zone)
            if day == local.date():
                # A minute that has begun counts.
                finishes = local.hour * 60 + local.minute + (local.second > 0)
        taken.add((day.isoweekday(), begins, finishes))
    return tuple(sorted(taken))


# Called for the same event again for every class that it matches, in every chunk of a run.
@lru_cache(maxsize=20_000)
def find_all_minutes_taken(
    all_times: tuple[Times, ...],
    within: tuple[date, date],
    zone: ZoneInfo,
    holidays: frozenset[date],
) -> tuple[tuple[int, int, int], ...]:
    """Return what `find_minutes_taken` does, for all times that an event takes place."""
    taken: set[tuple[int, int, int]] = set()
    for starts, ends in all_times:
        taken.update(find_minutes_taken(starts, ends, within, zone, holidays))
    return tuple(sorted(taken))


def read_school(
    session: Session, window: Window, users: Collection[UserFacts], *, all_users: bool = False
) -> School:
    """Read the school's events and whom they concern, and complete `users` in place.

    The number of queries is always the same. `all_users` says that `users` are all users: then no
    query lists them, since a query takes a limited number of parameters.
    """
    read = reader(session)
    revision = (EventRevision.digest, EventRevision.sequence, EventRevision.modified_at)
    rows = read(
        select(*EVENT_COLUMNS, *revision)
        .join(EventRevision, EventRevision.event_id == Event.id)
        .where(window.current(), EventRevision.error.is_(None))
    )
    repeated = read_changes(session, window.current() & (Event.rrule != ""))
    events = [
        _make_facts(
            row,
            repeated,
            window.zone,
            row.digest + b"%d.%d" % (row.sequence, row.modified_at.timestamp()),
        )
        for row in rows
    ]
    # Of a repeated event the rows say only between which days it has dates.
    events = [
        event
        for event in events
        if not event.times or any(window.reaches(*times) for times in event.times)
    ]
    events.sort(key=lambda event: (_moment(event.starts), event.id))
    school, index_of, people = _named(read, events, window.zone)
    by_id = {user.id: user for user in users}
    for user_id in people.keys() & by_id.keys():
        by_id[user_id].linked = people[user_id]
    if by_id:
        _complete(session, by_id, index_of, all_users=all_users)
    return school


def _make_facts(
    row: Any, repeated: Mapping[UUID, tuple[DateChange, ...]], zone: ZoneInfo, key: bytes
) -> EventFacts:
    starts, ends = row.starts_at or row.starts_on, row.ends_at or row.ends_on
    times: tuple[Times, ...] = ()
    if row.rrule:
        times = find_times(Series(starts, ends, row.rrule, repeated.get(row.id, ())), zone)
    return EventFacts(row.id, row.audience, row.addressed, starts, ends, key, times)


# The same object for the same event: what is kept by it is found at once.
@lru_cache(maxsize=1_000)
def find_times(series: Series, zone: ZoneInfo) -> tuple[Times, ...]:
    """Return each time that an event takes place, also cancelled ones, which calendars show."""
    return tuple((one.starts, one.ends) for one in find_occurrences_or_first(series, zone))


def has_user_feed() -> ColumnElement[bool]:
    """Select the users who get a user feed: in the timetable system, or with a subscription."""
    return or_(User.untis_id.is_not(None), exists().where(Subscription.user_id == User.id))


def find_affected(session: Session, event_id: UUID, zone: ZoneInfo) -> set[int]:
    """Return the ids of the users whom an event affects or names, without those who ignore it.

    Other subscriptions do not matter. Only users who attend or teach a class of the event are
    read, and for an event of the whole school all who have a user feed. An event that does not
    exist affects no user.
    """
    read = reader(session)
    rows = read(select(*EVENT_COLUMNS).where(Event.id == event_id))
    repeats = any(row.rrule for row in rows)
    repeated = read_changes(session, Event.id == event_id) if repeats else {}
    events = [_make_facts(row, repeated, zone, b"") for row in rows]
    school, _, people = _named(read, events, zone, only=event_id)
    attending = [class_id for class_id in school.classes if school.of_class(class_id)]
    found = read(
        select(User.id).where(plain(User.role) == Role.STUDENT, User.class_id.in_(attending))
    )
    users = set(people).union(row.id for row in found)
    matching = [class_id for class_id in school.classes if school.matching(class_id)]
    attended = select(LessonClass.lesson_id).where(LessonClass.class_id.in_(matching))
    theirs = LessonTeacher.lesson_id.in_(attended)
    substitutes = (
        select(LessonChangeTeacher.user_id)
        .join(LessonChange)
        .where(LessonChange.lesson_id.in_(attended))
    )
    teachers = {
        row.id: UserFacts(row.id, row.role, None)
        for row in read(
            select(User.id, plain(User.role)).where(
                or_(
                    User.id.in_(select(LessonTeacher.user_id).where(theirs)),
                    User.id.in_(substitutes),
                )
            )
        )
    }
    _complete_lessons(read, teachers, LessonChange.lesson_id.in_(attended), theirs)
    users |= {user_id for user_id, facts in teachers.items() if school.of_user(facts)}
    if events and school.is_for_the_whole_school(0):
        all_users = read(select(User.id, plain(User.role)).where(has_user_feed()))
        users |= {row.id for row in all_users if school.of_user(UserFacts(row.id, row.role, None))}
    return users.difference(
        row.user_id
        for row in read(select(IgnoredEvent.user_id).where(IgnoredEvent.event_id == event_id))
    )


def _named(
    read: Reader, events: list[EventFacts], zone: ZoneInfo, *, only: UUID | None = None
) -> tuple[School, dict[UUID, int], dict[int, list[int]]]:
    """Read whom these events name; return the school, the events' indexes, and events by user.

    With `only`, read the names of this one event.
    """
    semesters = [
        SemesterFacts(*row)
        for row in read(select(Semester.id, Semester.starts_on, Semester.ends_on))
    ]
    classes = {
        row.id: (row.name, row.department_id)
        for row in read(select(SchoolClass.id, SchoolClass.name, SchoolClass.department_id))
    }
    holidays = _read_holidays(read, semesters)
    school = School(events, semesters, classes, zone, holidays)
    index_of = {event.id: index for index, event in enumerate(events)}

    def links(
        event: InstrumentedAttribute[UUID], other: InstrumentedAttribute[Any]
    ) -> Iterable[tuple[int, Any]]:
        rows = read(select(event, other).where(true() if only is None else event == only))
        return ((index_of[event_id], value) for event_id, value in rows if event_id in index_of)

    for index, class_id in links(EventClass.event_id, EventClass.class_id):
        school.name_class(index, class_id)
    for index, group in links(EventClassGroup.event_id, EventClassGroup.class_group):
        school.name_group(index, group)
    for index, department_id in links(EventDepartment.event_id, EventDepartment.department_id):
        school.name_department(index, department_id)
    people = defaultdict(list)
    for index, user_id in links(EventUser.event_id, EventUser.user_id):
        school.name_person(index)
        people[user_id].append(index)
    return school, index_of, people


def _complete(
    session: Session, users: dict[int, UserFacts], index_of: dict[UUID, int], *, all_users: bool
) -> None:
    """Read the subscriptions and lessons of `users` into them."""
    read = reader(session)

    def theirs(column: InstrumentedAttribute[int]) -> ColumnElement[bool]:
        return true() if all_users else column.in_(users)

    def grouped(
        user: InstrumentedAttribute[int], value: InstrumentedAttribute[Any]
    ) -> Iterable[tuple[UserFacts, list[Any]]]:
        values: dict[int, list[Any]] = defaultdict(list)
        for user_id, one in read(select(user, value).where(theirs(user))):
            values[user_id].append(one)
        return ((users[user_id], values[user_id]) for user_id in values.keys() & users.keys())

    for user, (follows_me,) in grouped(Subscription.user_id, Subscription.follows_me):
        user.follows_me = follows_me
    for user, departments in grouped(
        SubscribedDepartment.user_id, SubscribedDepartment.department_id
    ):
        user.departments = departments
    for user, subscribed in grouped(SubscribedClass.user_id, SubscribedClass.class_id):
        user.classes = subscribed
    for user, ignored in grouped(IgnoredEvent.user_id, IgnoredEvent.event_id):
        user.ignored = [index_of[event_id] for event_id in ignored if event_id in index_of]
    concerning = or_(
        LessonChange.lesson_id.in_(
            select(LessonTeacher.lesson_id).where(theirs(LessonTeacher.user_id))
        ),
        LessonChange.id.in_(
            select(LessonChangeTeacher.change_id).where(theirs(LessonChangeTeacher.user_id))
        ),
    )
    _complete_lessons(
        read, users, true() if all_users else concerning, theirs(LessonTeacher.user_id)
    )


class _Change(NamedTuple):
    """A lesson as it is on one date. `teachers` is None where the lesson's own teach."""

    day: date
    cancelled: bool
    moved_to: date | None
    starts: time
    ends: time
    teachers: tuple[int, ...] | None


def _complete_lessons(
    read: Reader,
    users: dict[int, UserFacts],
    changed: ColumnElement[bool],
    theirs: ColumnElement[bool],
) -> None:
    """Read lessons and what teachers teach on single dates into `users`.

    `changed` selects the changes, and `theirs` the links of teachers to lessons.
    """
    changes = _read_changes(read, changed)
    taught = or_(
        LessonClass.lesson_id.in_(select(LessonTeacher.lesson_id).where(theirs)),
        LessonClass.lesson_id.in_(select(LessonChange.lesson_id).where(changed)),
    )
    classes: dict[int, list[int]] = defaultdict(list)
    for lesson_id, class_id in read(
        select(LessonClass.lesson_id, LessonClass.class_id).where(taught)
    ):
        classes[lesson_id].append(class_id)
    columns = (
        LessonTeacher.user_id,
        Lesson.id,
        Lesson.semester_id,
        Lesson.weekday,
        Lesson.starts,
        Lesson.ends,
        Lesson.is_class_teachers,
    )
    lessons = select(*columns).join(Lesson, Lesson.id == LessonTeacher.lesson_id).where(theirs)
    weekly: dict[int, list[LessonFacts]] = defaultdict(list)
    own: dict[int, list[int]] = defaultdict(list)
    for user_id, lesson_id, semester_id, weekday, starts, ends, class_teachers in read(lessons):
        usual = LessonFacts(
            semester_id,
            weekday,
            _minutes(starts),
            _minutes(ends),
            class_teachers,
            tuple(classes[lesson_id]),
            frozenset(change.day for change in changes.get(lesson_id, ())),
        )
        weekly[user_id].append(usual)
        if lesson_id in changes:
            own[lesson_id].append(user_id)
    once: dict[int, list[OnceFacts]] = defaultdict(list)
    for lesson_id, of_lesson in changes.items():
        for change in of_lesson:
            if change.cancelled:
                continue
            taken = OnceFacts(
                change.moved_to or change.day,
                _minutes(change.starts),
                _minutes(change.ends),
                tuple(classes[lesson_id]),
            )
            for user_id in own[lesson_id] if change.teachers is None else change.teachers:
                once[user_id].append(taken)
    for user_id in weekly.keys() & users.keys():
        users[user_id].lessons = weekly[user_id]
    for user_id in once.keys() & users.keys():
        users[user_id].once = once[user_id]


def _read_changes(read: Reader, changed: ColumnElement[bool]) -> dict[int, list[_Change]]:
    """Return the changes of single dates that concern who teaches when, by lesson."""
    matters = or_(
        LessonChange.cancelled,
        LessonChange.substituted,
        LessonChange.moved_to.is_not(None),
        LessonChange.starts.is_not(None),
        LessonChange.ends.is_not(None),
    )
    teachers: dict[int, list[int]] = defaultdict(list)
    links = select(LessonChangeTeacher.change_id, LessonChangeTeacher.user_id).join(LessonChange)
    for change_id, user_id in read(links.where(changed)):
        teachers[change_id].append(user_id)
    columns = (
        LessonChange.id,
        LessonChange.lesson_id,
        LessonChange.taken_on,
        LessonChange.cancelled,
        LessonChange.moved_to,
        func.coalesce(LessonChange.starts, Lesson.starts),
        func.coalesce(LessonChange.ends, Lesson.ends),
        LessonChange.substituted,
    )
    found = select(*columns).join(Lesson).where(changed, matters)
    changes: dict[int, list[_Change]] = defaultdict(list)
    for row in read(found):
        change_id, lesson_id, day, cancelled, moved_to, starts, ends, substituted = row
        others = tuple(teachers[change_id]) if substituted else None
        changes[lesson_id].append(_Change(day, cancelled, moved_to, starts, ends, others))
    return changes


def _read_holidays(read: Reader, semesters: Sequence[SemesterFacts]) -> frozenset[date]:
    """Return all days of the semesters that are holidays."""
    if not semesters:
        return frozenset()
    begin = min(semester.first for semester in semesters)
    end = max(semester.last for semester in semesters)
    spans = (
        (max(first, begin), min(last, end))
        for first, last in read(select(Holiday.starts_on, Holiday.ends_on))
    )
    return frozenset(
        first + timedelta(days=offset)
        for first, last in spans
        for offset in range((last - first).days + 1)
    )


def _overlap(begins: int, ends: int, lesson: LessonFacts | OnceFacts) -> bool:
    """Return whether minutes of a day overlap a lesson's; one moment does at its beginning."""
    return begins < lesson.ends and (ends > lesson.begins or begins == ends == lesson.begins)


@cache
def _minutes(wall_clock: time) -> int:
    return wall_clock.hour * 60 + wall_clock.minute


def _moment(starts: datetime | date) -> float:
    if isinstance(starts, datetime):
        return starts.timestamp()
    return (starts - date(1970, 1, 1)).days * 86400.0
