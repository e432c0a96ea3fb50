"""Taking a job, and every write that needs to have taken it. A write without a valid claim changes nothing and raises LostClaim."""

import traceback
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Integer, Update, bindparam, case, func, insert, null, select, update

from services.database import Session, committed_lazily, single_statement, utc_now
from services.errors import PermanentError
from services.jobs import batches
from services.jobs.models import TABLE, Job, JobLog, JobState, PausedQueue

LONGEST_TRACEBACK = 10_000
LONGEST_MESSAGE = 2_000

_READ = ("kind", "args", "attempt", "max_attempts", "started_at", "run_at", "parent_id", "counted_at", "trace")


class LostClaim(PermanentError):
    """The job was cancelled, or presumed dead and given to another worker: whatever we did for it does not count."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one attempt of one job, as it was when it was taken."""

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
        """Read the claim off a row of the ledger."""
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
    """What a body said of itself and is not written yet."""

    done: int | None = None
    total: int | None = None
    lines: list[tuple[datetime, str]] = field(default_factory=list)


# Built once: putting a statement together takes longer than running it.
_CLAIM = (
    update(TABLE)
    .where(TABLE.c.id == bindparam("job_id"), TABLE.c.state == JobState.QUEUED, TABLE.c.queue.not_in(select(PausedQueue.queue)))
    .values(
        state=JobState.RUNNING,
        attempt=TABLE.c.attempt + 1,
        claim_id=bindparam("claim"),
        worker_id=bindparam("worker"),
        pid=bindparam("process"),
        started_at=utc_now(),
        unique_key=case((TABLE.c.unique_until_started, null()), else_=TABLE.c.unique_key),
    )
    # A claim need not survive a crash of the database: the run that took it does not either, and the row is as it was, queued.
    .returning(*(TABLE.c[name] for name in _READ), committed_lazily())
)
_HELD = (
    TABLE.c.id == bindparam("held_job"),
    TABLE.c.claim_id == bindparam("held_claim"),
    TABLE.c.state == JobState.RUNNING,
)
_END = (
    update(TABLE)
    .where(*_HELD)
    .values(
        **batches.ended(bindparam("end_state", type_=TABLE.c.state.type)),
        result=bindparam("outcome", type_=TABLE.c.result.type),
        progress_done=func.coalesce(bindparam("done", type_=Integer), TABLE.c.progress_done),
        progress_total=func.coalesce(bindparam("total", type_=Integer), TABLE.c.progress_total),
    )
)


def claim(connection: Connection, job_id: UUID, *, worker_id: UUID, pid: int) -> Claim | None:
    """Take a job that is queued, or return None: then the message was early, doubled or stale, and there is nothing to do."""
    claim_id = uuid4()
    row = connection.execute(_CLAIM, {"job_id": job_id, "claim": claim_id, "worker": worker_id, "process": pid}).one_or_none()
    if row is None:
        return None
    return Claim.of(row, job_id=job_id, claim_id=claim_id)


def check(session: Session, claim: Claim) -> None:
    """Raise LostClaim when the claim is no longer ours."""
    held = select(Job.id).where(Job.id == claim.job_id, Job.claim_id == claim.claim_id, Job.state == JobState.RUNNING)
    if session.execute(held).one_or_none() is None:
        raise LostClaim(f"job {claim.job_id} was cancelled or given to another worker")


def note(session: Session, claim: Claim, notes: Notes) -> None:
    """Write progress and log lines of a job that goes on."""
    _write(session, claim, notes, {})


def succeed(session: Session, claim: Claim, notes: Notes, *, result: Any, last: bool = False) -> JobState:
    """End well and return the new state; a job that spawned children waits for them instead. See `end` for `last`."""
    waiting = batches.spawned(session, claim.job_id)
    if waiting is None:
        return end(session, claim, JobState.SUCCEEDED, notes, result=result, last=last)
    _write(session, claim, notes, {**waiting, "result": result})
    if waiting["children_open"] == 0:
        batches.close(session, claim.job_id)
    return JobState.WAITING


def end(session: Session, claim: Claim, state: JobState, notes: Notes, *, result: Any = None, last: bool = False) -> JobState:
    """End for good, tell the parent, and return the state. `last` promises that nothing more is done in `session`."""
    values = {"end_state": state, "outcome": result, "done": notes.done, "total": notes.total}
    if last and claim.parent_id is None and not notes.lines:
        with single_statement(session) as connection:
            _executed(connection, claim, _END, values)
        return state
    _executed(session.connection(), claim, _END, values)
    _keep_lines(session, claim, notes)
    if claim.parent_id is not None and not claim.counted:
        batches.count(session, claim.parent_id, failed=state != JobState.SUCCEEDED)
    return state


def snooze(session: Session, claim: Claim, delay: timedelta, notes: Notes) -> JobState:
    """Run again after `delay`, as if this attempt had not been."""
    again = {"state": JobState.SCHEDULED, "run_at": claim.started_at + delay, "attempt": Job.attempt - 1, "claim_id": None}
    _write(session, claim, notes, again)
    return JobState.SCHEDULED


def describe(error: BaseException) -> dict[str, str]:
    """Return what the ledger keeps of an exception."""
    lines = "".join(traceback.format_exception(error))
    try:
        message = str(error)
    except Exception as second:  # noqa: BLE001 - the first is the one to tell of
        message = f"its text cannot be read: {type(second).__name__}"
    return {"type": type(error).__name__, "message": message[:LONGEST_MESSAGE], "traceback": lines[-LONGEST_TRACEBACK:]}


def fail(
    session: Session,
    claim: Claim,
    error: dict[str, str],
    *,
    retry_after: timedelta | None,
    notes: Notes | None = None,
    at_last: JobState = JobState.FAILED,
) -> JobState:
    """Record a failed attempt and return what became of the job: scheduled again, or `at_last` when no attempt is left."""
    notes = notes or Notes()
    check(session, claim)
    errors = session.execute(select(Job.errors).where(Job.id == claim.job_id)).scalar_one() or []
    entry = {"attempt": claim.attempt, "at": claim.started_at.isoformat(), **error}
    if retry_after is not None and claim.attempt < claim.max_attempts:
        run_at = session.execute(select(utc_now())).scalar_one() + retry_after
        again = {"state": JobState.SCHEDULED, "run_at": run_at, "claim_id": None}
        _write(session, claim, notes, {**again, "errors": [*errors, entry]})
        return JobState.SCHEDULED
    _write(session, claim, notes, {**batches.ended(at_last), "errors": [*errors, entry]})
    if claim.parent_id is not None and not claim.counted:
        batches.count(session, claim.parent_id, failed=True)
    return at_last


def _write(session: Session, claim: Claim, notes: Notes, values: dict[str, Any]) -> None:
    if notes.done is not None:
        values = {"progress_done": notes.done, "progress_total": notes.total, **values}
    # A write that sets nothing still has to show that the claim is held.
    statement = update(TABLE).where(*_HELD).values(values or {"claim_id": claim.claim_id})
    _executed(session.connection(), claim, statement, {})
    _keep_lines(session, claim, notes)


def _executed(connection: Connection, claim: Claim, statement: Update, values: dict[str, Any]) -> None:
    # Past the ORM, which would look for objects to bring up to date.
    written = connection.execute(statement, {"held_job": claim.job_id, "held_claim": claim.claim_id, **values})
    if written.rowcount == 0:
        raise LostClaim(f"job {claim.job_id} was cancelled or given to another worker")


def _keep_lines(session: Session, claim: Claim, notes: Notes) -> None:
    if notes.lines:
        lines = [{"job_id": claim.job_id, "attempt": claim.attempt, "at": at, "line": line} for at, line in notes.lines]
        session.execute(insert(JobLog), lines)
