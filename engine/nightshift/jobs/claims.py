"""Claim a job, and write its progress and end.

A write without a valid claim changes nothing and raises LostClaim.
"""

import json
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    Boolean,
    ColumnElement,
    Connection,
    Integer,
    Text,
    Update,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    null,
    or_,
    select,
    update,
)

from nightshift.database import Session, committed_lazily, read_clock, utc_now
from nightshift.errors import PermanentError
from nightshift.jobs import batches
from nightshift.jobs.models import RUNNING, TABLE, Job, JobLog, JobState, PausedQueue
from nightshift.jobs.session import get_carried, single_statement

LONGEST_TRACEBACK = 10_000
LONGEST_MESSAGE = 2_000

# Lines that an attempt's log keeps. A million of them were 1.5 GB of memory, and as many rows.
MOST_LINES = 1_000

_READ = (
    "kind",
    "args",
    "attempt",
    "max_attempts",
    "started_at",
    "run_at",
    "parent_id",
    "counted_at",
    "trace",
)


class LostClaim(PermanentError):
    """The job was cancelled, or its worker was thought dead and another worker runs it.

    What this run did in the database must not be committed.
    """


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one attempt of one job, and that job's row as it was when it was claimed."""

    job_id: UUID
    claim_id: UUID
    kind: str
    args: dict[str, Any]
    attempt: int
    max_attempts: int
    started_at: datetime
    run_at: datetime
    parent_id: UUID | None
    counted: bool
    trace: dict[str, str] | None

    @classmethod
    def of(cls, row: Any, *, job_id: UUID, claim_id: UUID) -> "Claim":
        """Make the claim on a job from its row."""
        return cls(
            job_id=job_id,
            claim_id=claim_id,
            kind=row.kind,
            args=row.args,
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            started_at=row.started_at,
            run_at=row.run_at,
            parent_id=row.parent_id,
            counted=row.counted_at is not None,
            trace=row.trace,
        )


@dataclass(slots=True)
class Notes:
    """The progress and the log lines of a body that are not yet written.

    `left_out`: the lines beyond MOST_LINES, which are not kept.
    """

    done: int | None = None
    total: int | None = None
    lines: list[tuple[datetime, str]] = field(default_factory=list)
    added: int = 0
    left_out: int = 0

    def add(self, line: str) -> None:
        """Keep a line, unless the attempt has MOST_LINES already."""
        if self.added == MOST_LINES:
            self.left_out += 1
            return
        self.added += 1
        self.lines.append((datetime.now(UTC), line))


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended, where it is written together with others."""

    claim: Claim
    state: JobState
    notes: Notes
    result: Any
    finished_at: datetime

    def to_row(self) -> dict[str, Any]:
        """Return the columns to write."""
        return {
            "id": self.claim.job_id,
            "state": self.state,
            "result": self.result,
            "progress_done": self.notes.done,
            "progress_total": self.notes.total,
            "started_at": self.claim.started_at,
            "finished_at": self.finished_at,
        }


_CLAIM = (
    update(TABLE)
    .where(
        # The row decides what runs: a message under another kind's name claims nothing.
        TABLE.c.kind == bindparam("job_kind"),
        TABLE.c.state == JobState.QUEUED,
        # A message from before the job was held may still be there; the relay has not admitted it.
        or_(~TABLE.c.limited, TABLE.c.sent_at.is_not(None), bindparam("unlimited", type_=Boolean)),
        TABLE.c.queue.not_in(select(PausedQueue.queue)),
    )
    .values(
        state=JobState.RUNNING,
        attempt=TABLE.c.attempt + 1,
        claim_id=bindparam("claim"),
        worker_id=bindparam("worker"),
        pid=bindparam("process"),
        started_at=utc_now(),
        # The bound of debouncing is that of this run: a call during a retry's backoff has its own.
        push_until=null(),
        unique_key=case((TABLE.c.unique_until_started, null()), else_=TABLE.c.unique_key),
    )
    # A claim need not survive a crash of the database: the run does not either, and the row is then
    # still queued.
    .returning(TABLE.c.id, *(TABLE.c[name] for name in _READ), committed_lazily())
)
# Built once: to build such a statement takes longer than to execute it, and so does to write out a
# list of ids.
_CLAIM_ONE = _CLAIM.where(TABLE.c.id == bindparam("job_id"))
_CLAIM_ALL = _CLAIM.where(TABLE.c.id.in_(bindparam("job_ids", expanding=True)))
_HELD = (
    TABLE.c.id == bindparam("held_job"),
    TABLE.c.claim_id == bindparam("held_claim"),
    TABLE.c.state == JobState.RUNNING,
)
_END = (
    update(TABLE)
    .where(*_HELD)
    .values(
        **batches.build_ended_columns(bindparam("end_state", type_=TABLE.c.state.type)),
        claim_id=null(),
        result=bindparam("outcome", type_=TABLE.c.result.type),
        progress_done=func.coalesce(bindparam("done", type_=Integer), TABLE.c.progress_done),
        progress_total=func.coalesce(bindparam("total", type_=Integer), TABLE.c.progress_total),
    )
)
_WRITTEN_TOGETHER = (
    "id", "state", "result", "progress_done", "progress_total", "started_at", "finished_at",
)  # fmt: skip


# How Postgres's document has them.
_WRITERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_WRITTEN_TOGETHER, str),
    **dict.fromkeys(("progress_done", "progress_total"), int),
    "result": json.dumps,
}


def _build_end_all(values: Any) -> Update:
    """Build the end of several jobs, whose columns are `values`."""
    return (
        update(TABLE)
        .where(
            TABLE.c.id == values["id"],
            TABLE.c.claim_id == bindparam("held_claim"),
            TABLE.c.state == JobState.RUNNING,
        )
        .values(
            **batches.build_ended_columns(values["state"])
            | {name: values[name] for name in ("result", "started_at", "finished_at")},
            claim_id=null(),
            progress_done=func.coalesce(values["progress_done"], TABLE.c.progress_done),
            progress_total=func.coalesce(values["progress_total"], TABLE.c.progress_total),
        )
    )


def _build_end_all_on_postgres() -> Update:
    # All rows are one JSON document, as in `enqueue_many`. A result is a text in it: the server
    # would refuse a document that has U+0000.
    columns = {name: column(name, TABLE.c[name].type) for name in _WRITTEN_TOGETHER}
    columns["result"] = column("result", Text)
    document = func.json_to_recordset(bindparam("ends", type_=JSON))
    ends = document.table_valued(*columns.values()).render_derived(with_types=True)
    return _build_end_all({**ends.c, "result": cast(ends.c.result, JSON)})


_END_ALL = {
    "sqlite": _build_end_all(
        {name: bindparam(f"end_{name}", type_=TABLE.c[name].type) for name in _WRITTEN_TOGETHER}
    ),
    "postgresql": _build_end_all_on_postgres(),
}


def claim(
    connection: Connection,
    job_ids: Sequence[UUID],
    *,
    claim_id: UUID,
    kind: str,
    worker_id: UUID,
    pid: int,
    unlimited: bool = False,
) -> list[Claim]:
    """Claim the queued jobs of a kind among `job_ids`, under one id, and return them in that order.

    One that is left out had a message that was early, a duplicate or out of date: the caller has
    nothing to do. A caller that gets no answer calls `find_claims` with the same `claim_id`, and
    then this again. With `unlimited`, a job of a limited kind is claimed although no relay has
    admitted it.
    """
    values = {"job_kind": kind, "worker": worker_id, "process": pid, "claim": claim_id}
    values |= {"job_id": job_ids[0]} if len(job_ids) == 1 else {"job_ids": job_ids}
    statement = _CLAIM_ONE if len(job_ids) == 1 else _CLAIM_ALL
    rows = connection.execute(statement, {**values, "unlimited": unlimited})
    return _make_claims(rows, job_ids, claim_id)


def find_claims(connection: Connection, job_ids: Sequence[UUID], claim_id: UUID) -> list[Claim]:
    """Return the claims that were made under an id and whose answer was lost."""
    made = select(TABLE.c.id, *(TABLE.c[name] for name in _READ)).where(
        TABLE.c.id.in_(job_ids), TABLE.c.claim_id == claim_id, TABLE.c.state == JobState.RUNNING
    )
    return _make_claims(connection.execute(made), job_ids, claim_id)


def _make_claims(rows: Any, job_ids: Sequence[UUID], claim_id: UUID) -> list[Claim]:
    made = {row.id: Claim.of(row, job_id=row.id, claim_id=claim_id) for row in rows}
    return [made[job_id] for job_id in dict.fromkeys(job_ids) if job_id in made]


def undo_claims(session: Session, claim_ids: Collection[UUID], *, alone: bool = True) -> list[UUID]:
    """Queue the jobs that still run under these claims, and return their ids.

    No attempt is charged. With `alone` each is to run alone from now on, so that none can do the
    same harm twice without being charged. A unique key that the claim has freed stays free, and a
    rate has counted the start.
    """
    which = Job.claim_id.in_(claim_ids)
    return undo_runs(session, which, alone=alone) if claim_ids else []


def undo_runs(session: Session, which: ColumnElement[bool], *, alone: bool = True) -> list[UUID]:
    """Queue the running jobs that fit a condition, as `undo_claims` does."""
    undone = (
        update(Job)
        .where(which, RUNNING)
        .values(
            state=JobState.QUEUED,
            sent_at=None,
            claim_id=None,
            message_id=Job.id if alone else null(),
            attempt=Job.attempt - 1,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return list(session.execute(undone).scalars())


def note_return(connection: Connection, claim: Claim) -> None:
    """Record that a run without a valid claim has ended: no retry need wait for it."""
    waits = TABLE.c.state.in_((JobState.SCHEDULED, JobState.HELD))
    retried = case((waits, utc_now()), else_=TABLE.c.run_at)
    connection.execute(
        update(TABLE)
        .where(
            TABLE.c.id == claim.job_id,
            TABLE.c.claim_id == claim.claim_id,
            TABLE.c.state != JobState.RUNNING,
        )
        .values(claim_id=None, run_at=retried)
    )


def require_valid(session: Session, claim: Claim) -> None:
    """Raise LostClaim when the claim is no longer valid."""
    held = select(Job.id).where(
        Job.id == claim.job_id, Job.claim_id == claim.claim_id, Job.state == JobState.RUNNING
    )
    if session.execute(held).one_or_none() is None:
        raise LostClaim(f"job {claim.job_id} was cancelled or given to another worker")


def succeed(
    session: Session, claim: Claim, notes: Notes, *, result: Any, last: bool = False
) -> JobState:
    """End a job as succeeded, or let it wait for the children that it spawned; return its state.

    `last` as in `mark_ended`.
    """
    waiting = batches.build_waiting_columns(session, claim.job_id)
    if waiting is None:
        return mark_ended(session, claim, JobState.SUCCEEDED, notes, result=result, last=last)
    write_notes(session, claim, notes, {**waiting, "claim_id": None, "result": result})
    if waiting["children_open"] == 0:
        batches.advance_parent(session, claim.job_id)
    return JobState.WAITING


def mark_ended(
    session: Session,
    claim: Claim,
    state: JobState,
    notes: Notes,
    *,
    result: Any = None,
    last: bool = False,
) -> JobState:
    """End a job in this state, count it in its parent, and return the state.

    `last` promises that the caller does nothing more in `session`: then the write may be a
    statement that commits by itself, or one for several jobs.
    """
    note_end = get_carried(session).note_end
    if last and note_end is not None:
        note_end(claim, state, notes, result)
        return state
    values = {"end_state": state, "outcome": result, "done": notes.done, "total": notes.total}
    if last and claim.parent_id is None and not (notes.lines or notes.left_out):
        with single_statement(session) as connection:
            _execute(connection, claim, _END, values)
        return state
    _execute(session.connection(), claim, _END, values)
    _keep_lines(session, claim, notes, ending=True)
    if claim.parent_id is not None and not claim.counted:
        batches.record_child_end(session, claim.parent_id, failed=state != JobState.SUCCEEDED)
    return state


def mark_all_ended(session: Session, ends: Sequence[End]) -> None:
    """Write the ends of runs under one claim, each with its own times, and count them in parents.

    Raises LostClaim when one of the jobs was cancelled or released.
    """
    if not ends:
        return
    connection, rows = session.connection(), [end.to_row() for end in ends]
    claim_id = ends[0].claim.claim_id
    statement, parameters = _END_ALL[connection.dialect.name], []
    if connection.dialect.name == "postgresql":
        texts = [
            {name: None if value is None else _WRITERS[name](value) for name, value in row.items()}
            for row in rows
        ]
        parameters = [{"held_claim": claim_id, "ends": texts}]
    else:
        for row in rows:
            named = {f"end_{name}": value for name, value in row.items()}
            parameters.append({"held_claim": claim_id, **named})
    written = connection.execute(statement, parameters if len(parameters) > 1 else parameters[0])
    if written.rowcount != len(ends):
        raise LostClaim(
            f"{len(ends) - written.rowcount} of {len(ends)} jobs were cancelled or given to"
            " another worker"
        )
    for end in ends:
        _keep_lines(session, end.claim, end.notes, ending=True)
    counted = Counter(
        (end.claim.parent_id, end.state != JobState.SUCCEEDED)
        for end in ends
        if end.claim.parent_id is not None and not end.claim.counted
    )
    # In one order for all, or two bundles with children of the same parents could deadlock.
    for (parent_id, failed), number in sorted(counted.items()):
        batches.record_child_end(session, parent_id, failed=failed, number=number)


def snooze(session: Session, claim: Claim, delay: timedelta, notes: Notes) -> JobState:
    """Schedule a job `delay` after this run's start. This run does not count as an attempt."""
    again = {
        "state": JobState.SCHEDULED,
        "run_at": claim.started_at + delay,
        "attempt": Job.attempt - 1,
        "claim_id": None,
    }
    write_notes(session, claim, notes, again)
    return JobState.SCHEDULED


def describe(error: BaseException) -> dict[str, str]:
    """Return type, message and traceback of an exception, cut to what the ledger stores."""
    try:
        lines = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - a note or an attribute that cannot be read
        lines = "".join(traceback.format_tb(error.__traceback__))
    try:
        message = str(error)
    except BaseException as second:  # noqa: BLE001 - the first exception is the one to describe
        message = f"its text cannot be read: {type(second).__name__}"
    return {
        "type": type(error).__name__,
        "message": message[:LONGEST_MESSAGE],
        "traceback": lines[-LONGEST_TRACEBACK:],
    }


def record_failure(
    session: Session,
    claim: Claim,
    error: dict[str, str],
    *,
    retry_after: timedelta | None,
    notes: Notes | None = None,
    at_last: JobState = JobState.FAILED,
) -> JobState:
    """Record a failed attempt and return the job's state.

    The job is scheduled again after `retry_after`. Without an attempt left, or when `retry_after`
    is None, it ends as `at_last`.
    """
    notes = notes or Notes()
    require_valid(session, claim)
    errors = session.execute(select(Job.errors).where(Job.id == claim.job_id)).scalar_one() or []
    entry = {"attempt": claim.attempt, "at": claim.started_at.isoformat(), **error}
    if retry_after is not None and claim.attempt < claim.max_attempts:
        run_at = read_clock(session) + retry_after
        again = {"state": JobState.SCHEDULED, "run_at": run_at, "claim_id": None}
        # The retry runs alone: the jobs that ran together with this one may be why it failed.
        again["message_id"] = claim.job_id
        write_notes(session, claim, notes, {**again, "errors": [*errors, entry]})
        return JobState.SCHEDULED
    write_notes(
        session,
        claim,
        notes,
        {**batches.build_ended_columns(at_last), "claim_id": None, "errors": [*errors, entry]},
    )
    if claim.parent_id is not None and not claim.counted:
        batches.record_child_end(session, claim.parent_id, failed=True)
    return at_last


def write_notes(
    session: Session, claim: Claim, notes: Notes, values: dict[str, Any] | None = None
) -> None:
    """Write progress and log lines of a running job, and `values`, which end this run."""
    ending = values is not None
    if values is not None:
        # Of several runs under one claim, each has a start of its own.
        values = {"started_at": claim.started_at, **values}
    if notes.done is not None:
        progress = {"progress_done": notes.done, "progress_total": notes.total}
        values = progress | (values or {})
    # A write without values must still raise when the claim is lost.
    statement = update(TABLE).where(*_HELD).values(values or {"claim_id": claim.claim_id})
    _execute(session.connection(), claim, statement, {})
    _keep_lines(session, claim, notes, ending=ending)


def _execute(
    connection: Connection, claim: Claim, statement: Update, values: dict[str, Any]
) -> None:
    # Without the ORM, which would look for loaded objects to update.
    written = connection.execute(
        statement, {"held_job": claim.job_id, "held_claim": claim.claim_id, **values}
    )
    if written.rowcount == 0:
        raise LostClaim(f"job {claim.job_id} was cancelled or given to another worker")


def _keep_lines(session: Session, claim: Claim, notes: Notes, *, ending: bool) -> None:
    lines = list(notes.lines)
    if ending and notes.left_out:
        lines.append((datetime.now(UTC), f"{notes.left_out} more lines were left out"))
    if lines:
        rows = [
            {"job_id": claim.job_id, "attempt": claim.attempt, "at": at, "line": line}
            for at, line in lines
        ]
        session.execute(insert(JobLog), rows)
