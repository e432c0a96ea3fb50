"""Compare a source's changes of single dates with the school's."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date

from services.school.texts import normalise
from services.school.timetable.lessons import Lessons
from services.school.timetable.models import Kind
from services.school.timetable.plan import Comparison, What, Write, merge
from services.school.timetable.source import SingleDate
from services.school.timetable.state import Claim, Fields

AS_USUAL = ("room", "moved_to", "starts", "ends", "teachers")


class Dates:
    """The single dates of a source, compared with the school's.

    `owned` coming ones are the source's, and `gone` of them go. Past ones stay.
    """

    def __init__(
        self,
        comparison: Comparison,
        lessons: Lessons,
        teachers: Mapping[str, int],
        today: date,
    ) -> None:
        self._comparison = comparison
        self._state = comparison.state
        self._plan = comparison.plan
        self._lessons = lessons
        self._teachers = teachers
        self._today = today
        self._given: set[str] = set()
        self.owned = self.gone = 0

    def compare(self, changes: Iterable[SingleDate]) -> None:
        """Plan what comes, changes and goes."""
        for change in changes:
            key = f"{change.lesson}@{change.day}"
            if change.lesson not in self._lessons.rows:
                self._note(What.NOTICE, key, "is of a lesson that is not this source's")
            elif key in self._given:
                self._note(What.NOTICE, key, "stands twice in the source; the first counts")
            elif (new := self._make_fields(change)) is not None:
                self._given.add(key)
                self._compare(key, change, new)
        going = {row_id for kind, row_id in self._plan.removed if kind is Kind.LESSON}
        for (lesson_id, day), (row_id, fields) in self._state.changes.items():
            claim = self._state.claims.get((Kind.CHANGE, row_id))
            if claim is None or claim.source != self._comparison.source or day < self._today:
                continue
            self.owned += 1
            asked_for = self._state.lessons[lesson_id][1]["semester"] in self._lessons.terms
            if asked_for and claim.source_id not in self._given and lesson_id not in going:
                self._remove(row_id, fields, claim)

    def _compare(self, key: str, change: SingleDate, new: Fields) -> None:
        lesson_id = self._lessons.rows[change.lesson]
        found = None if lesson_id is None else self._state.changes.get((lesson_id, change.day))
        if found is None:
            self._write(key, None, new, new, change)
            self._note(What.COMES, key, self._show(new))
            return
        row_id, present = found
        claim = self._state.claims.get((Kind.CHANGE, row_id))
        if claim is None:
            if present != new:
                detail = f"a person entered it; the source says {self._show(new)}"
                self._note(What.KEPT, key, detail)
            return
        if claim.source != self._comparison.source:
            detail = (
                f"{claim.source} has this date; what {self._comparison.source} says is left out"
            )
            self._note(What.KEPT, key, detail)
            return
        merged = merge(present, self._still_there(claim), new)
        if merged.kept:
            self._note(What.KEPT, key, f"a person changed {', '.join(merged.kept)}")
        changed = merged.fields != present
        if changed:
            detail = f"{self._show(present)} → {self._show(merged.fields)}"
            self._note(What.CHANGES, key, detail)
        if changed or merged.written != claim.written:
            self._write(key, row_id, merged.fields if changed else None, merged.written, change)

    def _remove(self, row_id: int, fields: Fields, claim: Claim) -> None:
        if fields != self._still_there(claim):
            detail = "is not in the source any more, but a person changed it"
            self._note(What.KEPT, claim.source_id, detail)
            return
        self.gone += 1
        self._plan.removed.append((Kind.CHANGE, row_id))
        self._note(What.GOES, claim.source_id, self._show(fields))

    def _make_fields(self, change: SingleDate) -> Fields | None:
        """Return a change's fields, or None where the date is as usual."""
        teachers = None
        if change.teachers is not None:
            known = self._teachers
            teachers = sorted({known[one] for one in change.teachers if one in known})
        fields: Fields = {
            "cancelled": change.cancelled,
            "room": None if change.room is None else normalise(change.room),
            "moved_to": change.moved_to and change.moved_to.isoformat(),
            "starts": change.starts and f"{change.starts:%H:%M}",
            "ends": change.ends and f"{change.ends:%H:%M}",
            "teachers": teachers,
        }
        if change.cancelled:
            fields |= dict.fromkeys(AS_USUAL)
        return fields if any(value not in (None, False) for value in fields.values()) else None

    def _still_there(self, claim: Claim) -> Fields:
        """Return what the source wrote, without the users that are deleted since."""
        written = claim.written or {}
        teachers = written.get("teachers")
        if teachers is None:
            return written
        return written | {"teachers": [one for one in teachers if one in self._state.people]}

    def _write(
        self,
        key: str,
        row_id: int | None,
        fields: Fields | None,
        written: Fields,
        change: SingleDate,
    ) -> None:
        self._plan.writes.append(
            Write(Kind.CHANGE, key, row_id, fields, written, change.lesson, change.day)
        )

    def _show(self, fields: Fields) -> str:
        return ", ".join(self._parts(fields))

    def _parts(self, fields: Fields) -> Iterator[str]:
        if fields["cancelled"]:
            yield "cancelled"
        for name in ("room", "moved_to", "starts", "ends"):
            if fields[name] is not None:
                yield f"{name.replace('_', ' ')} {fields[name]}"
        if fields["teachers"] is not None:
            people = ", ".join(map(self._comparison.show_person, fields["teachers"]))
            yield f"taught by {people or 'no user of the school'}"

    def _note(self, what: What, row: str, detail: str) -> None:
        self._plan.note(what, "change", row, detail)
