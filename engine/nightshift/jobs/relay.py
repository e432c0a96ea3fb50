"""Decide which rows the broker is told of, and when.

A row is marked as sent before its message is published: a crash in between loses a message, not a
row. At most `buffer` messages of a queue are in the broker at a time. So a job of a higher priority
overtakes (rows in the ledger can be overtaken, messages in a broker's queue cannot), and a broker
that loses its messages loses few.

While more jobs wait than the workers can take, a message names several jobs of one kind and
priority: a worker claims and ends them together. A job that may only be sent alone has its own id
as `message_id`.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Row,
    Select,
    String,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from nightshift.database import Session, ago, read_clock, utc_now
from nightshift.errors import first_line
from nightshift.jobs import limits
from nightshift.jobs.args import Kinds, find_limited_policies
from nightshift.jobs.models import (
    ALONE,
    LIMITED,
    QUEUED,
    SCHEDULED,
    SENT,
    TABLE,
    UNSENDABLE,
    UNSENT,
    Job,
    JobState,
    PausedQueue,
)

logger = logging.getLogger(__name__)

# Messages a queue and a look: transactions stay short, and batches of messages small.
LARGEST_BATCH = 200

# Unclaimed jobs of a queue in the broker, where messages name several: an urgent job waits for
# these. And the messages over which a backlog is spread at least: each process gets its share.
MOST_SENT = 1_000
LEAST_SPREAD = 8
LARGEST_PROMOTION = 1_000

# Equal jobs that a caller's job may overtake. Callers that commit at the same time see each other's
# jobs as waiting: without this, one of them, and all that follow, would be left to the relay.
OVERTAKEN = 10

MESSAGE = func.coalesce(Job.message_id, Job.id)
# Of messages, and of jobs.
COUNTS = (func.count(MESSAGE.distinct()), func.count())

NOT_PAUSED = Job.queue.not_in(select(PausedQueue.queue))

Chosen = Row[UUID, str, int, Any, str, UUID | None]

# How many jobs of a kind a message names at most. Of a kind that is missing: one.
Bundles = Mapping[str, int]
NO_BUNDLES: Bundles = {}


@dataclass(frozen=True, slots=True)
class Notification:
    """What a message says: jobs, their kind and queue. The arguments, the first's, are shown."""

    job_ids: tuple[UUID, ...]
    kind: str
    queue: str
    args: dict[str, Any]

    @property
    def lead(self) -> UUID:
        """The first job. The message has its id."""
        return self.job_ids[0]


@dataclass(frozen=True, slots=True)
class Room:
    """How many more messages, and jobs in them, of a queue the broker may hold; `sent`: it has."""

    messages: int
    jobs: int
    sent: int


def select_queued() -> Select[UUID, str, int, Any, str, UUID | None]:
    """Select the queued jobs of queues that are not paused, in the order in which they run."""
    columns = (Job.id, Job.kind, Job.priority, Job.run_at, Job.queue, Job.message_id)
    return select(*columns).where(QUEUED, NOT_PAUSED).order_by(Job.priority, Job.run_at)


def find_next_due(
    session: Session, *which: ColumnElement[bool], without: Collection[UUID] = ()
) -> Chosen | None:
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

    These are queued and not limited, their queue has room in the broker, and no more urgent job of
    the queue waits, and not more than OVERTAKEN jobs that are as urgent and were due earlier. The
    relay sends the others.
    """
    values = {
        "ids": ids,
        "limited_kinds": [policy.kind for policy in find_limited_policies(kinds)],
        "buffer": buffer,
    }
    return _make_notifications(session.connection().execute(_MARK_EARLY, values))


def _build_mark_early() -> ReturningUpdate[Any]:
    job, ours, other = TABLE.c, TABLE.alias("ours"), TABLE.alias("other")
    queued = literal_column("'queued'", String)
    ids: BindParameter[Any] = bindparam("ids", expanding=True)
    # Once for all jobs that are enqueued alike, and not once for each.
    columns = (ours.c.queue, ours.c.priority, ours.c.run_at)
    alike = select(*columns).where(ours.c.id.in_(ids)).distinct().subquery()
    there = (other.c.queue == alike.c.queue, other.c.state == queued)
    in_broker = select(func.count()).where(*there, other.c.sent_at.is_not(None))
    waits = select(other.c.id).where(
        *there, other.c.sent_at.is_(None), ~other.c.limited, other.c.id.not_in(ids)
    )
    more_urgent = waits.where(other.c.priority < alike.c.priority)
    older = waits.where(other.c.priority == alike.c.priority, other.c.run_at < alike.c.run_at)
    order = (other.c.priority, other.c.run_at)
    have_to_wait = select(*alike.c).where(
        or_(
            in_broker.scalar_subquery() >= bindparam("buffer"),
            _first(more_urgent, *order),
            _first(older.offset(literal_column(str(OVERTAKEN))), *order),
        )
    )
    return (
        update(TABLE)
        .where(
            job.id.in_(ids),
            job.state == queued,
            job.sent_at.is_(None),
            ~job.limited,
            job.kind.not_in(bindparam("limited_kinds", expanding=True)),
            job.queue.not_in(select(PausedQueue.queue)),
            tuple_(job.queue, job.priority, job.run_at).not_in(have_to_wait),
        )
        .values(sent_at=utc_now(), message_id=case((job.message_id == job.id, job.message_id)))
        .returning(*(job[name] for name in _READ))
    )


def _first(waiting: Select[Any], *order: Any) -> ColumnElement[bool]:
    """Return the condition that a select has a row.

    Not EXISTS: for that, Postgres reads the whole table in the hope of an early match.
    """
    return waiting.order_by(*order).limit(literal_column("1")).scalar_subquery().is_not(None)


def mark_unsent(session: Session, messages: Iterable[Notification]) -> None:
    """Mark jobs as not sent: the broker did not take their messages."""
    _mark_rows_unsent(session, [job_id for message in messages for job_id in message.job_ids])


def _mark_rows_unsent(session: Session, ids: Sequence[UUID]) -> None:
    unsent = update(Job).where(Job.id.in_(ids), QUEUED).values(sent_at=None)
    session.execute(unsent.execution_options(synchronize_session=False))


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
    """Queue up to LARGEST_PROMOTION scheduled jobs that are due, the oldest first."""
    # Selected and locked first, without the rows that another transaction has locked: two bulk
    # updates in different orders would deadlock.
    oldest = select(Job.id).where(SCHEDULED, Job.run_at <= utc_now()).order_by(Job.run_at)
    # A literal, like the states: with a parameter Postgres plans for a tenth of the table.
    some = oldest.limit(literal_column(str(LARGEST_PROMOTION)))
    due_now = some.with_for_update(skip_locked=True)
    session.execute(
        update(Job)
        .where(Job.id.in_(due_now), SCHEDULED)
        .values(state=JobState.QUEUED, sent_at=None)
        .execution_options(synchronize_session=False)
    )


def mark_due_sent(
    session: Session,
    *,
    kinds: Kinds,
    queues: Collection[str],
    buffer: int,
    bundles: Bundles = NO_BUNDLES,
) -> list[Notification]:
    """Mark the due jobs that fit into the broker as sent, and return their messages.

    They are chosen by priority, then by due time. Only jobs on `queues`, which this release
    declares, are chosen: it cannot publish to a queue that only another release declares. Jobs that
    are flagged as limited are chosen only where `kinds` has their limit. Of the kinds in `bundles`,
    a message names several jobs where many wait.
    """
    queue_due(session)
    room = _find_room(session, queues, buffer)
    chosen: dict[str, list[Chosen]] = defaultdict(list)
    for queue, free in room.items():
        sizes = (bundles.get(name, 1) for name, kind in kinds.items() if kind.policy.queue == queue)
        number = min(free.messages * max(sizes, default=1), free.jobs)
        chosen[queue] += _choose_unlimited(session, queue, number, kinds)
    for row in _choose_limited(session, room, kinds):
        chosen[row.queue].append(row)
    messages: list[Notification] = []
    for queue, rows in chosen.items():
        if not rows:
            continue
        rows.sort(key=lambda row: (row.priority, row.run_at))
        messages += _mark(session, _pack(rows, room[queue], bundles))
    return messages


def _pack(rows: Sequence[Chosen], room: Room, bundles: Bundles) -> list[list[UUID]]:
    """Share rows, which are in order, out to messages; return the ids of each."""
    share = (room.sent + len(rows)) // LEAST_SPREAD
    messages: list[list[UUID]] = []
    begun: dict[tuple[str, int], list[UUID]] = {}
    for row in rows:
        most = 1 if row.message_id == row.id else min(bundles.get(row.kind, 1), share)
        ids = begun.get((row.kind, row.priority), [])
        if 0 < len(ids) < most:
            ids.append(row.id)
        elif len(messages) == room.messages:
            # Not the next one, which may fit: it would overtake this one.
            break
        else:
            messages.append([row.id])
            if most > 1:
                begun[row.kind, row.priority] = messages[-1]
    return messages


def _find_room(session: Session, queues: Collection[str], buffer: int) -> dict[str, Room]:
    """Return by queue how much more the broker may hold, where jobs wait for that."""
    if not queues:
        return {}
    paused = set(session.execute(select(PausedQueue.queue)).scalars())
    there = session.execute(_ask_for_waiting(tuple(queues))).one()
    room = {}
    for queue, waits in zip(queues, there, strict=True):
        if waits and queue not in paused:
            in_broker = select(*COUNTS).where(Job.queue == queue, *SENT)
            messages, jobs = session.execute(in_broker).one()
            free = min(buffer - messages, LARGEST_BATCH)
            if free > 0 and jobs < max(buffer, MOST_SENT):
                room[queue] = Room(free, max(buffer, MOST_SENT) - jobs, jobs)
    return room


# Each look asks the same, and these statements are longer to build than to execute.
@cache
def _ask_for_waiting(queues: tuple[str, ...]) -> Select[*tuple[bool, ...]]:
    """Ask of each queue whether a job waits unsent."""
    order = (Job.limited, Job.priority, Job.run_at)
    return select(
        *(_first(select(Job.id).where(Job.queue == queue, *UNSENT), *order) for queue in queues)
    )


@cache
def _ask_for_limited(kinds: tuple[str, ...]) -> Select[*tuple[bool, ...]]:
    """Ask of each kind whether a job that is flagged as limited waits unsent."""
    order = (Job.priority, Job.run_at)
    return select(
        *(
            _first(select(Job.id).where(Job.kind == kind, *UNSENT, LIMITED), *order)
            for kind in kinds
        )
    )


def _choose_unlimited(session: Session, queue: str, room: int, kinds: Kinds) -> list[Chosen]:
    """Choose up to `room` jobs of a queue whose kinds have no limit."""
    limited = {policy.kind for policy in find_limited_policies(kinds)}
    waiting = select_queued().where(Job.queue == queue, *UNSENT, ~Job.limited).limit(room)
    rows = session.execute(waiting.with_for_update(skip_locked=True, of=Job)).all()
    # Written by a release that keeps limits in its code only, or has none for the kind. The next
    # look finds others in their place.
    if unflagged := [row.id for row in rows if row.kind in limited]:
        flag = update(Job).where(Job.id.in_(unflagged)).values(limited=True)
        session.execute(flag.execution_options(synchronize_session=False))
    return [row for row in rows if row.kind not in limited]


def _choose_limited(session: Session, room: Collection[str], kinds: Kinds) -> list[Chosen]:
    """Choose jobs of limited kinds: of each kind as many as its limit admits now."""
    if not room or not kinds:
        return []
    there = session.execute(_ask_for_limited(tuple(kinds))).one()
    policies = [kind.policy for kind, waits in zip(kinds.values(), there, strict=True) if waits]
    limited = [policy for policy in policies if policy.limited]
    for policy in policies:
        if not policy.limited:
            limits.unflag_dropped(session, policy.kind)
    if not limited or not limits.lock_admission(session):
        return []
    chosen: list[Chosen] = []
    sent, running = limits.count_open(session)
    for policy in limited:
        admitted = limits.count_admissible(
            session, policy, sent=sent[policy.kind], running=running[policy.kind]
        )
        if admitted > 0:
            waiting = select_queued().where(
                Job.kind == policy.kind, *UNSENT, LIMITED, Job.queue.in_(room)
            )
            chosen += session.execute(
                waiting.limit(admitted).with_for_update(skip_locked=True, of=Job)
            )
    return chosen


def mark_lost_unsent(
    session: Session,
    *,
    count_ready: Callable[[str], int],
    queues: Collection[str],
    after: timedelta,
) -> int:
    """Mark the jobs whose messages the broker has lost as not sent; return how many messages.

    They are then sent in their turn, like all others. Where a queue has more messages of sent,
    unclaimed rows than the broker has ready (`count_ready`), the difference counts as lost. The
    messages that were sent first are chosen, and only those sent longer ago than `after`: a message
    that a worker has prefetched is not ready either. A queue whose messages cannot be counted is
    logged and left out.
    """
    in_broker = (*SENT, Job.queue.in_(queues), NOT_PAUSED)
    counts = select(Job.queue, COUNTS[0]).where(*in_broker).group_by(Job.queue)
    found = 0
    for queue, sent in session.execute(counts).all():
        old = (Job.queue == queue, *SENT, Job.sent_at < ago(after))
        oldest = select(Job.id, MESSAGE.label("message")).where(*old).order_by(Job.sent_at)
        if session.execute(oldest.limit(1)).one_or_none() is None:
            continue
        try:
            deficit = min(sent - count_ready(queue), LARGEST_BATCH)
        except Exception as error:  # noqa: BLE001 - one bad queue must not stop the others
            reason = first_line(error)
            logger.warning("the broker cannot count the messages of queue %s: %s", queue, reason)
            continue
        if deficit > 0:
            locked = oldest.limit(MOST_SENT).with_for_update(skip_locked=True)
            lost: dict[UUID, list[UUID]] = defaultdict(list)
            for row in session.execute(locked).all():
                if row.message in lost or len(lost) < deficit:
                    lost[row.message].append(row.id)
            _mark_rows_unsent(session, [job_id for ids in lost.values() for job_id in ids])
            found += len(lost)
    return found


def _mark(session: Session, packed: Iterable[Sequence[UUID]]) -> list[Notification]:
    """Mark jobs as sent, and return one message for each list of ids."""
    packed = list(packed)
    order = {job_id: number for number, ids in enumerate(packed) for job_id in ids}
    single = [job_id for ids in packed if len(ids) == 1 for job_id in ids]
    messages = _make_notifications(_mark_rows(session, single, case((ALONE, Job.message_id))))
    for ids in packed:
        if len(ids) > 1 and (rows := _sort(_mark_rows(session, ids, uuid4()))):
            first = rows[0]
            together = tuple(row.id for row in rows)
            messages.append(Notification(together, first.kind, first.queue, first.args))
    return sorted(messages, key=lambda message: order[message.lead])


def _mark_rows(session: Session, ids: Sequence[UUID], message_id: Any) -> Iterable[Any]:
    if not ids:
        return []
    marked = update(Job).where(Job.id.in_(ids), QUEUED)
    marked = marked.values(sent_at=utc_now(), message_id=message_id)
    returned = marked.returning(*(getattr(Job, name) for name in _READ))
    return session.execute(returned.execution_options(synchronize_session=False))


def _sort(marked: Iterable[Any]) -> list[Any]:
    return sorted(marked, key=lambda row: (row.priority, row.run_at))


def _make_notifications(marked: Iterable[Any]) -> list[Notification]:
    return [Notification((row.id,), row.kind, row.queue, row.args) for row in _sort(marked)]


_READ = ("id", "kind", "queue", "args", "priority", "run_at")
# Built once: every caller that has enqueued jobs executes it, and to build it takes longer.
_MARK_EARLY = _build_mark_early()
