"""Find the users that a source's teachers are."""

from collections import Counter
from collections.abc import Iterable

from services.school.timetable.plan import Comparison, What
from services.school.timetable.source import Teacher
from services.school.timetable.state import Person, make_name


def match_teachers(comparison: Comparison, teachers: Iterable[Teacher]) -> dict[str, int]:
    """Return the users that the source's teachers are, and plan the ids that move.

    A teacher is the user with their address; else the user with their id, unless that one has
    another name and a single other user has theirs; else the only user with their name. The others
    are noted.
    """
    ours = list({teacher.id: teacher for teacher in teachers}.values())
    finder = _Finder(comparison, ours)
    found = {one.id: user_id for one in ours if (user_id := finder.find(one)) is not None}
    _move_ids(comparison, found)
    return found


class _Finder:
    def __init__(self, comparison: Comparison, teachers: Iterable[Teacher]) -> None:
        self._comparison = comparison
        self._state = comparison.state
        people = comparison.state.people.values()
        self._by_email = {person.email: person.id for person in people}
        self._by_name: dict[str, list[Person]] = {}
        for person in people:
            self._by_name.setdefault(person.name, []).append(person)
        self._names = Counter(make_name(one.first_name, one.last_name) for one in teachers)

    def find(self, teacher: Teacher) -> int | None:
        """Return a teacher's user, or None where that is not sure."""
        if user_id := self._by_email.get(teacher.email.lower()):
            return user_id
        name = make_name(teacher.first_name, teacher.last_name)
        namesakes = self._by_name.get(name, []) if name else []
        holder = self._state.people.get(self._state.holders.get(teacher.id, 0))
        if holder and (not name or holder.name == name or len(namesakes) != 1):
            return holder.id
        if len(namesakes) == 1 and self._names[name] == 1:
            return namesakes[0].id
        why = (
            "several have this name; give the user's untis_id or the teacher's address"
            if namesakes
            else "no user has this id, address or name"
        )
        self._comparison.plan.note(What.NOTICE, "teacher", teacher.id, why)
        return None


def _move_ids(comparison: Comparison, found: dict[str, int]) -> None:
    """Plan the new ids of users. An id that another user keeps does not move."""
    people, holders, plan = comparison.state.people, comparison.state.holders, comparison.plan
    theirs: dict[int, list[str]] = {}
    for teacher_id, user_id in found.items():
        theirs.setdefault(user_id, []).append(teacher_id)
    wanted = {
        user_id: ids[0] for user_id, ids in theirs.items() if people[user_id].untis_id not in ids
    }
    while True:
        kept = {new for new in wanted.values() if holders.get(new, 0) not in {0, *wanted}}
        if not kept:
            break
        for user_id, new in list(wanted.items()):
            if new in kept:
                del wanted[user_id]
                detail = f"user {user_id} should get this id, but another user has it"
                plan.note(What.NOTICE, "teacher", new, detail)
    for user_id, new in wanted.items():
        detail = f"user {user_id}: untis_id {people[user_id].untis_id or '–'} → {new}"
        plan.note(What.CHANGES, "teacher", new, detail)
    plan.moved = wanted
