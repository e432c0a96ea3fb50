"""Make weekly lessons and changes of single dates from what takes place on each date.

WebUntis and calendars say only the latter. What a lesson is as a rule is what it is on most of its
dates; a date that differs is a change.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from hashlib import blake2b
from typing import TypeVar

from services.school.timetable.source import SingleDate, Term, WeeklyLesson

V = TypeVar("V", bound=Hashable)

# A lesson is called by its group, weekday and time, and by the month in which its semester begins.
# An id has 50 characters.
LONGEST_GROUP = 38


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A lesson on one date. `group` is the same on all of its dates.

    `usual_room` and `usual_teachers` are those of which the source says itself that they are
    replaced on this date. Classes and teachers are the source's ids.
    """

    group: str
    day: date
    starts: time
    ends: time
    subject: str
    room: str = ""
    classes: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    cancelled: bool = False
    usual_room: str | None = None
    usual_teachers: tuple[str, ...] | None = None

    @property
    def rule(self) -> tuple[str, tuple[str, ...]]:
        """Return the room and the teachers that the lesson has as a rule, as far as this says."""
        room = self.room if self.usual_room is None else self.usual_room
        teachers = self.teachers if self.usual_teachers is None else self.usual_teachers
        return room, teachers


# A weekday and a time of day.
Slot = tuple[int, time]


def derive(
    occurrences: Iterable[Occurrence], term: Term, holidays: Collection[date]
) -> tuple[list[WeeklyLesson], list[SingleDate]]:
    """Return the weekly lessons of a semester, and what differs on single dates.

    A date on which a lesson is missing is one on which it is cancelled. But a day on which nobody
    has a lesson, and a week in which its classes have none, say nothing: the source may not know
    them. Of a lesson that is at another time in one week, the missing date is moved.
    """
    ours = [one for one in occurrences if term.first <= one.day <= term.last]
    days = sorted({one.day for one in ours} - set(holidays))
    weeks: dict[str, set[date]] = defaultdict(set)
    for one in ours:
        for class_id in one.classes:
            weeks[class_id].add(_week(one.day))
    ours = list(_tell_apart(ours))
    groups: dict[str, dict[Slot, dict[date, Occurrence]]] = defaultdict(lambda: defaultdict(dict))
    for one in sorted(ours, key=lambda one: (one.day, one.starts, one.cancelled)):
        slot = (one.day.isoweekday(), one.starts)
        groups[one.group][slot].setdefault(one.day, one)
    lessons: list[WeeklyLesson] = []
    changes: list[SingleDate] = []
    for group, slots in sorted(groups.items()):
        moved = _find_moves(slots, days)
        elsewhere = {slot for slot, _ in moved.values()}
        for slot, dates in sorted(slots.items()):
            if slot in elsewhere:
                continue
            lesson = _make_lesson(group, term, slot, dates)
            lessons.append(lesson)
            known = set[date]().union(*(weeks[one] for one in lesson.classes))
            asked = [
                day
                for day in days
                if day.isoweekday() == lesson.weekday
                and (day in dates or not lesson.classes or _week(day) in known)
            ]
            changes += _find_changes(lesson, slots, slot, asked, moved)
    return lessons, changes


def _tell_apart(occurrences: Collection[Occurrence]) -> Iterator[Occurrence]:
    """Give lessons of a group that are at the same time a group each, by their teachers."""
    at: dict[tuple[str, date, time], set[tuple[str, ...]]] = defaultdict(set)
    for one in occurrences:
        at[one.group, one.day, one.starts].add(one.rule[1])
    double = {group for (group, *_), teachers in at.items() if len(teachers) > 1}
    for one in occurrences:
        if one.group in double:
            yield replace(one, group=f"{one.group} {' '.join(one.rule[1])}")
        else:
            yield one


At = tuple[Slot, date]


def _find_moves(slots: dict[Slot, dict[date, Occurrence]], days: Sequence[date]) -> dict[At, At]:
    """Return where single dates are moved to, by where they are missing.

    A slot is moved dates when it has half as many dates as another at most, and for each of them
    the other misses one in the same week.
    """
    moved: dict[At, At] = {}
    kept: set[Slot] = set()
    for slot, dates in sorted(slots.items(), key=lambda one: (len(one[1]), one[0])):
        missing = {
            (other, day)
            for other, given in slots.items()
            if 2 * len(dates) <= len(given)
            for day in days
            if day.isoweekday() == other[0] and (day not in given or given[day].cancelled)
        }
        found: dict[At, At] = {}
        for day, one in dates.items():
            here = [
                at for at in missing - moved.keys() - found.keys() if _week(at[1]) == _week(day)
            ]
            if here and not one.cancelled:
                found[min(here, key=lambda at: (abs(at[1] - day), at))] = (slot, day)
        if slot not in kept and len(found) == len(dates):
            moved |= found
            kept |= {other for other, _ in found}
    return moved


def _week(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _make_lesson(group: str, term: Term, slot: Slot, dates: dict[date, Occurrence]) -> WeeklyLesson:
    weekday, starts = slot
    given = [one for one in dates.values() if not one.cancelled] or list(dates.values())

    def usual(read: Callable[[Occurrence], V]) -> V:
        # Of two that are as frequent, the earlier.
        return Counter(map(read, given)).most_common(1)[0][0]

    room, teachers = usual(lambda one: one.rule)
    return WeeklyLesson(
        id=f"{_shorten(group)}-{weekday}-{starts:%H%M}-{term.first:%y%m}",
        term=term.name,
        weekday=weekday,
        starts=starts,
        ends=usual(lambda one: one.ends),
        subject=usual(lambda one: one.subject),
        room=room,
        classes=usual(lambda one: one.classes),
        teachers=teachers,
    )


def _shorten(group: str) -> str:
    if len(group) <= LONGEST_GROUP:
        return group
    return blake2b(group.encode(), digest_size=16).hexdigest()


def _find_changes(
    lesson: WeeklyLesson,
    slots: dict[Slot, dict[date, Occurrence]],
    slot: Slot,
    days: Iterable[date],
    moved: dict[At, At],
) -> Iterator[SingleDate]:
    dates = slots[slot]
    for day in days:
        if there := moved.get((slot, day)):
            yield _compare(lesson, day, slots[there[0]][there[1]])
        elif day not in dates or dates[day].cancelled:
            yield SingleDate(lesson.id, day, cancelled=True)
        else:
            change = _compare(lesson, day, dates[day])
            if change != SingleDate(lesson.id, day):
                yield change


def _compare(lesson: WeeklyLesson, day: date, one: Occurrence) -> SingleDate:
    """Return what differs when a lesson of this day is given as `one`."""
    return SingleDate(
        lesson.id,
        day,
        room=one.room if one.room != lesson.room else None,
        moved_to=one.day if one.day != day else None,
        starts=one.starts if one.starts != lesson.starts else None,
        ends=one.ends if one.ends != lesson.ends else None,
        teachers=one.teachers if set(one.teachers) != set(lesson.teachers) else None,
    )
