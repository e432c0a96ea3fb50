"""Record the workers' heartbeats, and release the jobs of dead workers.

An attempt counts although its worker died, so a job that kills its worker does not run for ever.
"""

import logging
from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, select, update

from nightshift.database import Session, ago, insert_or, seconds_between, utc_now
from nightshift.jobs import claims
from nightshift.jobs.models import Job, JobState, Worker

logger = logging.getLogger(__name__)

# One transaction of a keeper stays short; the next heartbeat releases the rest.
BATCH = 200

# The worker should have ended a job at its time limit. Its row is released this much later.
OVERDUE = timedelta(seconds=30)
KEEP_WORKERS = timedelta(days=1)


def record_heartbeat(
    session: Session, worker_id: UUID, *, name: str, queues: str, pid: int
) -> None:
    """Record that a worker lives."""
    alive = {"heartbeat_at": utc_now(), "stopped_at": None}
    session.execute(
        insert_or(session, Worker)
        .values(id=worker_id, name=name, queues=queues, pid=pid, started_at=utc_now(), **alive)
        .on_conflict_do_update(index_elements=[Worker.id], set_=alive)
    )


def mark_stopped(session: Session, worker_id: UUID) -> None:
    """Record that a worker ended, and delete the rows of workers that ended long ago."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(stopped_at=utc_now()))
    session.execute(delete(Worker).where(Worker.heartbeat_at < ago(KEEP_WORKERS)))


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
    rows = session.execute(
        select(Job.claim_id, Job.pid).where(
            Job.worker_id == worker_id, Job.state == JobState.RUNNING
        )
    )
    return {row.claim_id: row.pid for row in rows}


def release_claims(session: Session, claim_ids: Collection[UUID]) -> int:
    """Release the jobs of processes that have ended, and return how many."""
    return (
        _release(session, Job.claim_id.in_(claim_ids), "the process that ran it was killed")
        if claim_ids
        else 0
    )


def release_worker(session: Session, worker_id: UUID) -> int:
    """Release every job of a worker that has ended, and return how many."""
    return _release(session, Job.worker_id == worker_id, "its worker was killed")


def release_silent_workers(session: Session, *, silent_after: timedelta) -> int:
    """Release the jobs of workers without a heartbeat for `silent_after`, and return how many.

    Only a keeper with an unbroken heartbeat of that length may call this: after the database was
    away, every worker looks silent.
    """
    living = select(Worker.id).where(
        Worker.heartbeat_at > ago(silent_after), Worker.stopped_at.is_(None)
    )
    silent = and_(Job.worker_id.not_in(living), Job.started_at < ago(silent_after))
    return _release(
        session, silent, f"its worker gave no sign of life for {silent_after.total_seconds():.0f} s"
    )


def release_overdue(session: Session) -> int:
    """Release jobs that run longer than their time limit, and return how many.

    Their process ended, or could not write the job's end.
    """
    ran = seconds_between(Job.started_at, utc_now())
    overdue = ran > Job.time_limit + OVERDUE.total_seconds()
    return _release(session, overdue, "it ran beyond its time limit")


def _release(session: Session, which: ColumnElement[bool], reason: str) -> int:
    """Release up to BATCH jobs, oldest first; one that cannot be released is logged and left."""
    running = select(Job).where(which, Job.state == JobState.RUNNING).order_by(Job.started_at)
    rows = session.scalars(running.limit(BATCH).with_for_update(skip_locked=True)).all()
    error = {"type": "WorkerLost", "message": reason, "traceback": ""}
    released = 0
    for row in rows:
        assert row.claim_id is not None  # a running job has a claim
        lost = claims.Claim.of(row, job_id=row.id, claim_id=row.claim_id)
        try:
            with session.begin_nested():
                claims.record_failure(session, lost, error, retry_after=timedelta())
                released += 1
        except Exception:
            logger.exception("job %s cannot be released", lost.job_id)
    return released
