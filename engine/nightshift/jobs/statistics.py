"""Numbers about the ledger's jobs, queues and workers. Each takes one statement."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    String,
    case,
    cast,
    func,
    literal,
    select,
    union_all,
)

from nightshift.database import Session, UtcDateTime, ago, plain, seconds_between, utc_now
from nightshift.jobs import rescue
from nightshift.jobs.args import Kinds
from nightshift.jobs.models import (
    FINISHED,
    RUNNING,
    SENT,
    SET_ASIDE,
    UNSENDABLE,
    UNSENT,
    UNSUCCESSFUL,
    Job,
    JobState,
    PausedQueue,
    Worker,
)

# Seconds: from a wait that users do not notice to one that they complain about.
BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """How long `count` jobs took, `total` seconds in all; `at_most` counts those within each bound.

    The bounds are BUCKETS.
    """

    at_most: tuple[int, ...]
    count: int
    total: float


def count_jobs(session: Session) -> dict[tuple[str, str, str], int]:
    """Return how many jobs the ledger holds by (kind, queue, state)."""
    # This statement alone reads the whole table. An index would not help: most rows have ended, and
    # they count too.
    state = plain(Job.state)
    rows = session.execute(
        select(Job.kind, Job.queue, state, func.count()).group_by(Job.kind, Job.queue, state)
    )
    return {(kind, queue, name): number for kind, queue, name, number in rows}


def read_timings(
    session: Session, *, over: timedelta
) -> dict[str, tuple[Distribution, Distribution]]:
    """Return by kind how long the jobs that ended within `over` had waited, and how long they ran.

    The wait is from a job's due time to its last start; the run is from there to its end, which for
    a batch is the end of its last child.
    """
    # A job that was scheduled again and then cancelled is due after its last start. The clock of
    # the caller that enqueued it may also be ahead of the database's.
    wait = case(
        (Job.run_at > Job.started_at, 0.0), else_=seconds_between(Job.run_at, Job.started_at)
    )
    run = seconds_between(Job.started_at, Job.finished_at)
    columns: list[ColumnElement[Any]] = [func.count()]
    for span in (wait, run):
        columns += [func.sum(span), *(func.count().filter(span <= bound) for bound in BUCKETS)]
    ended = (
        select(Job.kind, *columns)
        .where(Job.finished_at > ago(over), Job.started_at.is_not(None))
        .group_by(Job.kind)
    )
    return {
        kind: _make_distributions(number, numbers)
        for kind, number, *numbers in session.execute(ended)
    }


def _make_distributions(count: int, numbers: list[Any]) -> tuple[Distribution, Distribution]:
    (wait, *waits), (run, *runs) = numbers[: len(BUCKETS) + 1], numbers[len(BUCKETS) + 1 :]
    return Distribution(tuple(waits), count, wait), Distribution(tuple(runs), count, run)


def read_oldest_due(session: Session) -> dict[str, timedelta]:
    """Return by queue how long its oldest due job has waited, for the queues that have one."""
    # Three parts: each is served by one partial index.
    queued = Job.state == JobState.QUEUED
    parts = (
        (queued, Job.sent_at.is_(None)),
        (queued, Job.sent_at.is_not(None)),
        (Job.state == JobState.SCHEDULED, Job.run_at <= utc_now()),
    )
    due = union_all(*(select(Job.queue, Job.run_at).where(*part) for part in parts)).subquery()
    rows = session.execute(
        select(due.c.queue, seconds_between(func.min(due.c.run_at), utc_now())).group_by(
            due.c.queue
        )
    )
    return {queue: timedelta(seconds=max(0.0, seconds)) for queue, seconds in rows}


def count_waiting(session: Session, queues: Iterable[str], *, at_most: int) -> dict[str, int]:
    """Return by queue how many jobs are queued; of more than `at_most`, one more than that."""
    # A queue at a time: what is counted stops where nobody needs to know more.
    counts = {}
    for queue in queues:
        parts = (select(Job.id).where(Job.queue == queue, *which) for which in (UNSENT, SENT))
        some = union_all(*(select(part.limit(at_most + 1).subquery()) for part in parts))
        number = session.execute(select(func.count()).select_from(some.subquery())).scalar_one()
        counts[queue] = min(number, at_most + 1)
    return counts


def count_ended_by_queue(session: Session, *, over: timedelta) -> dict[str, int]:
    """Return by queue how many jobs ended within `over`."""
    ended = select(Job.queue, func.count()).where(FINISHED, Job.finished_at > ago(over))
    return dict(session.execute(ended.group_by(Job.queue)).all())


def count_ended(
    session: Session, *, since: datetime, step: timedelta
) -> dict[int, tuple[int, int]]:
    """Return by step from `since` on how many jobs ended in it, and how many did not succeed."""
    # Two statements: the first reads only an index, and the second only jobs that did not succeed.
    counts: list[dict[int, int]] = []
    for which in ((FINISHED,), (UNSUCCESSFUL, FINISHED)):
        passed = seconds_between(literal(since, UtcDateTime()), Job.finished_at)
        slot = cast(func.floor(passed / step.total_seconds()), Integer).label("slot")
        rows = session.execute(
            select(slot, func.count()).where(*which, Job.finished_at >= since).group_by(slot)
        )
        counts.append(dict(rows.all()))
    ended, unsuccessful = counts
    return {slot: (number, unsuccessful.get(slot, 0)) for slot, number in ended.items()}


def find_failures(session: Session, *, over: timedelta, limit: int) -> list[tuple[str, int, Job]]:
    """Return the kinds that failed most within `over`: how often, and the newest failed job."""
    failed = (UNSUCCESSFUL, Job.state == JobState.FAILED, Job.finished_at > ago(over))
    number = func.count().label("number")
    by_kind = select(Job.kind, number).where(*failed).group_by(Job.kind)
    most = session.execute(by_kind.order_by(number.desc(), Job.kind).limit(limit)).all()
    found = []
    for kind, times in most:
        newest = select(Job).where(*failed, Job.kind == kind).order_by(Job.finished_at.desc())
        job = session.execute(newest.limit(1)).scalar_one_or_none()
        if job is not None:
            found.append((kind, times, job))
    return found


def find_running(session: Session, *, limit: int) -> list[Job]:
    """Return the running jobs, the longest first."""
    running = select(Job).where(RUNNING).order_by(Job.started_at).limit(limit)
    return list(session.execute(running).scalars())


def find_last_runs(session: Session, kind: str, *, limit: int) -> list[Job]:
    """Return the newest jobs of a kind that have started, newest first."""
    started = select(Job).where(Job.kind == kind, Job.started_at.is_not(None))
    return list(session.execute(started.order_by(Job.started_at.desc()).limit(limit)).scalars())


def count_workers(session: Session, *, silent_after: timedelta) -> dict[str, int]:
    """Return how many living workers each queue has."""
    living = rescue.find_living_workers(session, silent_after=silent_after)
    return dict(Counter(queue for worker in living for queue in worker.queues.split(",")))


def count_stuck(session: Session, *, slack: timedelta) -> dict[str, int]:
    """Count by kind the running jobs that no keeper released `slack` after their time limit."""
    beyond = seconds_between(Job.started_at, utc_now()) > Job.time_limit + slack.total_seconds()
    return _count_by_kind(session, Job.state == JobState.RUNNING, beyond)


def count_failed(session: Session, *, over: timedelta) -> dict[str, int]:
    """Count by kind the jobs that ended as failed within `over`."""
    failed = (UNSUCCESSFUL, Job.finished_at > ago(over), Job.state == JobState.FAILED)
    return _count_by_kind(session, *failed)


def count_unsendable(session: Session) -> dict[str, int]:
    """Count by kind the jobs that are held because their messages cannot be built."""
    says_so = cast(Job.errors, String).contains(f'"type": "{UNSENDABLE}"')
    return _count_by_kind(session, SET_ASIDE, Job.state == JobState.HELD, says_so)


def _count_by_kind(session: Session, *which: ColumnElement[bool]) -> dict[str, int]:
    counts = select(Job.kind, func.count()).where(*which).group_by(Job.kind).order_by(Job.kind)
    return dict(session.execute(counts).all())


def count_unknown(session: Session, *, kinds: Kinds) -> dict[str, int]:
    """Count by kind the jobs that have not ended and whose kind is not one of `kinds`."""
    return _count_by_kind(session, Job.finished_at.is_(None), Job.kind.not_in(kinds))


def find_hung_workers(session: Session, *, lately: timedelta) -> dict[str, datetime]:
    """Return since when each worker's main process does not react, if it still ran `lately`."""
    hung = select(Worker.name, Worker.hung_at).where(
        Worker.hung_at.is_not(None), Worker.stopped_at.is_(None), Worker.heartbeat_at > ago(lately)
    )
    return {name: at for name, at in session.execute(hung.order_by(Worker.name)) if at is not None}


def find_paused_queues(session: Session) -> dict[str, datetime]:
    """Return since when each paused queue is paused."""
    paused = select(PausedQueue.queue, PausedQueue.paused_at).order_by(PausedQueue.queue)
    return dict(session.execute(paused).all())
