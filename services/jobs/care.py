"""What a person may do to jobs from outside: cancel, retry, hold, pause, clear, prune. What there is to see is in insight.py.

Every update carries the states it expects, so nothing here overrules a worker that was faster. Locks are taken as claims.py takes them:
child before parent. Bulk work skips what somebody has just locked, and leaves it to the next call.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Row, and_, case, delete, exists, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, aliased

from services.database import Session, insert_or
from services.errors import Conflict, InvalidInput
from services.jobs import batches
from services.jobs.args import KINDS
from services.jobs.models import ENDED, Job, JobState, PausedQueue
from services.jobs.run import UnitOfWork

NOT_STARTED = (JobState.SCHEDULED, JobState.QUEUED, JobState.HELD)

# One transaction of bulk work stays short, and one statement below every limit on parameters.
BATCH = 1_000

Locked = Row[UUID, UUID | None, datetime | None]
Ended = Row[UUID, str, dict[str, Any]]


def cancel(session: Session, ids: Iterable[UUID]) -> list[UUID]:
    """Cancel jobs that have not ended, with everything that their batches have open, and return what was cancelled.

    A running body learns it at its next `progress`; whatever it does, its finish is refused. The follow-up of a cancelled batch never runs.
    """
    roots = list(ids)
    while True:
        savepoint = session.begin_nested()
        levels = _open_tree(session, roots)
        # By id, because a child may also have been named itself.
        rows = {row.id: row for level in reversed(levels) for row in _lock_open(session, level)}
        if all(job_id in rows for level in _open_tree(session, roots) for job_id in level):
            savepoint.commit()
            return _end(session, list(rows.values()))
        # A batch grew while its locks were taken. They are given back: the new children must be locked before their parent.
        savepoint.rollback()


def clear(session: Session, *, queue: str | None = None, kind: str | None = None, limit: int = BATCH) -> int:
    """Cancel up to `limit` jobs of a queue or kind that have not started, and return how many; call it until that is 0.

    Raises ValueError without a queue or kind: that would be everything.
    """
    if queue is None and kind is None:
        raise ValueError("clear needs a queue or a kind")
    which = [column == value for column, value in ((Job.queue, queue), (Job.kind, kind)) if value is not None]
    waiting = select(Job.id, Job.parent_id, Job.counted_at).where(*which, Job.state.in_(NOT_STARTED))
    free = waiting.order_by(Job.id).limit(limit).with_for_update(skip_locked=True)
    # Nothing is locked yet when the last, which somebody else holds, is waited for: so there is no deadlock.
    rows = session.execute(free).all() or session.execute(waiting.limit(1).with_for_update()).all()
    return len(_end(session, rows))


def _open_tree(session: Session, roots: Iterable[UUID]) -> list[list[UUID]]:
    """Return the open ones of `roots`, their open children, and so on: a list a generation."""
    levels: list[list[UUID]] = []
    column: InstrumentedAttribute[Any] = Job.id
    among = list(roots)
    while among:
        found: list[Any] = []
        for some in _batched(among):
            found += session.execute(select(Job.id, Job.state).where(column.in_(some), Job.state.not_in(ENDED)))
        levels.append([row.id for row in found])
        # Only a waiting job has open children that others can see.
        column, among = Job.parent_id, [row.id for row in found if row.state == JobState.WAITING]
    return levels


def _lock_open(session: Session, ids: Iterable[UUID]) -> Iterator[Locked]:
    for some in _batched(sorted(ids)):
        still_open = select(Job.id, Job.parent_id, Job.counted_at).where(Job.id.in_(some), Job.state.not_in(ENDED))
        yield from session.execute(still_open.order_by(Job.id).with_for_update())


def _end(session: Session, rows: Sequence[Locked]) -> list[UUID]:
    """Cancel rows that are locked, and count each with its parent, unless it was counted before a retry."""
    ids = [row.id for row in rows]
    cancelled = {**batches.ended(JobState.CANCELLED), "claim_id": None, "follow_up": None}
    for some in _batched(ids):
        _change(session, Job.id.in_(some), Job.state.not_in(ENDED), **cancelled)
    uncounted = Counter(row.parent_id for row in rows if row.parent_id is not None and row.counted_at is None)
    for parent_id, number in sorted(uncounted.items()):
        if number > 1:
            # All but the last in one statement: thousands of updates of one row, in one transaction, get slower and slower.
            open_, failed = Job.children_open - (number - 1), Job.children_failed + (number - 1)
            _change(session, Job.id == parent_id, children_open=open_, children_failed=failed)
        batches.count(session, parent_id, failed=True)
    return ids


def retry(session: Session, ids: Iterable[UUID], *, now: datetime) -> list[UUID]:
    """Run jobs that have ended once more, as their rows say, and return those. Attempts are counted anew; errors and log lines stay.

    A child was counted when it ended first: its parent neither waits for it again nor changes its mind.

    Raises:
        Conflict: another job holds the unique key; the message names it.
        InvalidInput: nobody knows the kind any more, or its arguments are no longer valid.

    """
    done = []
    for some in _batched(list(ids)):
        ended = select(Job.id, Job.kind, Job.args).where(Job.id.in_(some), Job.state.in_(ENDED))
        for row in session.execute(ended.order_by(Job.id).with_for_update()).all():
            holder = _again(session, row, now=now)
            if holder is not None:
                raise Conflict(f"job {row.id} cannot run again: job {holder} has its unique key and has not ended")
            done.append(row.id)
    return done


def retry_failed(session: Session, kind: str, *, now: datetime) -> int:
    """Run every failed job of a kind once more and return how many; of those with one unique key only the newest, if the key is free.

    Raises InvalidInput as `retry` does.
    """
    failed = (Job.kind == kind, Job.state == JobState.FAILED)
    if kind in KINDS and KINDS[kind].policy.unique_by is None:
        return _change(session, *failed, **_anew(now))
    newest_first = select(Job.id, Job.kind, Job.args).where(*failed).order_by(Job.finished_at.desc()).with_for_update()
    return sum(_again(session, row, now=now) is None for row in session.execute(newest_first).all())


def _again(session: Session, row: Ended, *, now: datetime) -> UUID | None:
    """Schedule an ended row, or return the id of the job that holds its unique key."""
    if row.kind not in KINDS:
        raise InvalidInput(f"job {row.id} cannot run again: no job is called {row.kind!r} any more")
    try:
        key = KINDS[row.kind].from_row(row.args).unique_key(now)
    except ValidationError as error:
        raise InvalidInput(f"job {row.id} cannot run again: its arguments are no longer valid: {error}") from error
    try:
        with session.begin_nested():
            _change(session, Job.id == row.id, Job.state.in_(ENDED), **_anew(now), unique_key=key)
    except IntegrityError:
        holder: UUID | None = session.execute(select(Job.id).where(Job.unique_key == key)).scalar()
        # Without one, it ended between the two statements: the key is free.
        return holder or _again(session, row, now=now)
    return None


def _anew(now: datetime) -> dict[str, Any]:
    ours: dict[str, Any] = dict.fromkeys(
        ("sent_at", "finished_at", "claim_id", "worker_id", "pid", "result", "follow_up", "push_until")
    )
    progress: dict[str, Any] = {"progress_done": None, "progress_total": None}
    counts = {"attempt": 0, "children": 0, "children_open": 0, "children_failed": 0}
    return {**ours, **progress, **counts, "state": JobState.SCHEDULED, "run_at": now}


def hold(session: Session, ids: Iterable[UUID]) -> list[UUID]:
    """Keep jobs that have not started from starting, until they are released; return those held now."""
    held = update(Job).where(Job.id.in_(list(ids)), Job.state.in_((JobState.SCHEDULED, JobState.QUEUED)))
    return list(session.execute(held.values(state=JobState.HELD, sent_at=None).returning(Job.id)).scalars())


def release(session: Session, ids: Iterable[UUID], *, now: datetime) -> list[UUID]:
    """Let held jobs run when they are due; return those released."""
    state = case((Job.run_at <= now, JobState.QUEUED), else_=JobState.SCHEDULED)
    released = update(Job).where(Job.id.in_(list(ids)), Job.state == JobState.HELD).values(state=state, sent_at=None)
    return list(session.execute(released.returning(Job.id).execution_options(synchronize_session=False)).scalars())


def pause(session: Session, queue: str, *, now: datetime) -> bool:
    """Start nothing from a queue until it is resumed; what runs goes on. Return False when it was paused before."""
    paused = insert_or(session, PausedQueue).values(queue=queue, paused_at=now).on_conflict_do_nothing()
    return session.execute(paused.returning(PausedQueue.queue)).scalar() is not None


def resume(session: Session, queue: str) -> bool:
    """Start jobs from a paused queue again. Return False when it was not paused."""
    if session.execute(delete(PausedQueue).where(PausedQueue.queue == queue)).rowcount == 0:  # type: ignore[attr-defined]
        return False
    # Workers have thrown away the messages that came meanwhile; without a stamp the relay sends them at once, not when it misses them.
    _change(session, Job.queue == queue, Job.state == JobState.QUEUED, Job.sent_at.is_not(None), sent_at=None)
    return True


def prune(session: Session, keep: Mapping[JobState, timedelta], *, now: datetime, limit: int = BATCH) -> int:
    """Delete up to `limit` jobs that ended longer ago than their state is kept, and return how many; call it until that is 0.

    Spared are children of a batch that is open, parents that still have children, and the last good run of each kind.
    """
    parent, child = aliased(Job), aliased(Job)
    old = [and_(Job.state == state, Job.finished_at < now - age) for state, age in keep.items() if state in ENDED]
    prunable = select(Job.id, Job.kind).where(
        or_(*old),
        Job.finished_at.is_not(None),
        Job.unique_key.is_(None),
        ~exists().where(child.parent_id == Job.id),
        ~exists().where(parent.id == Job.parent_id, parent.state.not_in(ENDED)),
    )
    rows = session.execute(prunable.limit(limit).with_for_update(skip_locked=True, of=Job)).all()
    spared = {_last_good(session, kind) for kind in {row.kind for row in rows}}
    ids = [row.id for row in rows if row.id not in spared]
    session.execute(delete(Job).where(Job.id.in_(ids)).execution_options(synchronize_session=False))
    return len(ids)


def _last_good(session: Session, kind: str) -> UUID | None:
    # By its start and not its end: that has an index with the kind.
    good = select(Job.id).where(Job.kind == kind, Job.state == JobState.SUCCEEDED, Job.started_at.is_not(None))
    return session.execute(good.order_by(Job.started_at.desc()).limit(1)).scalar()


def prune_all(unit_of_work: UnitOfWork, keep: Mapping[JobState, timedelta], *, now: datetime) -> int:
    """Prune in transactions of one batch until nothing is left to prune, and return how many."""
    pruned = 0
    while True:
        with unit_of_work() as session:
            number = prune(session, keep, now=now)
        pruned += number
        if number == 0:
            return pruned


def retention(*, succeeded: timedelta, failed: timedelta) -> dict[JobState, timedelta]:
    """Return how long each state is kept: what went wrong, or was stopped, longer than what went well."""
    return {state: succeeded if state == JobState.SUCCEEDED else failed for state in ENDED}


def _change(session: Session, *which: Any, **values: Any) -> int:
    changed = session.execute(update(Job).where(*which).values(values).execution_options(synchronize_session=False))
    return int(changed.rowcount)  # type: ignore[attr-defined]


def _batched(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    return (ids[at : at + BATCH] for at in range(0, len(ids), BATCH))
