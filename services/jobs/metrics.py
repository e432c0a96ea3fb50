"""What the ledger holds and how its jobs fare, as plain numbers: one statement a question, however many jobs there are."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Float, case, func, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from services.database import Session, ago, plain, utc_now
from services.jobs import rescue, schedule
from services.jobs.models import Job, JobState, PausedQueue

# Seconds: from what nobody notices to what somebody complains about.
BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """How long `count` jobs took, `total` seconds in all; `at_most` counts those within each of BUCKETS."""

    at_most: tuple[int, ...]
    count: int
    total: float


class seconds_between(FunctionElement[float]):  # noqa: N801 - it reads as the SQL function that it is
    """The seconds from one instant to a later one. SQLite counts milliseconds."""

    type = Float()
    inherit_cache = True


@compiles(seconds_between, "postgresql")
def _postgres_between(element: seconds_between, compiler: Any, **options: Any) -> str:
    earlier, later = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(extract(epoch from {later} - {earlier})::double precision)"


@compiles(seconds_between, "sqlite")
def _sqlite_between(element: seconds_between, compiler: Any, **options: Any) -> str:
    earlier, later = (compiler.process(clause, **options) for clause in element.clauses)
    return f"((julianday({later}) - julianday({earlier})) * 86400.0)"


def jobs(session: Session) -> dict[tuple[str, str, str], int]:
    """Return how many jobs there are by (kind, queue, state): the open ones, and the ended ones that are still kept."""
    # The one statement that reads the whole table: `held` and `waiting` have no index, and the ended ones are most of it.
    state = plain(Job.state)
    rows = session.execute(select(Job.kind, Job.queue, state, func.count()).group_by(Job.kind, Job.queue, state))
    return {(kind, queue, name): number for kind, queue, name, number in rows}


def timings(session: Session, *, over: timedelta) -> dict[str, tuple[Distribution, Distribution]]:
    """Return by kind how long the jobs that ended lately had waited, and how long they ran.

    The wait is from when a job was due to its last start; the run from there to its end, a batch's children included.
    """
    # What was put off once more, and cancelled then, is due after its last start; and the caller's clock may be ahead of the database's.
    wait = case((Job.run_at > Job.started_at, 0.0), else_=seconds_between(Job.run_at, Job.started_at))
    run = seconds_between(Job.started_at, Job.finished_at)
    columns: list[ColumnElement[Any]] = [func.count()]
    for span in (wait, run):
        columns += [func.sum(span), *(func.count().filter(span <= bound) for bound in BUCKETS)]
    ended = select(Job.kind, *columns).where(Job.finished_at > ago(over), Job.started_at.is_not(None)).group_by(Job.kind)
    return {kind: _distributions(number, numbers) for kind, number, *numbers in session.execute(ended)}


def _distributions(count: int, numbers: list[Any]) -> tuple[Distribution, Distribution]:
    (wait, *waits), (run, *runs) = numbers[: len(BUCKETS) + 1], numbers[len(BUCKETS) + 1 :]
    return Distribution(tuple(waits), count, wait), Distribution(tuple(runs), count, run)


def oldest_due(session: Session) -> dict[str, timedelta]:
    """Return by queue how long its oldest due job has been waiting for a worker; a queue where none is due is left out."""
    # Three parts, because each is what one partial index holds.
    queued = Job.state == JobState.QUEUED
    parts = (
        (queued, Job.sent_at.is_(None)),
        (queued, Job.sent_at.is_not(None)),
        (Job.state == JobState.SCHEDULED, Job.run_at <= utc_now()),
    )
    due = union_all(*(select(Job.queue, Job.run_at).where(*part) for part in parts)).subquery()
    rows = session.execute(select(due.c.queue, seconds_between(func.min(due.c.run_at), utc_now())).group_by(due.c.queue))
    return {queue: timedelta(seconds=max(0.0, seconds)) for queue, seconds in rows}


def last_successes(session: Session, kinds: Iterable[str]) -> dict[str, datetime | None]:
    """Return when each of these kinds succeeded last, one statement a kind: meant for the recurring ones."""
    return {kind: schedule.last_success(session, kind) for kind in kinds}


def workers(session: Session, *, silent_after: timedelta) -> dict[str, int]:
    """Return how many living workers each queue has."""
    living = rescue.alive(session, silent_after=silent_after)
    return dict(Counter(queue for worker in living for queue in worker.queues.split(",")))


def stuck(session: Session, *, slack: timedelta) -> dict[str, int]:
    """Count by kind the jobs that run longer than their time limit and `slack` allow: nobody freed them."""
    beyond = seconds_between(Job.started_at, utc_now()) > Job.time_limit + slack.total_seconds()
    return _by_kind(session, Job.state == JobState.RUNNING, beyond)


def failed(session: Session, *, over: timedelta) -> dict[str, int]:
    """Count by kind the jobs that failed for good lately."""
    return _by_kind(session, Job.finished_at > ago(over), Job.state == JobState.FAILED)


def _by_kind(session: Session, *which: ColumnElement[bool]) -> dict[str, int]:
    rows = session.execute(select(Job.kind, func.count()).where(*which).group_by(Job.kind).order_by(Job.kind))
    return {kind: number for kind, number in rows}  # noqa: C416 - a Row is no tuple of two for the type checker


def paused(session: Session) -> dict[str, datetime]:
    """Return the queues that are paused, and since when."""
    rows = session.execute(select(PausedQueue.queue, PausedQueue.paused_at).order_by(PausedQueue.queue))
    return {queue: since for queue, since in rows}  # noqa: C416 - as above
