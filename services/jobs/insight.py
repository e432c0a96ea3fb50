"""What there is to see of jobs: one, some, or all of them in numbers. Nothing here writes."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from services.database import Session, plain
from services.errors import NotFound
from services.jobs import metrics
from services.jobs.models import Job, JobLog, JobState

LATELY = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Details:
    """Everything that the ledger knows of one job; of its children the newest `limit`, and all of them by state."""

    job: Job
    lines: list[JobLog]
    parent: Job | None
    children: list[Job]
    children_by_state: dict[str, int]


def find(
    session: Session,
    *,
    kind: str | None = None,
    queue: str | None = None,
    state: JobState | None = None,
    parent_id: UUID | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> list[Job]:
    """Return jobs, newest first; `since` is when they were enqueued."""
    filters = ((Job.kind, kind), (Job.queue, queue), (Job.state, state), (Job.parent_id, parent_id))
    found = select(Job).where(*(column == value for column, value in filters if value is not None))
    if since is not None:
        found = found.where(Job.created_at >= since)
    newest = found.order_by(Job.created_at.desc(), Job.id).limit(limit).execution_options(populate_existing=True)
    return list(session.execute(newest).scalars())


def show(session: Session, job_id: UUID, *, limit: int = 50) -> Details:
    """Return what the ledger knows of a job. Raises NotFound."""
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    state = plain(Job.state)
    counts = session.execute(select(state, func.count()).where(Job.parent_id == job_id).group_by(state))
    return Details(
        job=job,
        lines=list(session.execute(select(JobLog).where(JobLog.job_id == job_id).order_by(JobLog.id)).scalars()),
        parent=None if job.parent_id is None else session.get(Job, job.parent_id, populate_existing=True),
        children=find(session, parent_id=job_id, limit=limit),
        children_by_state={name: number for name, number in counts},  # noqa: C416 - a Row is no tuple of two for the type checker
    )


def stats(session: Session, *, over: timedelta = LATELY) -> dict[str, Any]:
    """Return counts of all jobs, what waits in each queue, and of each kind how many ended `over` the last time and their mean seconds."""
    numbers = metrics.jobs(session)
    oldest, paused = metrics.oldest_due(session), metrics.paused(session)
    queues = sorted({queue for _, queue, _ in numbers} | set(paused))
    lately = [
        {
            "kind": kind,
            "ended": wait.count,
            "per_minute": wait.count / (over / timedelta(minutes=1)),
            "wait_seconds": wait.total / wait.count,
            "run_seconds": run.total / run.count,
        }
        for kind, (wait, run) in sorted(metrics.timings(session, over=over).items())
    ]
    return {
        "counts": [{"kind": k, "queue": q, "state": s, "jobs": number} for (k, q, s), number in sorted(numbers.items())],
        "queues": [
            {
                "queue": queue,
                "oldest_due_seconds": oldest[queue].total_seconds() if queue in oldest else None,
                "paused_at": paused.get(queue),
            }
            for queue in queues
        ],
        "lately": lately,
        "over_seconds": over.total_seconds(),
    }
