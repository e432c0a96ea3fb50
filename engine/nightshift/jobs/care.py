"""What a person may do to jobs: cancel, retry, hold, release, run now, pause, clear, prune.

insight.py has what a person may read. Every update names the states that it expects, so it does not
overrule a worker that was faster. Locks are taken in the order of claims.py: child before parent.
Bulk work skips rows that another transaction has locked; the next call takes them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Row, and_, case, delete, exists, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, aliased

from nightshift.database import Base, Session, batched, insert_or, utc_now
from nightshift.errors import Conflict, InvalidInput
from nightshift.jobs import batches
from nightshift.jobs.args import LONGEST_RATE, Kinds
from nightshift.jobs.models import (
    ENDED,
    NOT_STARTED,
    QUEUED,
    SCHEDULED,
    SENT,
    UNSENT,
    Action,
    Job,
    JobLog,
    JobStart,
    JobState,
    PausedQueue,
)
from nightshift.jobs.run import UnitOfWork, repeat

# Rows a statement and a transaction: transactions stay short, and databases limit parameters.
BATCH = 1_000

RETRIED = (Job.id, Job.kind, Job.args, Job.state, Job.claim_id, Job.started_at, Job.time_limit)

Locked = Row[UUID, UUID | None, datetime | None]
Ended = Row[Any]  # with id, kind and args
# Until where the failed jobs of a kind have been looked at: the end and the id of a job.
Failed = tuple[datetime | None, UUID]


def cancel(session: Session, ids: Iterable[UUID]) -> list[UUID]:
    """Cancel jobs that have not ended, and all their open children; return the ids of all these.

    A running body gets LostClaim from its next `progress` or from its finish; until then it goes on
    beside a limit that no longer counts it. The follow-up of a cancelled batch never runs.
    """
    roots = list(ids)
    while True:
        savepoint = session.begin_nested()
        levels = _open_tree(session, roots)
        # By id: a child may also be one of `ids`.
        rows = {row.id: row for level in reversed(levels) for row in _lock_open(session, level)}
        if all(job_id in rows for level in _open_tree(session, roots) for job_id in level):
            savepoint.commit()
            return _end(session, list(rows.values()))
        # A batch grew while we took its locks. Release them: the new children must be locked before
        # their parent.
        savepoint.rollback()


def clear(
    session: Session, *, queue: str | None = None, kind: str | None = None, limit: int = BATCH
) -> int:
    """Cancel up to `limit` jobs of a queue or kind that have not started, and return how many.

    Queued jobs come first, in the order in which they would run, then the scheduled and the held.
    Call it until it returns 0. Raises ValueError without a queue or kind: that would be every job.
    """
    if queue is None and kind is None:
        raise ValueError("clear needs a queue or a kind")
    which = [
        column == value
        for column, value in ((Job.queue, queue), (Job.kind, kind))
        if value is not None
    ]
    waiting = select(Job.id, Job.parent_id, Job.counted_at).where(*which)
    rows: list[Locked] = []
    # State by state, each in the order of its index: a call must not read all that waits.
    for state, order in (
        (UNSENT, (Job.limited, Job.priority, Job.run_at)),
        (SENT, (Job.sent_at,)),
        ((SCHEDULED,), (Job.run_at,)),
        ((Job.state == JobState.HELD,), (Job.run_at,)),
    ):
        free = waiting.where(*state).order_by(*order).limit(limit - len(rows))
        rows += session.execute(free.with_for_update(skip_locked=True)).all()
    # When only locked rows are left, wait for one of them. We hold no lock then, so this cannot
    # deadlock.
    left = waiting.where(Job.state.in_(NOT_STARTED)).limit(1).with_for_update()
    rows = rows or list(session.execute(left).all())
    return len(_end(session, rows))


def _open_tree(session: Session, roots: Iterable[UUID]) -> list[list[UUID]]:
    """Return the open jobs among `roots`, their open children, and so on: a list a generation."""
    levels: list[list[UUID]] = []
    column: InstrumentedAttribute[Any] = Job.id
    among = list(roots)
    while among:
        found: list[Any] = []
        for some in batched(among, BATCH):
            found += session.execute(
                select(Job.id, Job.state).where(column.in_(some), Job.state.not_in(ENDED))
            )
        levels.append([row.id for row in found])
        # Only a waiting job has open children that others can see.
        column, among = Job.parent_id, [row.id for row in found if row.state == JobState.WAITING]
    return levels


def _lock_open(session: Session, ids: Iterable[UUID]) -> Iterator[Locked]:
    for some in batched(sorted(ids), BATCH):
        still_open = select(Job.id, Job.parent_id, Job.counted_at).where(
            Job.id.in_(some), Job.state.not_in(ENDED)
        )
        yield from session.execute(still_open.order_by(Job.id).with_for_update())


def _end(session: Session, rows: Sequence[Locked]) -> list[UUID]:
    """Cancel locked rows and count each in its parent, unless it was counted before a retry."""
    ids = [row.id for row in rows]
    # With its claim, for `retry`: a running body goes on for a while.
    cancelled = {**batches.build_ended_columns(JobState.CANCELLED), "follow_up": None}
    for some in batched(ids, BATCH):
        _change(session, Job.id.in_(some), Job.state.not_in(ENDED), **cancelled)
    uncounted = Counter(
        row.parent_id for row in rows if row.parent_id is not None and row.counted_at is None
    )
    for parent_id, number in sorted(uncounted.items()):
        batches.record_child_end(session, parent_id, failed=True, number=number)
    return ids


def retry(session: Session, ids: Iterable[UUID], *, kinds: Kinds, now: datetime) -> list[UUID]:
    """Schedule jobs that have ended, with all their attempts, and return their ids.

    Errors and log lines stay. A child's parent has counted the child's first end: it does not wait
    for the retry, and its state does not change. A job that was cancelled while it ran waits until
    that run has come back, at most until its time limit has passed.

    Raises:
        Conflict: another open job has the unique key; the message names it.
        InvalidInput: no component declares the kind, or the arguments are no longer valid.

    """
    done = []
    for some in batched(list(ids), BATCH):
        ended = select(*RETRIED).where(Job.id.in_(some), Job.state.in_(ENDED))
        rows = session.execute(ended.order_by(Job.id).with_for_update()).all()
        for row in _sort_by_key(rows, kinds, now):
            holder = _schedule_again(session, row, kinds=kinds, now=now, **_wait_for_run(row))
            if holder is not None:
                raise Conflict(
                    f"job {row.id} cannot run again:"
                    f" job {holder} has its unique key and has not ended"
                )
            done.append(row.id)
    return done


def retry_each(
    session: Session, ids: Iterable[UUID], *, kinds: Kinds, now: datetime
) -> tuple[list[UUID], Counter[str]]:
    """Schedule those of these jobs that can run again, as `retry` does; return their ids.

    Also count, by reason, those that cannot. One that another transaction has locked is one that
    has not ended.
    """
    ended = select(*RETRIED).where(Job.id.in_(list(ids)), Job.state.in_(ENDED)).order_by(Job.id)
    done: list[UUID] = []
    skipped: Counter[str] = Counter()
    together: dict[bool, list[UUID]] = {True: [], False: []}
    one_by_one = []
    for row in session.execute(ended.with_for_update(skip_locked=True)):
        try:
            key = _make_key(row, kinds, now)
        except InvalidInput:
            known = row.kind in kinds
            skipped["its arguments are no longer valid" if known else "its kind is unknown"] += 1
            continue
        if key is None and not _wait_for_run(row):
            together[kinds[row.kind].policy.limited].append(row.id)
        else:
            one_by_one.append(row)
    for limited, some in together.items():
        if some:
            _change(session, Job.id.in_(some), Job.state.in_(ENDED), **_restart(limited=limited))
            done += some
    for row in _sort_by_key(one_by_one, kinds, now):
        if _schedule_again(session, row, kinds=kinds, now=now, **_wait_for_run(row)) is None:
            done.append(row.id)
        else:
            skipped["the same job is open"] += 1
    return done, skipped


def retry_failed(
    session: Session,
    kind: str,
    *,
    kinds: Kinds,
    now: datetime,
    after: Failed | None = None,
    limit: int = BATCH,
) -> tuple[int, Failed | None]:
    """Schedule up to `limit` failed jobs of a kind with all their attempts, newest first.

    Return how many, and where the next call has to go on: with that as `after`, or None at the end.
    `now` is by the database's clock and the same for all calls: a job that fails after it is left.
    Of jobs with the same unique key only the newest is scheduled, and only where no open job has
    the key. Raises InvalidInput as `retry` does.
    """
    failed = [Job.kind == kind, Job.state == JobState.FAILED, Job.finished_at <= now]
    if after is not None:
        at, last = after
        failed += [Job.finished_at <= at, or_(Job.finished_at < at, Job.id < last)]
    newest = (
        select(Job.id, Job.kind, Job.args, Job.finished_at)
        .where(*failed)
        .order_by(Job.finished_at.desc(), Job.id.desc())
        .limit(limit)
    )
    rows = session.execute(newest.with_for_update(skip_locked=True)).all()
    if kind in kinds and kinds[kind].policy.unique_by is None:
        again = _restart(limited=kinds[kind].policy.limited)
        number = _change(session, Job.id.in_([row.id for row in rows]), **again)
    else:
        number = sum(
            _schedule_again(session, row, kinds=kinds, now=now) is None
            for row in _sort_by_key(rows, kinds, now)
        )
    return number, (rows[-1].finished_at, rows[-1].id) if len(rows) == limit else None


def _wait_for_run(row: Row[Any]) -> dict[str, Any]:
    """Return what to write when a job was cancelled and its run may still go on."""
    if row.state != JobState.CANCELLED or row.claim_id is None:
        return {}
    over = row.started_at + timedelta(seconds=row.time_limit)
    # With the claim, the run finds the row when it comes back.
    return {
        "run_at": case((utc_now() < over, over), else_=utc_now()),
        "claim_id": row.claim_id,
    }


def _schedule_again(
    session: Session, row: Ended, *, kinds: Kinds, now: datetime, **wait: Any
) -> UUID | None:
    """Schedule an ended row, or return the id of the open job that has its unique key."""
    key = _make_key(row, kinds, now)
    try:
        with session.begin_nested():
            ended = (Job.id == row.id, Job.state.in_(ENDED))
            again = _restart(limited=kinds[row.kind].policy.limited)
            _change(session, *ended, **{**again, **wait, "unique_key": key})
    except IntegrityError:
        holder: UUID | None = session.execute(select(Job.id).where(Job.unique_key == key)).scalar()
        # Where there is none now, it ended between the two statements: try again.
        return holder or _schedule_again(session, row, kinds=kinds, now=now, **wait)
    return None


def _sort_by_key(rows: Iterable[Ended], kinds: Kinds, now: datetime) -> list[Ended]:
    """Return rows in the order in which `enqueue_many` writes unique keys: both could deadlock.

    Rows with equal keys stay in their order.
    """
    return sorted(rows, key=lambda row: _make_key(row, kinds, now) or "")


def _make_key(row: Ended, kinds: Kinds, now: datetime) -> str | None:
    if row.kind not in kinds:
        raise InvalidInput(
            f"job {row.id} cannot run again: no component declares the kind {row.kind!r} any more"
        )
    try:
        return kinds[row.kind].from_row(row.args).unique_key(now)
    except ValidationError as error:
        raise InvalidInput(
            f"job {row.id} cannot run again: its arguments are no longer valid: {error}"
        ) from error


def _restart(*, limited: bool) -> dict[str, Any]:
    """Return what to write when an ended job becomes one that has never run."""
    empty = dict.fromkeys((
        "sent_at", "finished_at", "claim_id", "worker_id", "pid", "result", "follow_up",
        "push_until", "progress_done", "progress_total",
    ))  # fmt: skip
    counts = {"attempt": 0, "children": 0, "children_open": 0, "children_failed": 0}
    return {**empty, **counts, "state": JobState.SCHEDULED, "run_at": utc_now(), "limited": limited}


def hold(session: Session, ids: Iterable[UUID]) -> list[UUID]:
    """Keep jobs that have not started from starting; return the ids of those held now.

    They stay held until they are released.
    """
    held = update(Job).where(
        Job.id.in_(list(ids)), Job.state.in_((JobState.SCHEDULED, JobState.QUEUED))
    )
    return list(
        session.execute(held.values(state=JobState.HELD, sent_at=None).returning(Job.id)).scalars()
    )


def release(session: Session, ids: Iterable[UUID]) -> list[UUID]:
    """Let held jobs run when they are due; return the ids of those released."""
    state = case((Job.run_at <= utc_now(), JobState.QUEUED), else_=JobState.SCHEDULED)
    released = (
        update(Job)
        .where(Job.id.in_(list(ids)), Job.state == JobState.HELD)
        .values(state=state, sent_at=None)
    )
    return list(
        session.execute(
            released.returning(Job.id).execution_options(synchronize_session=False)
        ).scalars()
    )


def run_now(session: Session, ids: Iterable[UUID]) -> list[UUID]:
    """Let scheduled jobs run as soon as possible; return the ids of those that were scheduled.

    One that was cancelled while it ran, and then retried, still waits for that run.
    """
    due = update(Job).where(
        Job.id.in_(list(ids)), Job.state == JobState.SCHEDULED, Job.claim_id.is_(None)
    )
    due = due.values(state=JobState.QUEUED, run_at=utc_now(), sent_at=None).returning(Job.id)
    return list(session.execute(due.execution_options(synchronize_session=False)).scalars())


def pause(session: Session, queue: str, *, now: datetime) -> bool:
    """Start no job of a queue until it is resumed. Return False when it was already paused.

    Jobs that run go on.
    """
    paused = (
        insert_or(session, PausedQueue).values(queue=queue, paused_at=now).on_conflict_do_nothing()
    )
    return session.execute(paused.returning(PausedQueue.queue)).scalar() is not None


def resume(session: Session, queue: str, *, limit: int = BATCH) -> int:
    """Start the jobs of a paused queue again. Call it until it returns 0.

    Return how many rows were written: 0 when the queue is not paused.
    """
    paused = select(PausedQueue.queue).where(PausedQueue.queue == queue).with_for_update()
    if session.execute(paused).one_or_none() is None:
        return 0
    # Workers dropped the messages that arrived meanwhile. Jobs that are marked as unsent are sent
    # at the relay's next look; others only after it notices that their messages are lost.
    oldest = select(Job.id).where(Job.queue == queue, *SENT).order_by(Job.sent_at).limit(limit)
    some = session.execute(oldest.with_for_update(skip_locked=True)).scalars().all()
    unsent = _change(session, Job.id.in_(some), QUEUED, sent_at=None)
    if unsent == limit:
        return unsent
    session.execute(delete(PausedQueue).where(PausedQueue.queue == queue))
    return unsent + 1


def prune(
    session: Session, keep: Mapping[JobState, timedelta], *, now: datetime, limit: int = BATCH
) -> tuple[int, bool]:
    """Delete the oldest `limit` jobs that ended longer ago than `keep` says for their state.

    Return how many, and whether more may be left. Children of an open batch, parents that still
    have children, and the last successful job of each kind stay. A call deletes `limit` log lines
    at most; while jobs have more, it deletes no job.
    """
    parent, child = aliased(Job), aliased(Job)
    old = [
        and_(Job.state == state, Job.finished_at < now - age)
        for state, age in keep.items()
        if state in ENDED
    ]
    prunable = (
        select(Job.id, Job.kind)
        .where(
            or_(*old),
            Job.finished_at.is_not(None),
            Job.unique_key.is_(None),
            ~exists().where(child.parent_id == Job.id),
            ~exists().where(parent.id == Job.parent_id, parent.state.not_in(ENDED)),
        )
        .order_by(Job.finished_at)
    )
    rows = session.execute(prunable.limit(limit).with_for_update(skip_locked=True, of=Job)).all()
    spared = {_find_last_good(session, kind) for kind in {row.kind for row in rows}}
    ids = [row.id for row in rows if row.id not in spared]
    lines = select(JobLog.id).where(JobLog.job_id.in_(ids)).limit(limit)
    if _delete(session, JobLog, JobLog.id.in_(lines)) == limit:
        return 0, True
    return _delete(session, Job, Job.id.in_(ids)), bool(ids)


def _delete(session: Session, model: type[Base], *which: Any) -> int:
    deleted = delete(model).where(*which).execution_options(synchronize_session=False)
    return int(session.execute(deleted).rowcount)  # type: ignore[attr-defined]


def _find_last_good(session: Session, kind: str) -> UUID | None:
    # By start, not by end: there is an index on kind and start.
    good = select(Job.id).where(
        Job.kind == kind, Job.state == JobState.SUCCEEDED, Job.started_at.is_not(None)
    )
    return session.execute(good.order_by(Job.started_at.desc()).limit(1)).scalar()


def prune_starts(session: Session, *, now: datetime, limit: int = BATCH) -> int:
    """Delete up to `limit` starts that no rate counts any more, and return how many.

    A rate may be longer than its jobs are kept. Most starts go earlier, when the relay counts.
    """
    old = select(JobStart.job_id, JobStart.at).where(JobStart.at < now - LONGEST_RATE).limit(limit)
    return _delete(session, JobStart, tuple_(JobStart.job_id, JobStart.at).in_(old))


def prune_actions(session: Session, *, before: datetime, limit: int = BATCH) -> int:
    """Delete up to `limit` records of what people did before an instant, and return how many."""
    old = select(Action.id).where(Action.at < before).order_by(Action.at).limit(limit)
    return _delete(session, Action, Action.id.in_(old))


def prune_all(
    unit_of_work: UnitOfWork, *, succeeded: timedelta, failed: timedelta, now: datetime
) -> int:
    """Prune until nothing is left to prune, in transactions of BATCH jobs; return how many.

    `succeeded` and `failed` as in `build_retention`.
    """
    keep = build_retention(succeeded=succeeded, failed=failed)
    pruned, more = 0, True
    while more:
        with unit_of_work() as session:
            number, more = prune(session, keep, now=now)
        pruned += number
    repeat(unit_of_work, partial(prune_starts, now=now))
    return pruned


def build_retention(*, succeeded: timedelta, failed: timedelta) -> dict[JobState, timedelta]:
    """Return how long each ended state is kept; `failed` is for all but `succeeded`."""
    return {state: succeeded if state == JobState.SUCCEEDED else failed for state in ENDED}


def _change(session: Session, *which: Any, **values: Any) -> int:
    changed = session.execute(
        update(Job).where(*which).values(values).execution_options(synchronize_session=False)
    )
    return int(changed.rowcount)  # type: ignore[attr-defined]
