"""Decide which rows the broker is told of, and when.

A row is marked as sent before its message is published: a crash in between loses a message, not a
row. At most `buffer` unclaimed rows of a queue are in the broker at a time. So a job of a higher
priority overtakes (rows in the ledger can be overtaken, messages in a broker's queue cannot), and a
broker that loses its messages loses few.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, func, select, update
from sqlalchemy.orm import aliased

from nightshift.database import Session, ago, read_clock, utc_now
from nightshift.jobs.args import Kinds, Policy, find_limited_policies
from nightshift.jobs.models import UNSENDABLE, Job, JobState, PausedQueue

# Rows a queue and a look: transactions stay short, and batches of messages small.
LARGEST_BATCH = 200
LARGEST_PROMOTION = 1_000

# On Postgres, the session that holds this lock is the only one that admits jobs of limited kinds;
# SQLite has one writer anyway.
LOCK = 0x6A6F6273

QUEUED = Job.state == JobState.QUEUED
NOT_PAUSED = Job.queue.not_in(select(PausedQueue.queue))


@dataclass(frozen=True, slots=True)
class Notification:
    """What a message says: the job, its kind and its queue. The arguments are for display."""

    job_id: UUID
    kind: str
    queue: str
    args: dict[str, Any]


def select_queued() -> Select[UUID, str, int, Any]:
    """Select the queued jobs of queues that are not paused, in the order in which they run."""
    columns = (Job.id, Job.kind, Job.priority, Job.run_at)
    return select(*columns).where(QUEUED, NOT_PAUSED).order_by(Job.priority, Job.run_at)


def find_next_due(
    session: Session, *which: ColumnElement[bool], without: Collection[UUID] = ()
) -> Row[UUID, str, int, Any] | None:
    """Queue the scheduled jobs that are due, and return the job to run next, or None.

    For a process that runs jobs without a broker. Only jobs that fit `which`, without the ids in
    `without`, are considered.
    """
    queue_due(session)
    due = select_queued().where(*which, Job.run_at <= utc_now(), Job.id.not_in(without))
    return session.execute(due.limit(1)).one_or_none()


def mark_sent(
    session: Session, ids: Sequence[UUID], *, kinds: Kinds, buffer: int
) -> list[Notification]:
    """Mark the jobs among `ids` as sent that may be sent at once, and return them.

    These are queued and not limited, and their queue has room in the broker. The relay sends the
    others.
    """
    other = aliased(Job)
    in_broker = select(func.count()).where(
        other.queue == Job.queue, other.state == JobState.QUEUED, other.sent_at.is_not(None)
    )
    return _mark(
        session,
        Job.id.in_(ids),
        Job.sent_at.is_(None),
        Job.kind.not_in([policy.kind for policy in find_limited_policies(kinds)]),
        in_broker.scalar_subquery() < buffer,
        NOT_PAUSED,
    )


def mark_unsent(session: Session, messages: Iterable[Notification]) -> None:
    """Mark jobs as not sent: the broker did not take their messages."""
    ids = [message.job_id for message in messages]
    session.execute(update(Job).where(Job.id.in_(ids), QUEUED).values(sent_at=None))


def hold_unsendable(session: Session, reasons: Mapping[UUID, str]) -> None:
    """Hold jobs whose messages cannot be built, and add the reason to each job's errors."""
    for job_id, reason in reasons.items():
        row = session.execute(select(Job).where(Job.id == job_id, QUEUED)).scalar_one_or_none()
        if row is not None:
            error = {
                "attempt": row.attempt,
                "at": read_clock(session).isoformat(),
                "type": UNSENDABLE,
                "message": reason,
                "traceback": "",
            }
            row.state, row.sent_at, row.errors = JobState.HELD, None, [*(row.errors or []), error]
    session.flush()


def queue_due(session: Session) -> None:
    """Queue the scheduled jobs that are due."""
    # Selected and locked first, without the rows that another transaction has locked: two bulk
    # updates in different orders would deadlock.
    is_due = (Job.state == JobState.SCHEDULED, Job.run_at <= utc_now())
    oldest = select(Job.id).where(*is_due).order_by(Job.run_at).limit(LARGEST_PROMOTION)
    due_now = oldest.with_for_update(skip_locked=True)
    session.execute(
        update(Job)
        .where(Job.id.in_(due_now), Job.state == JobState.SCHEDULED)
        .values(state=JobState.QUEUED, sent_at=None)
        .execution_options(synchronize_session=False)
    )


def mark_due_sent(
    session: Session, *, kinds: Kinds, queues: Collection[str], buffer: int
) -> list[Notification]:
    """Mark the due jobs that fit into the broker as sent, and return them.

    They are chosen by priority, then by due time. Only jobs on `queues`, which this release
    declares, are chosen: it cannot publish to a queue that only another release declares.
    """
    queue_due(session)
    waiting = select(Job.queue).where(QUEUED, Job.sent_at.is_(None), Job.queue.in_(queues))
    messages: list[Notification] = []
    for queue in session.execute(waiting.where(NOT_PAUSED).distinct()).scalars().all():
        in_broker = select(func.count()).where(Job.queue == queue, QUEUED, Job.sent_at.is_not(None))
        room = min(buffer - session.execute(in_broker).scalar_one(), LARGEST_BATCH)
        if room > 0:
            messages += _mark(session, Job.id.in_(_choose(session, queue, room, kinds)))
    return messages


def _choose(session: Session, queue: str, room: int, kinds: Kinds) -> list[UUID]:
    """Choose up to `room` jobs of a queue; of a limited kind as many as its limit admits now."""
    limited = find_limited_policies(kinds)
    waiting = select_queued().where(Job.queue == queue, Job.sent_at.is_(None))
    waiting = waiting.with_for_update(skip_locked=True, of=Job)
    unlimited = waiting.where(Job.kind.not_in([policy.kind for policy in limited]))
    chosen = list(session.execute(unlimited.limit(room)))
    for policy in limited:
        if policy.queue == queue and _alone_admits(session):
            admitted = min(_count_admissible(session, policy), room)
            if admitted > 0:
                chosen += session.execute(waiting.where(Job.kind == policy.kind).limit(admitted))
    chosen.sort(key=lambda row: (row.priority, row.run_at))
    return [row.id for row in chosen[:room]]


def _alone_admits(session: Session) -> bool:
    """Return True when only this transaction may admit jobs of limited kinds until it ends.

    Two transactions that count the same running jobs would together admit too many.
    """
    if session.get_bind().dialect.name != "postgresql":
        return True
    return bool(session.execute(select(func.pg_try_advisory_xact_lock(LOCK))).scalar_one())


def _count_admissible(session: Session, policy: Policy) -> int:
    """Return how many more jobs of a limited kind may start now, over all workers.

    The number may be negative.
    """
    of_kind = select(func.count()).where(Job.kind == policy.kind)
    sent = session.execute(of_kind.where(QUEUED, Job.sent_at.is_not(None))).scalar_one()
    room = LARGEST_BATCH
    if policy.concurrency is not None:
        running = session.execute(of_kind.where(Job.state == JobState.RUNNING)).scalar_one()
        room = min(room, policy.concurrency - sent - running)
    if policy.rate is not None:
        recent = of_kind.where(Job.started_at > ago(policy.rate.per))
        room = min(room, policy.rate.count - sent - session.execute(recent).scalar_one())
    return room


def mark_lost_sent(
    session: Session,
    *,
    count_ready: Callable[[str], int],
    queues: Collection[str],
    after: timedelta,
) -> list[Notification]:
    """Find the jobs whose messages the broker has lost, mark them as sent again, return them.

    Where a queue has more sent, unclaimed rows than the broker has messages ready (`count_ready`),
    the difference counts as lost. The jobs that were sent first are chosen, and only those sent
    longer ago than `after`: a message that a worker has prefetched is not ready either.
    """
    in_broker = (QUEUED, Job.sent_at.is_not(None), Job.queue.in_(queues))
    counts = select(Job.queue, func.count()).where(*in_broker, NOT_PAUSED).group_by(Job.queue)
    messages: list[Notification] = []
    for queue, sent in session.execute(counts).all():
        old = (Job.queue == queue, *in_broker, Job.sent_at < ago(after))
        oldest = select(Job.id).where(*old).order_by(Job.sent_at)
        if session.execute(oldest.limit(1)).one_or_none() is None:
            continue
        deficit = min(sent - count_ready(queue), LARGEST_BATCH)
        if deficit > 0:
            locked = oldest.limit(deficit).with_for_update(skip_locked=True)
            ids = session.execute(locked).scalars().all()
            messages += _mark(session, Job.id.in_(ids))
    return messages


def _mark(session: Session, *which: ColumnElement[bool]) -> list[Notification]:
    marked = (
        update(Job)
        .where(*which, QUEUED)
        .values(sent_at=utc_now())
        .returning(Job.id, Job.kind, Job.queue, Job.args, Job.priority, Job.run_at)
        .execution_options(synchronize_session=False)
    )
    rows = sorted(session.execute(marked), key=lambda row: (row.priority, row.run_at))
    return [Notification(row.id, row.kind, row.queue, row.args) for row in rows]
