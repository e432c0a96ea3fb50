"""Enqueue jobs: write them into the ledger in the caller's transaction.

Any SQLAlchemy session on the ledger's database will do. The session carries (session.py) the ids of
the jobs that may be sent once its transaction has committed; a `Runtime` then sends them. Without a
`Runtime`, or after a crash in between, the relay finds the rows.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import case, func, insert, or_, select

from nightshift.database import Session, after, insert_many_or, insert_or, utc_now
from nightshift.errors import InvalidInput
from nightshift.jobs.args import PRIORITIES, JobArgs, require_declared
from nightshift.jobs.models import NOT_STARTED, Job, JobState
from nightshift.jobs.session import get_carried

# However often a debounced job is put off, it runs after this many times `debounce`.
LONGEST_DEBOUNCE = 10

# Also a partial index satisfies it. With this release everywhere, the next one can replace the
# constraint, which has an entry for each null, by one.
_BY_KEY: dict[str, Any] = {
    "index_elements": [Job.unique_key],
    "index_where": Job.unique_key.is_not(None),
}

# The first values of every job. Python's defaults are not enough: an INSERT of many rows needs the
# same columns in each.
STARTING = {
    "unique_until_started": False,
    "limited": False,
    "attempt": 0,
    "children": 0,
    "children_open": 0,
    "children_failed": 0,
}


def enqueue(
    session: Session,
    args: JobArgs,
    *,
    now: datetime,
    delay: timedelta | None = None,
    run_at: datetime | None = None,
    priority: int | None = None,
    debounce: timedelta | None = None,
    parent_id: UUID | None = None,
) -> UUID:
    """Write one job and return its id. The job exists if and only if the transaction commits.

    It runs as soon as possible; with `delay` not before that long by the database's clock, with
    `run_at` not before that instant. Where the kind is unique and the same job is open, nothing is
    written, and the id is that job's.

    With `debounce` the job waits that long. Where the same job already waits, it gets the new
    arguments and waits again, at most ten times the first `debounce` in all: many calls make one
    run. A job that is already due only gets the new arguments. Declare such a kind with
    `unique_until="started"`, or a call is lost while the job runs.

    Raises:
        ValueError: `run_at` has no time zone, or both `delay` and `run_at` are given.
        InvalidInput: no component declares the kind, so no worker would run it; or a database
            cannot store an argument, the time or the priority.

    """
    if delay is not None and run_at is not None:
        raise ValueError("give delay or run_at, not both")
    later = delay if delay is not None else debounce
    carried = get_carried(session)
    require_declared(type(args), carried.kinds)
    row = _build_row(
        args,
        now=now,
        run_at=run_at if later is None else _add(now, later),
        priority=priority,
        parent_id=parent_id,
        trace=carried.trace(),
    )
    # By the database's clock: it also decides when the job is due.
    times = {} if later is None else {"run_at": after(later)}
    if debounce is not None:
        _add(now, LONGEST_DEBOUNCE * debounce)
        times["push_until"] = after(LONGEST_DEBOUNCE * debounce)
    row |= times
    if row["unique_key"] is None:
        session.execute(insert(Job).values(row) if times else insert(Job), None if times else row)
        _collect(session, [row])
        return row["id"]  # type: ignore[no-any-return]
    return _enqueue_unique(session, row, debounce)


def _enqueue_unique(session: Session, row: dict[str, Any], debounce: timedelta | None) -> UUID:
    statement = insert_or(session, Job)
    if debounce is None:
        statement = statement.on_conflict_do_nothing(**_BY_KEY)
    else:
        new = statement.excluded
        # A job that was first enqueued without `debounce` has no bound yet.
        bound = func.coalesce(Job.push_until, new.push_until)
        is_due = or_(Job.state == JobState.QUEUED, Job.run_at <= utc_now())
        # Not DO NOTHING and then an UPDATE: a worker may claim the job between the two, and the new
        # arguments would be lost.
        statement = statement.on_conflict_do_update(
            **_BY_KEY,
            set_={
                "args": new.args,
                "push_until": bound,
                "run_at": case((is_due, Job.run_at), (new.run_at > bound, bound), else_=new.run_at),
            },
            where=Job.state.in_(NOT_STARTED),
        )
    while True:
        written: UUID | None = session.execute(statement.values(row).returning(Job.id)).scalar()
        if written is not None:
            if written == row["id"]:
                _collect(session, [row])
            return written
        existing = session.execute(
            select(Job.id).where(Job.unique_key == row["unique_key"])
        ).scalar()
        if existing is not None:
            return existing
        # The job that had the key ended between the two statements: try again.


def enqueue_many(
    session: Session,
    jobs: Sequence[JobArgs],
    *,
    now: datetime,
    run_at: datetime | None = None,
    priority: int | None = None,
    parent_id: UUID | None = None,
) -> list[UUID]:
    """Write many jobs in one statement and return the ids of those written, as `enqueue` does.

    A unique job that is already open is left out. The ids are in no promised order.

    Raises:
        ValueError: `run_at` has no time zone.
        InvalidInput: as `enqueue` does, for any of the jobs; then none is written.

    """
    carried = get_carried(session)
    for kind in {type(args) for args in jobs}:
        require_declared(kind, carried.kinds)
    trace = carried.trace()
    rows = [
        _build_row(
            args, now=now, run_at=run_at, priority=priority, parent_id=parent_id, trace=trace
        )
        for args in jobs
    ]
    if not rows:
        return []
    # In the same order for all callers: two of them with the same keys could deadlock.
    rows.sort(key=lambda row: row["unique_key"] or "")
    statement, parameters = insert_many_or(session, Job, rows)
    if all(row["unique_key"] is None for row in rows):
        session.connection().execute(statement, parameters)
    else:
        statement = statement.on_conflict_do_nothing(**_BY_KEY).returning(Job.id)
        written = set(session.connection().execute(statement, parameters).scalars())
        rows = [row for row in rows if row["id"] in written]
    _collect(session, rows)
    return [row["id"] for row in rows]


def _build_row(
    args: JobArgs,
    *,
    now: datetime,
    run_at: datetime | None,
    priority: int | None,
    parent_id: UUID | None,
    trace: dict[str, str] | None,
) -> dict[str, Any]:
    for name, instant in (("run_at", run_at), ("now", now)):
        if instant is not None and instant.tzinfo is None:
            raise ValueError(f"{name} has no time zone: {instant!r}")
    now = _add(now, timedelta())
    policy = args.policy
    if priority is not None and (type(priority) is not int or priority not in PRIORITIES):
        raise InvalidInput(f"priority {priority!r} is not one of 0 (first) to 9 (last)")
    return {
        **STARTING,
        **build_declared_columns(args),
        "limited": policy.limited,
        "id": uuid4(),
        "priority": policy.priority if priority is None else priority,
        # Only the database's clock decides whether `run_at` has come, so a job with a time of its
        # own is not queued here.
        "state": JobState.QUEUED if run_at is None else JobState.SCHEDULED,
        "unique_key": args.unique_key(now),
        "unique_until_started": policy.unique_until == "started",
        "created_at": now,
        "run_at": now if run_at is None else _add(run_at, timedelta()),
        "parent_id": parent_id,
        "trace": trace,
    }


def _add(instant: datetime, span: timedelta) -> datetime:
    """Return an instant and a span later in UTC. Raises InvalidInput beyond the years 1 to 9999."""
    try:
        return instant.astimezone(UTC) + span
    except OverflowError as error:
        raise InvalidInput(f"no database can store the time {instant} + {span}") from error


def build_declared_columns(args: JobArgs) -> dict[str, Any]:
    """Return the columns of a job that follow from its arguments and policy, as JSON values.

    Every release before this one must be able to insert them.
    """
    policy = args.policy
    return {
        "kind": policy.kind,
        "queue": policy.queue,
        "priority": policy.priority,
        "args": args.to_row(),
        "max_attempts": policy.max_attempts,
        "time_limit": policy.time_limit.total_seconds(),
    }


def enqueue_declared(
    session: Session, columns: dict[str, Any], *, now: datetime, parent_id: UUID
) -> None:
    """Write a job from the columns that `build_declared_columns` returned.

    It runs as soon as possible, also when the same job is open. Where this process does not know
    the kind, it leaves the job to a relay, which finds out whether the kind is limited.
    """
    kind = (get_carried(session).kinds or {}).get(columns["kind"])
    row = {
        **STARTING,
        "limited": kind is not None and kind.policy.limited,
        **columns,
        "id": uuid4(),
        "state": JobState.QUEUED,
        "created_at": now,
        "run_at": now,
        "parent_id": parent_id,
    }
    session.execute(insert(Job), row)
    if kind is not None:
        _collect(session, [row])


def _collect(session: Session, rows: Iterable[dict[str, Any]]) -> None:
    get_carried(session).enqueued.extend(
        row["id"] for row in rows if row["state"] == JobState.QUEUED
    )
