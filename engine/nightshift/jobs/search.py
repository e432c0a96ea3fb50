"""Find jobs for people: filters that combine, pages by key, and how many match.

A list is in the order of what happened last: when a job ended, or began, or is due. Each state has
an index in that order or is rare, so a page reads few rows: it is merged from a branch for each
index. What no index knows (a worker, a value of the arguments, the queue of an ended job) is looked
for among the next MOST_EXAMINED jobs of each branch.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    cast,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute

from nightshift.database import Session, json_text
from nightshift.errors import InvalidInput
from nightshift.jobs.models import (
    ENDED,
    FINISHED,
    RUNNING,
    SCHEDULED,
    SENT,
    SET_ASIDE,
    UNSENT,
    UNSUCCESSFUL,
    Job,
    JobState,
)

# Beyond this the number of matches is only "more than".
MOST_COUNTED = 10_000
# Jobs of a branch (see below) that one look for values without an index reads.
MOST_EXAMINED = 20_000
# Queues and priorities with unsent jobs, beyond which their index is not read lane by lane.
MOST_LANES = 40
MOST_TERMS = 10

# The names of arguments, which are those of Python's fields.
NAME = re.compile(r"[^\W\d]\w{0,99}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list: behind the job with this time and id."""

    at: datetime
    id: UUID

    def __str__(self) -> str:
        return f"{self.at.astimezone(UTC):%Y%m%dT%H%M%S.%f}~{self.id.hex}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return what `str` wrote. Raises InvalidInput for anything else."""
        at, _, job_id = text.partition("~")
        try:
            moment = datetime.strptime(at, "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
            return cls(moment, UUID(job_id))
        except (ValueError, OverflowError) as error:
            raise InvalidInput("the address names no place in this list") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs to find; all parts must fit.

    `since` and `until` are about when a job ended, or began, or is due. `terms`: `name=value` for
    the value of an argument, other words for a text anywhere in the arguments.
    `known_by`: only jobs that were enqueued by then and, where they have ended, ended by then.
    """

    states: tuple[JobState, ...] = ()
    kind: str | None = None
    queue: str | None = None
    worker_id: UUID | None = None
    parent_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    terms: tuple[str, ...] = ()
    known_by: datetime | None = None

    def __post_init__(self) -> None:
        if len(self.terms) > MOST_TERMS:
            raise InvalidInput(f"arguments: at most {MOST_TERMS} words or values are looked for")

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions that hold in every state."""
        pairs = (
            (Job.kind, self.kind),
            (Job.queue, self.queue),
            (Job.worker_id, self.worker_id),
            (Job.parent_id, self.parent_id),
        )
        found = [column == value for column, value in pairs if value is not None]
        return found + [_build_term(term) for term in self.terms]

    @property
    def examines(self) -> bool:
        """Whether no index leads to the ended jobs that fit."""
        hard = self.queue is not None or self.worker_id is not None or bool(self.terms)
        return hard and self.parent_id is None


@dataclass(frozen=True, slots=True)
class Found:
    """A page of jobs. `next`: where the next page begins, or None at the end.

    `examined_to`: the page has room, but the look has ended there, and `next` goes on.
    """

    jobs: list[tuple[Job, datetime]]
    next: Cursor | None
    examined_to: datetime | None


def _build_term(term: str) -> ColumnElement[bool]:
    name, separator, value = term.partition("=")
    if separator and NAME.fullmatch(name):
        return json_text(Job.args, name) == value
    # As JSON writes it: with \u00fc, and without the quotes around it.
    for_json = json.dumps(term)[1:-1]
    return cast(Job.args, String).contains(for_json, autoescape=True)


@dataclass(frozen=True, slots=True)
class _Branch:
    """States with one order. `which`: the condition of their index, with literals."""

    states: frozenset[JobState]
    which: tuple[ColumnElement[bool], ...]
    at: InstrumentedAttribute[Any]

    @property
    def ended(self) -> bool:
        return self.states <= set(ENDED)


_LANE = (Job.queue, Job.limited, Job.priority)
_SUCCEEDED_TOO = _Branch(frozenset(ENDED), (FINISHED,), Job.finished_at)
_NOT_SUCCEEDED = _Branch(
    frozenset(ENDED) - {JobState.SUCCEEDED}, (UNSUCCESSFUL, FINISHED), Job.finished_at
)
_OPEN = (
    _Branch(frozenset({JobState.QUEUED}), UNSENT, Job.run_at),
    _Branch(frozenset({JobState.QUEUED}), SENT, Job.run_at),
    _Branch(frozenset({JobState.SCHEDULED}), (SCHEDULED,), Job.run_at),
    _Branch(frozenset({JobState.RUNNING}), (RUNNING,), Job.started_at),
    _Branch(frozenset({JobState.HELD}), (SET_ASIDE, Job.state == "held"), Job.run_at),
    _Branch(frozenset({JobState.WAITING}), (SET_ASIDE, Job.state == "waiting"), Job.started_at),
)


def _choose_branches(wanted: Filter) -> Iterator[_Branch]:
    states = set(wanted.states or JobState)
    ended = states & set(ENDED)
    if ended:
        branch = _SUCCEEDED_TOO if JobState.SUCCEEDED in ended else _NOT_SUCCEEDED
        named = () if ended == branch.states else (Job.state.in_(sorted(ended)),)
        if branch is _SUCCEEDED_TOO and wanted.kind is not None:
            # The index on kind and start leads to those that have started; the others are few.
            some = (*_NOT_SUCCEEDED.which, Job.started_at.is_(None), *named)
            yield replace(_NOT_SUCCEEDED, which=some)
            named = (*named, Job.started_at.is_not(None))
        yield replace(branch, which=(*branch.which, *named))
    yield from (branch for branch in _OPEN if branch.states <= states)


def _split_lanes(session: Session, branches: Iterable[_Branch], wanted: Filter) -> list[_Branch]:
    """Return the branches, with that of the unsent jobs as one for each queue and priority.

    Their index begins with these, and only behind them has the order of a list.
    """
    split: list[_Branch] = []
    for branch in branches:
        lanes = _find_lanes(session, wanted) if branch.which == UNSENT else None
        if lanes is None:
            split.append(branch)
        else:
            split += [
                replace(
                    branch,
                    which=(
                        *UNSENT,
                        *(one == value for one, value in zip(_LANE, lane, strict=True)),
                    ),
                )
                for lane in lanes
            ]
    return split


def _find_lanes(session: Session, wanted: Filter) -> list[Any] | None:
    """Return the lanes that have unsent jobs, or None where they are too many.

    Each is found by a step in the index: not all that waits is read.
    """
    lanes: list[Any] = []
    step = select(*_LANE).where(*UNSENT).order_by(*_LANE).limit(1)
    if wanted.queue is not None:
        step = step.where(Job.queue == wanted.queue)
    following = step
    while row := session.execute(following).one_or_none():
        if len(lanes) == MOST_LANES:
            return None
        lanes.append(row)
        following = step.where(tuple_(*_LANE) > tuple_(*map(literal, row)))
    return lanes


def _select(branch: _Branch, wanted: Filter, columns: Iterable[Any]) -> Select[Any]:
    statement = select(*columns).where(*branch.which, *wanted.conditions())
    if wanted.since is not None:
        statement = statement.where(branch.at >= wanted.since)
    if wanted.until is not None:
        statement = statement.where(branch.at < wanted.until)
    if wanted.known_by is not None:
        known = Job.finished_at if branch.ended else Job.created_at
        statement = statement.where(known <= wanted.known_by)
    return statement


def find_page(
    session: Session,
    wanted: Filter,
    *,
    limit: int,
    after: Cursor | None = None,
    oldest_first: bool = False,
) -> Found:
    """Return up to `limit` jobs that fit, newest first, from `after` on."""
    branches = _split_lanes(session, _choose_branches(wanted), wanted)
    bound = None
    if wanted.examines:
        bound = _find_bound(session, branches, wanted, after, oldest_first=oldest_first)
    parts = []
    for branch in branches:
        statement = _select(branch, wanted, (Job.id, branch.at.label("at")))
        statement = _go_on(statement, branch.at, after, oldest_first=oldest_first)
        if bound is not None:
            # In every state, or a later page would bring what this one has passed.
            statement = statement.where(branch.at <= bound if oldest_first else branch.at >= bound)
        order = (branch.at, Job.id) if oldest_first else (branch.at.desc(), Job.id.desc())
        # A subquery: SQLite has no ORDER BY in a part of a union.
        parts.append(select(statement.order_by(*order).limit(limit + 1).subquery()))
    if not parts:
        return Found([], None, None)
    found = union_all(*parts).subquery()
    newest = (found.c.at.desc(), found.c.id.desc())
    oldest = (found.c.at, found.c.id)
    ordered = select(found.c.id, found.c.at).order_by(*(oldest if oldest_first else newest))
    keys = session.execute(ordered.limit(limit + 1)).all()
    some = select(Job).where(Job.id.in_([row.id for row in keys[:limit]]))
    rows = {
        job.id: job
        for job in session.execute(some.execution_options(populate_existing=True)).scalars()
    }
    jobs = [(rows[row.id], row.at) for row in keys[:limit] if row.id in rows]
    if len(keys) > limit:
        return Found(jobs, Cursor(keys[limit - 1].at, keys[limit - 1].id), None)
    if bound is not None:
        edge = UUID(int=2**128 - 1) if oldest_first else UUID(int=0)
        return Found(jobs, Cursor(bound, edge), bound)
    return Found(jobs, None, None)


def _go_on(
    statement: Select[Any], at: Any, after: Cursor | None, *, oldest_first: bool
) -> Select[Any]:
    if after is None:
        return statement
    if oldest_first:
        behind = or_(at > after.at, and_(at == after.at, Job.id > after.id))
        return statement.where(at >= after.at, behind)
    behind = or_(at < after.at, and_(at == after.at, Job.id < after.id))
    return statement.where(at <= after.at, behind)


def _find_bound(
    session: Session,
    branches: Iterable[_Branch],
    wanted: Filter,
    after: Cursor | None,
    *,
    oldest_first: bool,
) -> datetime | None:
    """Return how far a look goes: MOST_EXAMINED jobs in the longest branch. None: to the end."""
    found: list[datetime] = []
    for branch in branches:
        # Only what the branch's index knows: no job itself is read.
        known = replace(wanted, worker_id=None, terms=(), kind=None, queue=None, known_by=None)
        which = branch.which[:1] if branch.ended else branch.which
        statement = _select(replace(branch, which=which), known, (branch.at,))
        statement = _go_on(statement, branch.at, after, oldest_first=oldest_first)
        order = branch.at if oldest_first else branch.at.desc()
        skipped = statement.order_by(order).offset(MOST_EXAMINED).limit(1)
        found += session.execute(skipped).scalars()
    if not found:
        return None
    return min(found) if oldest_first else max(found)


def count_matches(session: Session, wanted: Filter) -> dict[JobState, int]:
    """Return how many jobs fit, by state; together at most MOST_COUNTED and one more.

    It may read every job of the states that the filter names.
    """
    counts: dict[JobState, int] = {}
    left = MOST_COUNTED + 1
    columns = (cast(Job.state, String).label("state"),)
    statements = [_select(branch, wanted, columns) for branch in _choose_branches(wanted)]
    if wanted.examines and not (wanted.states or wanted.since or wanted.until or wanted.known_by):
        # Every job is read, so it is done once.
        statements = [select(*columns).where(*wanted.conditions())]
    for some in statements:
        rows = some.limit(left).subquery()
        by_state = select(rows.c.state, func.count()).group_by(rows.c.state)
        for state, number in session.execute(by_state):
            counts[JobState(state)] = counts.get(JobState(state), 0) + number
            left -= number
        if left <= 0:
            break
    return counts
