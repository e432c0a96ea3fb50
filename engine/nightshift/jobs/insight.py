"""What a person may read about jobs: one job, a list of jobs, or numbers. Nothing here writes."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from nightshift.database import Session, plain
from nightshift.errors import NotFound
from nightshift.jobs import batches, statistics
from nightshift.jobs.models import Job, JobLog, JobState

LATELY = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What may be shown to the person for whom a job runs: neither its arguments nor its errors.

    `done` of `total`: the body's progress, or None where it reports none. `result`: what the body
    returned.
    """

    id: UUID
    kind: str
    state: JobState
    done: int | None
    total: int | None
    result: Any
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Details:
    """Everything that the ledger holds about one job.

    `children` are the newest ones; `children_by_state` counts all. Both are of its newest run.
    """

    job: Job
    lines: list[JobLog]
    parent: Job | None
    children: list[Job]
    children_by_state: dict[str, int]


def read_status(session: Session, job_id: UUID) -> JobStatus:
    """Return a job's state, progress and result, as the database has them now. Raises NotFound."""
    columns = (
        Job.id,
        Job.kind,
        Job.state,
        Job.progress_done,
        Job.progress_total,
        Job.result,
        Job.finished_at,
    )
    row = session.execute(select(*columns).where(Job.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return JobStatus(*row)


def find_jobs(
    session: Session,
    *,
    kind: str | None = None,
    queue: str | None = None,
    state: JobState | None = None,
    parent_id: UUID | None = None,
    limit: int = 50,
) -> list[Job]:
    """Return up to `limit` jobs that fit every given filter, newest first."""
    filters = ((Job.kind, kind), (Job.queue, queue), (Job.state, state), (Job.parent_id, parent_id))
    newest = (
        select(Job)
        .where(*(column == value for column, value in filters if value is not None))
        .order_by(Job.created_at.desc(), Job.id)
        .limit(limit)
        .execution_options(populate_existing=True)
    )
    return list(session.execute(newest).scalars())


def read_details(session: Session, job_id: UUID, *, limit: int = 50) -> Details:
    """Return what the ledger holds about a job, with up to `limit` children. Raises NotFound."""
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    state = plain(Job.state)
    ours = select(Job).where(*batches.select_children(job_id))
    newest = ours.order_by(Job.created_at.desc(), Job.id).limit(limit)
    children = newest.execution_options(populate_existing=True)
    counts = session.execute(
        select(state, func.count()).where(*batches.select_children(job_id)).group_by(state)
    )
    return Details(
        job=job,
        lines=list(
            session.execute(
                select(JobLog).where(JobLog.job_id == job_id).order_by(JobLog.id)
            ).scalars()
        ),
        parent=None
        if job.parent_id is None
        else session.get(Job, job.parent_id, populate_existing=True),
        children=list(session.execute(children).scalars()),
        children_by_state={name: number for name, number in counts},  # noqa: C416 - a Row is not a tuple for mypy
    )


def read_stats(session: Session, *, over: timedelta = LATELY) -> dict[str, Any]:
    """Return what `jobs stats` shows, as JSON values.

    `counts`: all jobs by kind, queue and state. `queues`: since when each is paused, and how long
    its oldest due job has waited. `lately`: by kind the jobs that ended within `over`, with the
    mean seconds that they waited and ran.
    """
    numbers = statistics.count_jobs(session)
    oldest, paused = statistics.read_oldest_due(session), statistics.find_paused_queues(session)
    queues = sorted({queue for _, queue, _ in numbers} | set(paused))
    lately = [
        {
            "kind": kind,
            "ended": wait.count,
            "per_minute": wait.count / (over / timedelta(minutes=1)),
            "wait_seconds": wait.total / wait.count,
            "run_seconds": run.total / run.count,
        }
        for kind, (wait, run) in sorted(statistics.read_timings(session, over=over).items())
    ]
    return {
        "counts": [
            {"kind": k, "queue": q, "state": s, "jobs": number}
            for (k, q, s), number in sorted(numbers.items())
        ],
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
