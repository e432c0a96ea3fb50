"""Taking a job, and every write that needs to have taken it. A write without a valid claim changes nothing and raises LostClaim."""

import traceback
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import case, insert, null, select, update

from services.database import Base, Session, utc_now
from services.errors import PermanentError
from services.jobs import batches
from services.jobs.models import Job, JobLog, JobState, PausedQueue

LONGEST_TRACEBACK = 10_000

TABLE = Base.metadata.tables[Job.__tablename__]


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


def claim(session: Session, job_id: UUID, *, worker_id: UUID, pid: int) -> Claim | None:
    """Take a job that is queued, or return None: then the message was early, doubled or stale, and there is nothing to do."""
    claim_id = uuid4()
    # Two statements a job, thousands of jobs: past the ORM, which would look for objects to bring up to date.
    row = (
        session.connection()
        .execute(
            update(TABLE)
            .where(
                Job.id == job_id,
                Job.state == JobState.QUEUED,
                Job.queue.not_in(select(PausedQueue.queue)),
            )
            .values(
                state=JobState.RUNNING,
                attempt=Job.attempt + 1,
                claim_id=claim_id,
                worker_id=worker_id,
                pid=pid,
                started_at=utc_now(),
                unique_key=case((Job.unique_until_started, null()), else_=Job.unique_key),
            )
            .returning(
                Job.kind,
                Job.args,
                Job.attempt,
                Job.max_attempts,
                Job.started_at,
                Job.run_at,
                Job.parent_id,
                Job.counted_at,
                Job.trace,
            )
        )
        .one_or_none()
    )
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


def succeed(session: Session, claim: Claim, notes: Notes, *, result: Any) -> JobState:
    """End well and return the new state; a job that spawned children waits for them instead."""
    waiting = batches.spawned(session, claim.job_id)
    if waiting is None:
        return end(session, claim, JobState.SUCCEEDED, notes, result=result)
    _write(session, claim, notes, {**waiting, "result": result})
    if waiting["children_open"] == 0:
        batches.close(session, claim.job_id)
    return JobState.WAITING


def end(session: Session, claim: Claim, state: JobState, notes: Notes, *, result: Any = None) -> JobState:
    """End for good, tell the parent, and return the state."""
    _write(session, claim, notes, {**batches.ended(state), "result": result})
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
    return {"type": type(error).__name__, "message": str(error), "traceback": lines[-LONGEST_TRACEBACK:]}


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
    ours = update(TABLE).where(Job.id == claim.job_id, Job.claim_id == claim.claim_id, Job.state == JobState.RUNNING)
    # A write that sets nothing still has to show that the claim is held.
    written = session.connection().execute(ours.values(values or {"claim_id": claim.claim_id}))
    if written.rowcount == 0:
        raise LostClaim(f"job {claim.job_id} was cancelled or given to another worker")
    if notes.lines:
        lines = [{"job_id": claim.job_id, "attempt": claim.attempt, "at": at, "line": line} for at, line in notes.lines]
        session.execute(insert(JobLog), lines)
