"""Putting a job into the ledger, in the caller's transaction.

`session.info["enqueued"]` collects the ids that may be sent once that transaction has committed; who owns the transaction does it
(project/bootstrap.py). A crash in between loses nothing: the relay finds the rows.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import JSON, bindparam, case, column, func, insert, select

from services.database import Session, insert_or
from services.jobs.args import JobArgs
from services.jobs.models import TABLE, Job, JobState

ENQUEUED = "enqueued"

# A debounced job that is pushed back again and again still runs after this many debounces.
LONGEST_DEBOUNCE = 10

# What every job begins with. Said here, because an INSERT of many rows wants the same columns in all.
STARTING = {"unique_until_started": False, "attempt": 0, "children": 0, "children_open": 0, "children_failed": 0}


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
    """Write one job and return its id; it exists if and only if the caller's transaction commits.

    It runs as soon as possible, or after `delay`, or at `run_at`, never earlier. When the kind is unique and such a job is already
    there, nothing is written and that one's id is returned. With `debounce` the job waits that long, and one that already waits is
    given the new arguments and waits again (ten times at most), so that many calls make one run; declare such a kind
    `unique_until="started"`, or a call that meets a running job is lost.

    Raises ValueError for a `run_at` without a time zone, or for both `delay` and `run_at`.
    """
    if delay is not None and run_at is not None:
        raise ValueError("give delay or run_at, not both")
    later = delay if delay is not None else debounce
    due_at = run_at if later is None else now + later
    row = _row(args, now=now, run_at=due_at, priority=priority, parent_id=parent_id, trace=_trace(session))
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
        # DO NOTHING would lose the update when it meets a job that is just being picked up.
        statement = statement.on_conflict_do_update(
            index_elements=[Job.unique_key],
            set_={
                "args": new.args,
                "run_at": case((new.run_at > Job.push_until, Job.push_until), else_=new.run_at),
                "state": case((Job.state == JobState.HELD, Job.state), else_=new.state),
                "sent_at": None,
            },
            where=Job.state.in_([JobState.SCHEDULED, JobState.QUEUED, JobState.HELD]),
        )
    while True:
        written: UUID | None = session.execute(statement.values(row).returning(Job.id)).scalar()
        if written is not None:
            if written == row["id"]:
                _collect(session, [row])
            return written
        existing = session.execute(select(Job.id).where(Job.unique_key == row["unique_key"])).scalar()
        if existing is not None:
            return existing
        # The one that was in the way ended between the two statements: try again.


def enqueue_many(
    session: Session,
    jobs: Sequence[JobArgs],
    *,
    now: datetime,
    run_at: datetime | None = None,
    priority: int | None = None,
    parent_id: UUID | None = None,
) -> list[UUID]:
    """Write many jobs at once and return the ids of those written; a unique one that is already there is left out.

    Raises ValueError for a `run_at` without a time zone.
    """
    trace = _trace(session)
    rows = [_row(args, now=now, run_at=run_at, priority=priority, parent_id=parent_id, trace=trace) for args in jobs]
    if not rows:
        return []
    # In one order, or two callers with the same keys could wait for each other.
    rows.sort(key=lambda row: row["unique_key"] or "")
    statement, parameters = _insert_of(session, rows)
    if all(row["unique_key"] is None for row in rows):
        session.connection().execute(statement, parameters)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=[Job.unique_key]).returning(Job.id)
        written = set(session.connection().execute(statement, parameters).scalars())
        rows = [row for row in rows if row["id"] in written]
    _collect(session, rows)
    return [row["id"] for row in rows]


def _insert_of(session: Session, rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Return an INSERT of many rows, and what to execute it with. Past the ORM, which would look at each."""
    statement = insert_or(session, Job)
    if session.get_bind().dialect.name != "postgresql":
        return statement, rows
    # All of them as one document: row by row the server would take four times as long.
    names = list(rows[0])
    documents = func.json_to_recordset(bindparam("rows", type_=JSON)).table_valued(
        *(column(name, TABLE.c[name].type) for name in names)
    )
    values = [{name: str(value) if isinstance(value, UUID | datetime) else value for name, value in row.items()} for row in rows]
    return statement.from_select(names, select(*documents.render_derived(with_types=True).c)), {"rows": values}


def _trace(session: Session) -> dict[str, str] | None:
    """Return the trace that the session's owner says it is in."""
    return session.info["trace"]() if "trace" in session.info else None


def _row(
    args: JobArgs,
    *,
    now: datetime,
    run_at: datetime | None,
    priority: int | None,
    parent_id: UUID | None,
    trace: dict[str, str] | None,
) -> dict[str, Any]:
    if run_at is not None and run_at.tzinfo is None:
        raise ValueError(f"a run_at without a time zone is no instant: {run_at!r}")
    policy = args.policy
    return {
        **STARTING,
        **declared(args),
        "id": uuid4(),
        "priority": policy.priority if priority is None else priority,
        # Whether a time has come is the database's clock to say: only what has no time of its own is queued here.
        "state": JobState.QUEUED if run_at is None else JobState.SCHEDULED,
        "unique_key": args.unique_key(now),
        "unique_until_started": policy.unique_until == "started",
        "created_at": now,
        # In UTC, so that what no database could give back is refused here.
        "run_at": now if run_at is None else run_at.astimezone(UTC),
        "parent_id": parent_id,
        "trace": trace,
    }


def declared(args: JobArgs) -> dict[str, Any]:
    """Return the columns of a job that its arguments and their policy decide, as JSON values."""
    policy = args.policy
    return {
        "kind": policy.kind,
        "queue": policy.queue,
        "priority": policy.priority,
        "args": args.to_row(),
        "max_attempts": policy.max_attempts,
        "time_limit": policy.time_limit.total_seconds(),
    }


def enqueue_declared(session: Session, columns: dict[str, Any], *, now: datetime, parent_id: UUID) -> None:
    """Write a job from what `declared` returned once; it runs as soon as possible, also when an equal one is there."""
    row = {**STARTING, **columns, "id": uuid4(), "state": JobState.QUEUED, "created_at": now, "run_at": now, "parent_id": parent_id}
    session.execute(insert(Job), row)
    _collect(session, [row])


def _collect(session: Session, rows: Iterable[dict[str, Any]]) -> None:
    due: list[UUID] = session.info.setdefault(ENQUEUED, [])
    due.extend(row["id"] for row in rows if row["state"] == JobState.QUEUED)
