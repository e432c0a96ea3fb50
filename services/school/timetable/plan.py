"""What a sync would do with the school's rows, and the report of it."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Any, NamedTuple

from services.school.timetable.models import Kind
from services.school.timetable.state import Claim, Fields, State


class What(StrEnum):
    """What a plan does with a row."""

    COMES = "comes"
    CHANGES = "changes"
    GOES = "goes"
    KEPT = "kept"
    NOTICE = "notice"


class Item(NamedTuple):
    """One line of a report: what happens to which row, and the details."""

    what: What
    kind: str
    row: str
    detail: str


@dataclass(frozen=True, slots=True)
class Write:
    """A row to insert (`row_id` is None) or to update, and what its claim remembers of it.

    `fields` is None where only the claim is written. `lesson`, by the source's id, and `day` are
    those of a change. A class that is not there yet has its name in the place of its id.
    """

    kind: Kind
    source_id: str
    row_id: int | None
    fields: Fields | None
    written: Fields | None
    lesson: str = ""
    day: date | None = None


@dataclass(slots=True)
class Plan:
    """What a sync would do. `refusal` says why it does nothing without a person's consent.

    `moved` has the users whose `untis_id` moves, and `lesson_ids` the rows of the source's lessons.
    """

    source: str
    items: list[Item] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    removed: list[tuple[Kind, int]] = field(default_factory=list)
    moved: dict[int, str] = field(default_factory=dict)
    lesson_ids: dict[str, int] = field(default_factory=dict)
    refusal: str = ""

    def note(self, what: What, kind: str, row: str, detail: str) -> None:
        """Add a line to the report."""
        self.items.append(Item(what, kind, row, detail))

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to write."""
        return not (self.writes or self.removed or self.moved)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many rows of each kind come, change, go and are kept."""
        found: dict[str, dict[str, int]] = {}
        for (what, kind), number in Counter((one.what, one.kind) for one in self.items).items():
            found.setdefault(what, {})[kind] = number
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Return the report's lines as JSON values."""
        return [{**item._asdict(), "what": item.what.value} for item in self.items]


class Comparison:
    """A plan while it is made, what it is made from, and which rows the source has."""

    def __init__(self, source: str, state: State) -> None:
        self.source = source
        self.state = state
        self.plan = Plan(source)
        self.mine: dict[tuple[Kind, str], tuple[int, Claim]] = {
            (kind, claim.source_id): (row_id, claim)
            for (kind, row_id), claim in state.claims.items()
            if claim.source == source
        }

    def show_person(self, user_id: int) -> str:
        """Return what a report calls a user: not by name or address, since reports are kept."""
        person = self.state.people.get(user_id)
        return (person and person.untis_id) or f"user {user_id}"


class Merged(NamedTuple):
    """A row as it should be, what its claim remembers, and the fields that a person changed."""

    fields: Fields
    written: Fields
    kept: list[str]


def merge(present: Fields, written: Fields, new: Fields) -> Merged:
    """Return a row with a source's new fields, but for those that a person changed.

    A person has changed a field where the row does not say what the source last wrote. It is the
    source's again when both say the same.
    """
    ours = {name for name in new if present[name] in (written.get(name), new[name])}
    return Merged(
        {name: new[name] if name in ours else present[name] for name in new},
        {name: new[name] if name in ours else written.get(name) for name in new},
        [name for name in new if name not in ours and new[name] != written.get(name)],
    )
