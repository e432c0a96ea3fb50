"""How many jobs of a limited kind may be sent now, over all workers.

Only a relay that knows the limit sends such jobs, and only one relay at a time counts them.
"""

from collections import Counter
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, delete, func, insert, select, true, tuple_, union, update

from nightshift.database import Session, ago
from nightshift.jobs.args import Policy, Rate
from nightshift.jobs.models import LIMITED, RUNNING, SENT, UNSENT, Job, JobStart

# On Postgres, the session that holds this lock is the only one that admits jobs of limited kinds;
# SQLite has one writer anyway.
LOCK = 0x6A6F6273

# Rows that one statement flags or deletes, and jobs of a kind that one look admits.
BATCH = 200

# A release that has dropped a kind's limit sends the jobs that another release has flagged when
# none of the kind was started for so long: no release that knows the limit is left.
DROPPED_AFTER = timedelta(hours=1)


def record_start(connection: Connection, job_id: UUID, kind: str, *, at: datetime) -> None:
    """Record a start of a job whose kind has a rate, in the transaction of the claim.

    `at` is the row's new `started_at`.
    """
    connection.execute(insert(JobStart), {"job_id": job_id, "kind": kind, "at": at})


def lock_admission(session: Session) -> bool:
    """Return True when only this transaction may admit jobs of limited kinds until it ends.

    Two transactions that count the same running jobs would together admit too many.
    """
    if session.get_bind().dialect.name != "postgresql":
        return True
    return bool(session.execute(select(func.pg_try_advisory_xact_lock(LOCK))).scalar_one())


def count_open(session: Session) -> tuple[Counter[str], Counter[str]]:
    """Return by kind how many jobs the broker holds, and how many run."""
    # In this order: a job that is claimed in between counts twice, and not never. Not GROUP BY: for
    # it SQLite reads the index on all kinds instead of the small ones of what is sent and runs.
    sent = Counter(session.execute(select(Job.kind).where(*SENT)).scalars())
    running = Counter(session.execute(select(Job.kind).where(RUNNING)).scalars())
    return sent, running


def count_admissible(session: Session, policy: Policy, *, sent: int, running: int) -> int:
    """Return how many more jobs of a kind may be sent now; the number may be negative."""
    room = BATCH
    if policy.concurrency is not None:
        room = min(room, policy.concurrency - sent - running)
    if policy.rate is not None:
        room = min(room, policy.rate.count - sent - count_starts(session, policy, policy.rate))
        _delete_old_starts(session, policy, policy.rate.per)
    return room


def count_starts(session: Session, policy: Policy, rate: Rate) -> int:
    """Return how often jobs of a kind started within a rate's span, retries included.

    Counted up to what the rate admits: more make no difference.
    """
    since = ago(rate.per)
    # A worker of the release before records a start only in the job's row.
    recorded = select(JobStart.job_id, JobStart.at).where(
        JobStart.kind == policy.kind, JobStart.at > since
    )
    newest = select(Job.id, Job.started_at).where(Job.kind == policy.kind, Job.started_at > since)
    # The newest of each: among these are as many as both have together, up to the limit.
    some = (
        recorded.order_by(JobStart.at.desc()).limit(rate.count).subquery(),
        newest.order_by(Job.started_at.desc()).limit(rate.count).subquery(),
    )
    starts = union(*(select(*part.c) for part in some)).limit(rate.count).subquery()
    return session.execute(select(func.count()).select_from(starts)).scalar_one()


def _delete_old_starts(session: Session, policy: Policy, span: timedelta) -> None:
    # Twice the span: another release may have a longer one.
    old = (
        select(JobStart.job_id, JobStart.at)
        .where(JobStart.kind == policy.kind, JobStart.at < ago(2 * span))
        .order_by(JobStart.at)
        .limit(BATCH)
    )
    session.execute(
        delete(JobStart)
        .where(tuple_(JobStart.job_id, JobStart.at).in_(old))
        .execution_options(synchronize_session=False)
    )


def unflag_dropped(session: Session, kind: str) -> None:
    """Let the jobs of a kind be sent without a limit, where only an earlier release had one."""
    newest = select(func.max(Job.started_at)).where(Job.kind == kind).scalar_subquery()
    flagged = select(Job.id).where(Job.kind == kind, *UNSENT, LIMITED)
    dropped = flagged.where(
        Job.run_at < ago(DROPPED_AFTER), func.coalesce(newest < ago(DROPPED_AFTER), true())
    )
    some = dropped.order_by(Job.priority, Job.run_at).limit(BATCH)
    session.execute(
        update(Job)
        .where(Job.id.in_(some), *UNSENT)
        .values(limited=False)
        .execution_options(synchronize_session=False)
    )
