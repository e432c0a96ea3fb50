"""Compare a source's weekly lessons with the school's."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from services.school.texts import normalise
from services.school.timetable.classes import ClassRef
from services.school.timetable.models import Kind
from services.school.timetable.plan import Comparison, What, Write, merge
from services.school.timetable.source import Timetable, WeeklyLesson
from services.school.timetable.state import Claim, Fields

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True)
class Names:
    """The school's classes and users by the source's ids."""

    classes: Mapping[str, ClassRef]
    teachers: Mapping[str, int]


class Lessons:
    """The lessons of a source, compared with the school's.

    `rows` are those whose single dates the source may change, by its ids: None for one that comes.
    By semester, `owned` lessons are the source's, and `gone` of them go, or lose all their classes
    or all their teachers.
    """

    def __init__(self, comparison: Comparison, timetable: Timetable, names: Names) -> None:
        self._comparison = comparison
        self._state = comparison.state
        self._plan = comparison.plan
        self._mine = comparison.mine
        self._names = names
        self._by_key = {key: row_id for row_id, (key, _) in self._state.lessons.items()}
        self.terms = timetable.terms
        self.rows: dict[str, int | None] = {}
        self.owned: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()
        given: set[str] = set()
        for lesson in timetable.lessons:
            if lesson.id in given:
                self._note(What.NOTICE, lesson.id, "stands twice in the source; the first counts")
            else:
                given.add(lesson.id)
                self._compare(lesson)
        for (kind, source_id), (row_id, claim) in self._mine.items():
            term = self._find_term(row_id)
            if kind is Kind.LESSON and term in self.terms:
                self.owned[term] += 1
                if source_id not in given:
                    self._remove(row_id, claim)
        self._plan.lesson_ids = {one: row for one, row in self.rows.items() if row is not None}

    def _find_term(self, row_id: int) -> str:
        _, fields = self._state.lessons.get(row_id, ("", {"semester": ""}))
        return str(fields["semester"])

    def _compare(self, lesson: WeeklyLesson) -> None:
        row_id, claim = self._mine.get((Kind.LESSON, lesson.id), (None, None))
        if lesson.term not in self._state.terms:
            detail = f"no semester {lesson.term!r} that has not ended is known"
            self._note(What.NOTICE, lesson.id, detail)
            if row_id is not None:
                self.rows[lesson.id] = row_id
            return
        new = self._make_fields(lesson)
        if row_id is None or claim is None or row_id not in self._state.lessons:
            self._compare_unknown(lesson, new)
            return
        self.rows[lesson.id] = row_id
        key, present = self._state.lessons[row_id]
        merged = merge(present, self._still_there(claim), new)
        if merged.kept:
            self._note(What.KEPT, key, f"a person changed {', '.join(merged.kept)}")
        changed = merged.fields != present
        if changed:
            self._note(What.CHANGES, key, self._show_difference(present, merged.fields))
            lists = ("classes", "teachers")
            if any(present[name] and not merged.fields[name] for name in lists):
                self.gone[present["semester"]] += 1
        if changed or merged.written != claim.written:
            fields = merged.fields if changed else None
            self._plan.writes.append(Write(Kind.LESSON, lesson.id, row_id, fields, merged.written))

    def _compare_unknown(self, lesson: WeeklyLesson, new: Fields) -> None:
        row_id = self._by_key.get(lesson.id)
        if row_id is None:
            self.rows[lesson.id] = None
            self._plan.writes.append(Write(Kind.LESSON, lesson.id, None, new, new))
            self._note(What.COMES, lesson.id, self._show(new))
            return
        present = self._state.lessons[row_id][1]
        if holder := self._state.claims.get((Kind.LESSON, row_id)):
            source = self._comparison.source
            detail = f"{holder.source} has this lesson; what {source} says is left out"
            self._note(What.KEPT, lesson.id, detail)
            return
        self.rows[lesson.id] = row_id
        if present != new:
            differing = self._show_difference(present, new)
            detail = f"a person entered it; the source says {differing}"
            self._note(What.KEPT, lesson.id, detail)

    def _remove(self, row_id: int, claim: Claim) -> None:
        key, fields = self._state.lessons[row_id]
        if fields != self._still_there(claim):
            detail = "is not in the source any more, but a person changed it"
            self._note(What.KEPT, key, detail)
            return
        self.gone[fields["semester"]] += 1
        self._plan.removed.append((Kind.LESSON, row_id))
        self._note(What.GOES, key, self._show(fields))

    def _make_fields(self, lesson: WeeklyLesson) -> Fields:
        for one in lesson.classes:
            if one not in self._names.classes:
                self._note(What.NOTICE, lesson.id, f"names the class {one!r}, which is not there")
        classes = {self._names.classes[one] for one in lesson.classes if one in self._names.classes}
        known = self._names.teachers
        return {
            "semester": lesson.term,
            "weekday": lesson.weekday,
            "starts": f"{lesson.starts:%H:%M}",
            "ends": f"{lesson.ends:%H:%M}",
            "subject": normalise(lesson.subject),
            "room": normalise(lesson.room),
            "class_teacher": lesson.class_teacher,
            "classes": sorted(classes, key=lambda one: (isinstance(one, str), one)),
            "teachers": sorted({known[one] for one in lesson.teachers if one in known}),
        }

    def _still_there(self, claim: Claim) -> Fields:
        """Return what the source wrote, without the classes and users that are deleted since."""
        written = claim.written or {}
        classes, people = self._state.classes, self._state.people
        return written | {
            "classes": [one for one in written.get("classes", ()) if one in classes],
            "teachers": [one for one in written.get("teachers", ()) if one in people],
        }

    def _show(self, fields: Fields) -> str:
        when = f"{DAYS[fields['weekday'] - 1]} {fields['starts']}–{fields['ends']}"
        return " ".join(
            filter(None, (when, fields["subject"], self._show_field("classes", fields)))
        )

    def _show_field(self, name: str, fields: Fields) -> str:
        if name == "classes":
            classes = self._state.classes
            return ", ".join(classes[one] if one in classes else str(one) for one in fields[name])
        if name == "teachers":
            return ", ".join(map(self._comparison.show_person, fields[name]))
        return str(fields[name])

    def _show_difference(self, before: Fields, after: Fields) -> str:
        return "; ".join(
            f"{name}: {self._show_field(name, before) or '–'} →"
            f" {self._show_field(name, after) or '–'}"
            for name in before
            if before[name] != after[name]
        )

    def _note(self, what: What, row: str, detail: str) -> None:
        self._plan.note(what, "lesson", row, detail)
