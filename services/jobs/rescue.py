"""Workers' signs of life, and the jobs of those that gave their last one. An attempt that died stays counted, so a poison job ends."""

from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, select, update

from services.database import Session, ago, insert_or, utc_now
from services.jobs import claims
from services.jobs.models import Job, JobState, Worker

# A body that its worker's hard time limit should have ended is given this much longer before its row is freed.
OVERDUE = timedelta(seconds=30)
KEEP_WORKERS = timedelta(days=1)


def heartbeat(session: Session, worker_id: UUID, *, name: str, queues: str, pid: int) -> None:
    """Say that a worker lives."""
    alive = {"heartbeat_at": utc_now(), "stopped_at": None}
    row = {"id": worker_id, "name": name, "queues": queues, "pid": pid, "started_at": utc_now(), **alive}
    session.execute(insert_or(session, Worker).values(row).on_conflict_do_update(index_elements=[Worker.id], set_=alive))


def stopped(session: Session, worker_id: UUID) -> None:
    """Say that a worker ended, and forget workers that ended long ago."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(stopped_at=utc_now()))
    session.execute(delete(Worker).where(Worker.heartbeat_at < ago(KEEP_WORKERS)))


def alive(session: Session, *, silent_after: timedelta) -> list[Worker]:
    """Return the workers that gave a sign of life lately."""
    living = select(Worker).where(Worker.stopped_at.is_(None), Worker.heartbeat_at > ago(silent_after)).order_by(Worker.name)
    return list(session.execute(living).scalars())


def running(session: Session, worker_id: UUID) -> dict[UUID, int]:
    """Return the process id that runs each of a worker's jobs, by claim."""
    rows = session.execute(select(Job.claim_id, Job.pid).where(Job.worker_id == worker_id, Job.state == JobState.RUNNING))
    return {row.claim_id: row.pid for row in rows}


def free_claims(session: Session, claim_ids: Collection[UUID]) -> int:
    """Free jobs whose process is known to be gone, and return how many."""
    return _free(session, Job.claim_id.in_(claim_ids), "the process that ran it was killed") if claim_ids else 0


def free_worker(session: Session, worker_id: UUID) -> int:
    """Free every job of a worker that is known to be gone, and return how many."""
    return _free(session, Job.worker_id == worker_id, "its worker was killed")


def free_silent(session: Session, *, silent_after: timedelta) -> int:
    """Free the jobs of workers that gave no sign of life for so long, and return how many.

    Only who has itself written heartbeats for that long may judge: after a database was away everybody looks silent.
    """
    living = select(Worker.id).where(Worker.heartbeat_at > ago(silent_after), Worker.stopped_at.is_(None))
    silent = and_(Job.worker_id.not_in(living), Job.started_at < ago(silent_after))
    return _free(session, silent, f"its worker gave no sign of life for {silent_after.total_seconds():.0f} s")


def free_overdue(session: Session) -> int:
    """Free jobs that run longer than their time limit allows: their process could not write the end. Return how many."""
    rows = session.execute(select(Job.claim_id, Job.time_limit).where(Job.state == JobState.RUNNING, Job.started_at < ago(OVERDUE)))
    freed = 0
    for claim_id, time_limit in rows.all():
        overdue = and_(Job.claim_id == claim_id, Job.started_at < ago(timedelta(seconds=time_limit) + OVERDUE))
        freed += _free(session, overdue, "it ran beyond its time limit")
    return freed


def _free(session: Session, which: ColumnElement[bool], reason: str) -> int:
    rows = session.execute(select(Job).where(which, Job.state == JobState.RUNNING).with_for_update(skip_locked=True)).scalars()
    freed = 0
    for row in rows.all():
        assert row.claim_id is not None  # whoever runs it took it
        lost = claims.Claim.of(row, job_id=row.id, claim_id=row.claim_id)
        error = {"type": "WorkerLost", "message": reason, "traceback": ""}
        claims.fail(session, lost, error, retry_after=timedelta())
        freed += 1
    return freed
