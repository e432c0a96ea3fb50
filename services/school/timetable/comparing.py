"""Compare what a source says with the school's rows: what would come, go and change.

Nothing is written here. A row that a person entered, and a field that a person changed, stays. A
row that another source has stays that source's.
"""

from collections.abc import Iterable

from services.school.timetable.classes import match_classes
from services.school.timetable.dates import Dates
from services.school.timetable.lessons import Lessons, Names
from services.school.timetable.people import match_teachers
from services.school.timetable.plan import Comparison, Plan, What
from services.school.timetable.source import Question, TaughtClass, Teacher, Timetable
from services.school.timetable.state import State

# An answer that removes more than one in so many of the source's rows is refused.
MOST_REMOVED = 5
# Single dates come and go: when fewer go, that says nothing.
FEWEST_DATES = 20


def compare(source: str, timetable: Timetable, question: Question, state: State) -> Plan:
    """Return what brings the school's rows to what a source says."""
    comparison = Comparison(source, state)
    plan = comparison.plan
    for notice in timetable.notices:
        plan.note(What.NOTICE, "source", source, notice)
    classes = match_classes(comparison, _list_classes(timetable))
    teachers = match_teachers(comparison, _list_teachers(timetable))
    lessons = Lessons(comparison, timetable, Names(classes, teachers))
    dates = Dates(comparison, lessons, teachers, question.today)
    if timetable.changes is not None:
        dates.compare(timetable.changes)
    plan.refusal = _find_refusal(timetable, lessons, dates)
    return plan


def _find_refusal(timetable: Timetable, lessons: Lessons, dates: Dates) -> str:
    if not timetable.lessons:
        return "the source has no lesson"
    for term, owned in lessons.owned.items():
        if (gone := lessons.gone[term]) * MOST_REMOVED > owned:
            return (
                f"{gone} of its {owned} lessons in {term} would go, or lose their classes or"
                " teachers"
            )
    if dates.gone >= FEWEST_DATES and dates.gone * MOST_REMOVED > dates.owned:
        return f"{dates.gone} of its {dates.owned} coming changes of single dates would go"
    return ""


def _list_classes(timetable: Timetable) -> Iterable[TaughtClass]:
    if timetable.classes is not None:
        return timetable.classes
    names = dict.fromkeys(name for lesson in timetable.lessons for name in lesson.classes)
    return (TaughtClass(name, name) for name in names)


def _list_teachers(timetable: Timetable) -> Iterable[Teacher]:
    if timetable.teachers is not None:
        return timetable.teachers
    ids = dict.fromkeys(one for lesson in timetable.lessons for one in lesson.teachers)
    ids |= dict.fromkeys(one for change in timetable.changes or () for one in change.teachers or ())
    return map(Teacher, ids)
