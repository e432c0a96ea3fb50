"""Record the workers' heartbeats, and release the jobs of dead workers.

An attempt counts although its worker died, so a job that kills its worker does not run for ever.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, or_, select, update

from nightshift.database import Session, ago, insert_or, read_clock, seconds_between, utc_now
from nightshift.jobs import batches, claims
from nightshift.jobs.args import Kinds
from nightshift.jobs.models import QUEUED, RUNNING, UNKNOWN_KIND, Job, JobState, Worker

logger = logging.getLogger(__name__)

# One transaction of a keeper stays short; the next heartbeat releases the rest.
BATCH = 200

# The worker should have ended a job at its time limit. Its row is released this much later.
OVERDUE = timedelta(seconds=30)
KEEP_WORKERS = timedelta(days=1)

# The wait after a job of a kind that a worker does not know.
UNKNOWN_WAIT = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Judge:
    """A worker whose keeper may judge others: silent for `silent_after` is dead.

    Its own series of heartbeats is broken when two are further apart than `unbroken`.
    """

    worker_id: UUID
    silent_after: timedelta

    @property
    def unbroken(self) -> timedelta:
        return self.silent_after / 2

    def is_steady(self) -> ColumnElement[bool]:
        """Whether its heartbeats go on, and have for as long as makes another worker silent.

        Part of the statement that judges: after a stall of the database, or of the keeper, every
        worker looks silent, and a keeper cannot know how long its statement has been under way.
        """
        return exists().where(
            Worker.id == self.worker_id,
            Worker.stopped_at.is_(None),
            Worker.heartbeat_at > ago(self.unbroken),
            Worker.steady_since < ago(self.silent_after),
        )


def record_heartbeat(session: Session, judge: Judge, *, name: str, queues: str, pid: int) -> None:
    """Record that a worker lives, and whether its series of heartbeats goes on or begins again."""
    about = {"name": name, "queues": queues, "pid": pid}
    alive = {"heartbeat_at": utc_now(), "stopped_at": None, "hung_at": None}
    goes_on = and_(Worker.heartbeat_at > ago(judge.unbroken), Worker.stopped_at.is_(None))
    since = case((goes_on, func.coalesce(Worker.steady_since, utc_now())), else_=utc_now())
    session.execute(
        insert_or(session, Worker)
        .values(id=judge.worker_id, started_at=utc_now(), steady_since=utc_now(), **about, **alive)
        .on_conflict_do_update(
            index_elements=[Worker.id], set_={**about, **alive, "steady_since": since}
        )
    )


def mark_hung(session: Session, worker_id: UUID) -> None:
    """Record that a worker's main process does not react. Its heartbeats must end with this."""
    first = func.coalesce(Worker.hung_at, utc_now())
    session.execute(update(Worker).where(Worker.id == worker_id).values(hung_at=first))


def mark_stopped(session: Session, worker_id: UUID) -> None:
    """Record that a worker ended, and delete some rows of workers that ended long ago."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(stopped_at=utc_now()))
    old = select(Worker.id).where(Worker.heartbeat_at < ago(KEEP_WORKERS)).limit(BATCH)
    session.execute(
        delete(Worker).where(Worker.id.in_(old)).execution_options(synchronize_session=False)
    )


def find_living_workers(session: Session, *, silent_after: timedelta) -> list[Worker]:
    """Return the workers whose last heartbeat is younger than `silent_after`, by name."""
    living = (
        select(Worker)
        .where(Worker.stopped_at.is_(None), Worker.heartbeat_at > ago(silent_after))
        .order_by(Worker.name)
    )
    return list(session.execute(living).scalars())


def find_running(session: Session, worker_id: UUID) -> dict[UUID, int]:
    """Return the running jobs of a worker: by claim, the id of the process that runs it."""
    rows = session.execute(select(Job.claim_id, Job.pid).where(Job.worker_id == worker_id, RUNNING))
    return {row.claim_id: row.pid for row in rows}


def release_claims(
    session: Session,
    claim_ids: Collection[UUID],
    *,
    reason: str = "the process that ran it was killed",
) -> int:
    """Release the jobs of these claims, whose runs have ended, and return how many."""
    return _release(session, Job.claim_id.in_(claim_ids), reason) if claim_ids else 0


def release_worker(session: Session, worker_id: UUID) -> int:
    """Release every job of a worker that has ended, and return how many."""
    return _release(session, Job.worker_id == worker_id, "its worker was killed")


def release_silent_workers(session: Session, judge: Judge) -> int:
    """Release the jobs of workers that are silent, and return how many.

    None are released unless the judge is steady.
    """
    silent_after = judge.silent_after
    living = select(Worker.id).where(
        Worker.heartbeat_at > ago(silent_after), Worker.stopped_at.is_(None)
    )
    silent = and_(
        Job.worker_id.not_in(living),
        Job.started_at < ago(silent_after),
        judge.is_steady(),
    )
    return _release(
        session, silent, f"its worker gave no sign of life for {silent_after.total_seconds():.0f} s"
    )


def release_overdue(session: Session, judge: Judge) -> int:
    """Release jobs that run longer than their time limit, and return how many.

    Their process ended, or could not write the job's end. None are released unless the judge is
    steady.
    """
    ran = seconds_between(Job.started_at, utc_now())
    overdue = and_(ran > Job.time_limit + OVERDUE.total_seconds(), judge.is_steady())
    return _release(session, overdue, "it ran beyond its time limit")


def postpone_unknown(
    session: Session, job_id: UUID, *, kinds: Kinds, at_most: timedelta
) -> JobState | None:
    """Put off a queued job whose kind a worker did not know; return its state, or None.

    Another worker may know it: a newer one during an upgrade, or an older one. No attempt is
    charged. A job that is still unknown `at_most` after the first time is discarded. None where the
    job is not queued, or its kind is one of `kinds`: the message named another one.
    """
    queued = select(Job).where(Job.id == job_id, QUEUED)
    job = session.execute(queued.with_for_update(skip_locked=True)).scalar_one_or_none()
    if job is None or job.kind in kinds:
        return None
    now = read_clock(session)
    last = job.errors[-1] if job.errors else None
    entry = {"attempt": job.attempt, "at": now.isoformat(), "traceback": ""}
    # One that is older than the last start belongs to an upgrade of that time.
    if last is None or last["type"] != UNKNOWN_KIND or _is_older(last, job.started_at):
        reason = f"no task is called {job.kind!r}"
        last = {**entry, "type": UNKNOWN_KIND, "message": reason}
        job.errors = [*(job.errors or []), last]
    if now - datetime.fromisoformat(last["at"]) < at_most:
        job.state, job.run_at, job.sent_at = JobState.SCHEDULED, now + UNKNOWN_WAIT, None
        return job.state
    reason = f"no worker has known the kind {job.kind!r} for {at_most}"
    job.errors = [*(job.errors or []), {**entry, "type": "Discarded", "message": reason}]
    parent_id = job.parent_id if job.counted_at is None else None
    ended = batches.build_ended_columns(JobState.DISCARDED)
    session.execute(update(Job).where(Job.id == job_id).values(ended))
    if parent_id is not None:
        batches.record_child_end(session, parent_id, failed=True)
    return JobState.DISCARDED


def is_retried(session: Session, job_id: UUID, *, since: timedelta) -> bool:
    """Whether a person has retried an ended job within a span, and its first attempt is not over.

    Every worker hears that a task is revoked. The first cancels the job; another may be slower than
    the person, and than the start of the job that was retried.
    """
    first = or_(Job.attempt == 0, and_(Job.attempt == 1, RUNNING))
    retried = select(Job.id).where(
        Job.id == job_id, Job.counted_at.is_not(None), first, Job.run_at > ago(since)
    )
    return session.execute(retried).one_or_none() is not None


def _is_older(note: dict[str, Any], started_at: datetime | None) -> bool:
    return started_at is not None and datetime.fromisoformat(note["at"]) < started_at


def _release(session: Session, which: ColumnElement[bool], reason: str) -> int:
    """Release up to BATCH jobs, oldest first; one that cannot be released is logged and left.

    The attempt of a job that ran together with others is not charged: any of them may be why the
    process was killed. Each of them runs alone from now on.
    """
    running = select(Job).where(which, RUNNING).order_by(Job.started_at)
    rows = session.scalars(running.limit(BATCH).with_for_update(skip_locked=True)).all()
    error = {"type": "WorkerLost", "message": reason, "traceback": ""}
    released = 0
    together = {row.id for row in rows if row.message_id not in (None, row.id)}
    if together:
        released += len(claims.undo_runs(session, Job.id.in_(together)))
    for row in rows:
        if row.id in together:
            continue
        assert row.claim_id is not None  # a running job has a claim
        lost = claims.Claim.of(row, job_id=row.id, claim_id=row.claim_id)
        try:
            with session.begin_nested():
                claims.record_failure(session, lost, error, retry_after=timedelta())
                released += 1
        except Exception:
            logger.exception("job %s cannot be released", lost.job_id)
    return released
