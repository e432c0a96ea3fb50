"""Enqueue jobs: write them into the ledger in the caller's transaction.

Any SQLAlchemy session on the ledger's database will do. The session carries (session.py) the ids of
the jobs that may be sent once its transaction has committed; a `Runtime` then sends them. Without a
`Runtime`, or after a crash in between, the relay finds the rows.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import JSON, bindparam, case, column, func, insert, select

from nightshift.database import Session, insert_or
from nightshift.jobs.args import JobArgs, require_declared
from nightshift.jobs.models import NOT_STARTED, TABLE, Job, JobState
from nightshift.jobs.session import get_carried

# However often a debounced job is put off, it runs after this many times `debounce`.
LONGEST_DEBOUNCE = 10

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

    It runs as soon as possible; with `delay` not before that long, with `run_at` not before that
    instant. Where the kind is unique and the same job is open, nothing is written, and the id is
    that job's.

    With `debounce` the job waits that long. Where the same job already waits, it gets the new
    arguments and waits again, at most ten times `debounce` in all: many calls make one run. Declare
    such a kind with `unique_until="started"`, or a call is lost while the job runs.

    Raises:
        ValueError: `run_at` has no time zone, or both `delay` and `run_at` are given.
        InvalidInput: no component declares the kind, so no worker would run it.

    """
    if delay is not None and run_at is not None:
        raise ValueError("give delay or run_at, not both")
    later = delay if delay is not None else debounce
    due_at = run_at if later is None else now + later
    carried = get_carried(session)
    require_declared(type(args), carried.kinds)
    row = _build_row(
        args,
        now=now,
        run_at=due_at,
        priority=priority,
        parent_id=parent_id,
        trace=carried.trace(),
    )
    if debounce is not None:
        row["push_until"] = now + LONGEST_DEBOUNCE * debounce
    if row["unique_key"] is None:
        session.execute(insert(Job), row)
        _collect(session, [row])
        return row["id"]  # type: ignore[no-any-return]
    return _enqueue_unique(session, row, debounce)


def _enqueue_unique(session: Session, row: dict[str, Any], debounce: timedelta | None) -> UUID:
    statement = insert_or(session, Job)
    if debounce is None:
        statement = statement.on_conflict_do_nothing(index_elements=[Job.unique_key])
    else:
        new = statement.excluded
        # Not DO NOTHING and then an UPDATE: a worker may claim the job between the two, and the new
        # arguments would be lost.
        statement = statement.on_conflict_do_update(
            index_elements=[Job.unique_key],
            set_={
                "args": new.args,
                "run_at": case((new.run_at > Job.push_until, Job.push_until), else_=new.run_at),
                "state": case((Job.state == JobState.HELD, Job.state), else_=new.state),
                "sent_at": None,
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
        InvalidInput: no component declares a kind.

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
    statement, parameters = _build_insert(session, rows)
    if all(row["unique_key"] is None for row in rows):
        session.connection().execute(statement, parameters)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=[Job.unique_key]).returning(
            Job.id
        )
        written = set(session.connection().execute(statement, parameters).scalars())
        rows = [row for row in rows if row["id"] in written]
    _collect(session, rows)
    return [row["id"] for row in rows]


def _build_insert(session: Session, rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Return an INSERT of many rows, and its parameters."""
    # Without the ORM, which would handle each row by itself.
    statement = insert_or(session, Job)
    if session.get_bind().dialect.name != "postgresql":
        return statement, rows
    # All rows as one JSON document: row by row the server takes four times as long.
    names = list(rows[0])
    documents = func.json_to_recordset(bindparam("rows", type_=JSON)).table_valued(
        *(column(name, TABLE.c[name].type) for name in names)
    )
    values = [
        {
            name: str(value) if isinstance(value, UUID | datetime) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    return statement.from_select(names, select(*documents.render_derived(with_types=True).c)), {
        "rows": values
    }


def _build_row(
    args: JobArgs,
    *,
    now: datetime,
    run_at: datetime | None,
    priority: int | None,
    parent_id: UUID | None,
    trace: dict[str, str] | None,
) -> dict[str, Any]:
    if run_at is not None and run_at.tzinfo is None:
        raise ValueError(f"run_at has no time zone: {run_at!r}")
    policy = args.policy
    return {
        **STARTING,
        **build_declared_columns(args),
        "id": uuid4(),
        "priority": policy.priority if priority is None else priority,
        # Only the database's clock decides whether `run_at` has come, so a job with a time of its
        # own is not queued here.
        "state": JobState.QUEUED if run_at is None else JobState.SCHEDULED,
        "unique_key": args.unique_key(now),
        "unique_until_started": policy.unique_until == "started",
        "created_at": now,
        # In UTC: a time that no database can store raises here.
        "run_at": now if run_at is None else run_at.astimezone(UTC),
        "parent_id": parent_id,
        "trace": trace,
    }


def build_declared_columns(args: JobArgs) -> dict[str, Any]:
    """Return the columns of a job that follow from its arguments and policy, as JSON values."""
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

    It runs as soon as possible, also when the same job is open.
    """
    row = {
        **STARTING,
        **columns,
        "id": uuid4(),
        "state": JobState.QUEUED,
        "created_at": now,
        "run_at": now,
        "parent_id": parent_id,
    }
    session.execute(insert(Job), row)
    _collect(session, [row])


def _collect(session: Session, rows: Iterable[dict[str, Any]]) -> None:
    get_carried(session).enqueued.extend(
        row["id"] for row in rows if row["state"] == JobState.QUEUED
    )
