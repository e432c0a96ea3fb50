"""Which rows the broker is told of, and when. A row is stamped first and published after: at worst a message is lost, never a row.

At most `buffer` unclaimed rows a queue are in the broker at a time. That is what makes priorities real (a message in a list cannot be
overtaken, a row can), and what keeps a flushed broker cheap.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import aliased

from services.database import Session, ago, utc_now
from services.jobs.args import KINDS, Policy, limited_kinds
from services.jobs.models import Job, JobState, PausedQueue

# One stamp's transaction stays short, and one batch of messages stays small.
LARGEST_BATCH = 200

# On Postgres, who holds this lock is the only one that admits jobs of limited kinds; SQLite has one writer anyway.
LOCK = 0x6A6F6273


@dataclass(frozen=True, slots=True)
class Message:
    """What the broker is told: which job, under which name, on which queue. The arguments are there for people to see."""

    job_id: UUID
    kind: str
    queue: str
    args: dict[str, Any]


def stamp(session: Session, ids: Sequence[UUID], *, buffer: int) -> list[Message]:
    """Stamp those of `ids` that may be sent at once: due, not limited, and their queue's buffer has room. The rest is the relay's."""
    other = aliased(Job)
    in_broker = select(func.count()).where(other.queue == Job.queue, other.state == JobState.QUEUED, other.sent_at.is_not(None))
    limited = [policy.kind for policy in limited_kinds(KINDS.values())]
    return _stamp(
        session,
        Job.id.in_(ids),
        Job.sent_at.is_(None),
        Job.kind.not_in(limited),
        in_broker.scalar_subquery() < buffer,
        Job.queue.not_in(select(PausedQueue.queue)),
    )


def unstamp(session: Session, messages: Iterable[Message]) -> None:
    """Take a stamp back: the broker did not take these."""
    ids = [message.job_id for message in messages]
    session.execute(update(Job).where(Job.id.in_(ids), Job.state == JobState.QUEUED).values(sent_at=None))


def promote(session: Session) -> None:
    """Queue what was scheduled and is due now."""
    # Chosen first, and without those that somebody else has locked: two bulk updates in two orders would wait for each other.
    due_now = select(Job.id).where(Job.state == JobState.SCHEDULED, Job.run_at <= utc_now()).with_for_update(skip_locked=True)
    session.execute(
        update(Job)
        .where(Job.id.in_(due_now), Job.state == JobState.SCHEDULED)
        .values(state=JobState.QUEUED, sent_at=None)
        .execution_options(synchronize_session=False)
    )


def due(session: Session, *, buffer: int) -> list[Message]:
    """Stamp and return what is due and fits, by priority and then by due time, a queue after the other."""
    promote(session)
    unsent = select(Job.queue).where(Job.state == JobState.QUEUED, Job.sent_at.is_(None))
    queues = session.execute(unsent.where(Job.queue.not_in(select(PausedQueue.queue))).distinct()).scalars().all()
    messages: list[Message] = []
    for queue in queues:
        sent = select(func.count()).where(Job.queue == queue, Job.state == JobState.QUEUED, Job.sent_at.is_not(None))
        room = min(buffer - session.execute(sent).scalar_one(), LARGEST_BATCH)
        if room > 0:
            messages += _stamp(session, Job.id.in_(_next(session, queue, room)))
    return messages


def _next(session: Session, queue: str, room: int) -> list[UUID]:
    """Choose what goes first; of a limited kind as many as its limit admits now."""
    limited = limited_kinds(KINDS.values())
    waiting = (
        select(Job.id, Job.priority, Job.run_at)
        .where(Job.queue == queue, Job.state == JobState.QUEUED, Job.sent_at.is_(None))
        .order_by(Job.priority, Job.run_at)
        .with_for_update(skip_locked=True)
    )
    chosen = list(session.execute(waiting.where(Job.kind.not_in([policy.kind for policy in limited])).limit(room)))
    for policy in limited:
        admitted = min(_admitted(session, policy), room) if policy.queue == queue and _only_we_admit(session) else 0
        if admitted > 0:
            chosen += session.execute(waiting.where(Job.kind == policy.kind).limit(admitted))
    chosen.sort(key=lambda row: (row.priority, row.run_at))
    return [row.id for row in chosen[:room]]


def _only_we_admit(session: Session) -> bool:
    """Say whether no other keeper counts the limited kinds until we commit: two that counted the same would both fill the same room."""
    if session.get_bind().dialect.name != "postgresql":
        return True
    return bool(session.execute(select(func.pg_try_advisory_xact_lock(LOCK))).scalar_one())


def _admitted(session: Session, policy: Policy) -> int:
    """Return how many more jobs of a limited kind may start now, over all workers."""
    of_kind = select(func.count()).where(Job.kind == policy.kind)
    sent = session.execute(of_kind.where(Job.state == JobState.QUEUED, Job.sent_at.is_not(None))).scalar_one()
    room = LARGEST_BATCH
    if policy.concurrency is not None:
        running = session.execute(of_kind.where(Job.state == JobState.RUNNING)).scalar_one()
        room = min(room, policy.concurrency - sent - running)
    if policy.rate is not None:
        started = session.execute(of_kind.where(Job.started_at > ago(policy.rate.per))).scalar_one()
        room = min(room, policy.rate.count - sent - started)
    return room


def lost(session: Session, *, ready: Callable[[str], int], after: timedelta) -> list[Message]:
    """Stamp and return the rows whose messages the broker must have lost.

    A queue misses as many messages as it has sent, unclaimed rows beyond those that the broker has `ready`; the oldest are sent again,
    and only those sent longer than `after` ago: a message that a worker has prefetched is not ready either.
    """
    in_broker = (Job.state == JobState.QUEUED, Job.sent_at.is_not(None))
    paused = select(PausedQueue.queue)
    counts = session.execute(select(Job.queue, func.count()).where(*in_broker, Job.queue.not_in(paused)).group_by(Job.queue)).all()
    messages: list[Message] = []
    for queue, sent in counts:
        oldest = select(Job.id).where(Job.queue == queue, *in_broker, Job.sent_at < ago(after)).order_by(Job.sent_at)
        if session.execute(oldest.limit(1)).one_or_none() is None:
            continue
        deficit = min(sent - ready(queue), LARGEST_BATCH)
        if deficit > 0:
            ids = session.execute(oldest.limit(deficit).with_for_update(skip_locked=True)).scalars().all()
            messages += _stamp(session, Job.id.in_(ids))
    return messages


def _stamp(session: Session, *which: ColumnElement[bool]) -> list[Message]:
    stamped = (
        update(Job)
        .where(*which, Job.state == JobState.QUEUED)
        .values(sent_at=utc_now())
        .returning(Job.id, Job.kind, Job.queue, Job.args, Job.priority, Job.run_at)
        .execution_options(synchronize_session=False)
    )
    rows = sorted(session.execute(stamped), key=lambda row: (row.priority, row.run_at))
    return [Message(row.id, row.kind, row.queue, row.args) for row in rows]
