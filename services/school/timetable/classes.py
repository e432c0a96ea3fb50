"""Find the school's classes that a source's classes are."""

from collections import Counter
from collections.abc import Iterable

from services.school.timetable.models import Kind
from services.school.timetable.plan import Comparison, What, Write
from services.school.timetable.source import TaughtClass

# A class that is not there yet has its name in the place of an id.
ClassRef = int | str


def match_classes(comparison: Comparison, classes: Iterable[TaughtClass]) -> dict[str, ClassRef]:
    """Return the school's classes by the source's ids, and plan those that come or are renamed.

    A class is the one that the source has under this id, else the one with this name, else a new
    one. No class is deleted: its users, events and calendar would lose it.
    """
    ours = list(dict.fromkeys(classes))
    matcher = _Matcher(comparison, {one.id for one in ours})
    matcher.note_double_names(ours)
    matcher.rename([one for one in ours if (Kind.CLASS, one.id) in comparison.mine])
    for one in ours:
        matcher.find_by_name(one)
    matcher.note_missing()
    return matcher.found


class _Matcher:
    def __init__(self, comparison: Comparison, given: set[str]) -> None:
        self._source = comparison.source
        self._given = given
        self.found: dict[str, ClassRef] = {}
        self._plan = comparison.plan
        self._mine = comparison.mine
        self._claims = comparison.state.claims
        self._names = comparison.state.classes
        self._ids = {name: row_id for row_id, name in self._names.items()}
        self._linked: set[ClassRef] = set()

    def note_double_names(self, classes: list[TaughtClass]) -> None:
        for name, number in Counter(one.name for one in classes).items():
            if number > 1:
                ids = ", ".join(one.id for one in classes if one.name == name)
                self._note(What.NOTICE, name, f"the source has this name under the ids {ids}")

    def rename(self, classes: list[TaughtClass]) -> None:
        """Find the classes that the source has, and plan the renaming of those that it made."""
        free = {self._names[row] for one in classes if (row := self._find_renamed(one))}
        for one in classes:
            row_id, claim = self._mine[Kind.CLASS, one.id]
            if row_id not in self._names:
                continue
            self.found[one.id] = row_id
            present = self._names[row_id]
            if present == one.name:
                continue
            said = f"is called {one.name} in the source"
            if claim.written != {"name": present}:
                self._note(What.KEPT, present, f"{said}; a person named it")
            elif one.name in self._ids and one.name not in free:
                self._note(What.KEPT, present, f"{said}, as another class here")
            else:
                free.discard(one.name)
                self._ids[one.name] = row_id
                self._write(one, row_id, {"name": one.name})
                self._note(What.CHANGES, present, f"name: {present} → {one.name}")

    def _find_renamed(self, one: TaughtClass) -> int:
        """Return the class of the source's making that has another name by now, or 0."""
        row_id, claim = self._mine[Kind.CLASS, one.id]
        name = self._names.get(row_id)
        return row_id if claim.written == {"name": name} and name != one.name else 0

    def find_by_name(self, one: TaughtClass) -> None:
        if one.id in self.found:
            return
        row_id = self.found[one.id] = self._ids.get(one.name, one.name)
        if row_id in self._linked:
            return
        self._linked.add(row_id)
        if isinstance(row_id, str):
            self._write(one, None, {"name": one.name})
            self._note(What.COMES, one.name, "")
            return
        claim = self._claims.get((Kind.CLASS, row_id))
        if claim is None:
            self._write(one, row_id, None)
        elif claim.source == self._source and claim.source_id not in self._given:
            # Its id has moved.
            write = Write(Kind.CLASS, one.id, row_id, None, claim.written)
            self._plan.writes.append(write)

    def note_missing(self) -> None:
        there = set(self.found.values())
        for (kind, source_id), (row_id, _) in self._mine.items():
            is_gone = source_id not in self._given and row_id not in there
            if kind is Kind.CLASS and is_gone and row_id in self._names:
                detail = "is not in the source any more; no sync deletes a class"
                self._note(What.KEPT, self._names[row_id], detail)

    def _write(self, one: TaughtClass, row_id: int | None, fields: dict[str, str] | None) -> None:
        self._plan.writes.append(Write(Kind.CLASS, one.id, row_id, fields, fields))

    def _note(self, what: What, row: str, detail: str) -> None:
        self._plan.note(what, "class", row, detail)
