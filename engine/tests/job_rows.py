"""Kinds of job for the ledger's tests, and short ways to write, take, end and read their rows."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.jobs import JobArgs, Rate, Run, claims, enqueue, relay, rescue
from nightshift.jobs.models import Job, JobState
from sqlalchemy import Connection, func, select, update

# Earlier than every machine's clock: what is enqueued at NOW is due.
NOW = datetime(2020, 1, 6, 12, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=100)
FAR_AHEAD = datetime(2120, 1, 1, tzinfo=UTC)

# For tests of two transactions that are open at once, which SQLite does not allow.
only_on_postgres = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
only_on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Plain(JobArgs, kind="test.plain"):
    number: int = 0


class Side(JobArgs, kind="test.side", queue="side"):
    """A job on another queue."""

    number: int = 0


class Only(JobArgs, kind="test.only", unique_by=("number",)):
    number: int = 0
    text: str = ""


class Refresh(JobArgs, kind="test.refresh", unique_by=(), unique_until="started"):
    number: int = 0


class Limited(JobArgs, kind="test.limited", concurrency=2):
    number: int = 0


class Rated(JobArgs, kind="test.rated", rate=Rate(3, timedelta(hours=1))):
    number: int = 0


class Parent(JobArgs, kind="test.parent"):
    pass


class Then(JobArgs, kind="test.then"):
    pass


class Once(JobArgs, kind="test.once", max_attempts=1):
    pass


class Tick(JobArgs, kind="test.tick"):
    """Recur."""


COMPONENT = Component(
    name="test", kinds=(Plain, Side, Only, Refresh, Limited, Rated, Parent, Then, Once, Tick)
)
COMPOSITION = Composition([COMPONENT])
KINDS = COMPOSITION.kinds
QUEUES = COMPOSITION.queues


class NoCollaborators:
    """A runtime for bodies that use none of it."""

    def unit_of_work(self) -> AbstractContextManager[Session]:
        raise NotImplementedError

    def read_only(self) -> AbstractContextManager[Session]:
        raise NotImplementedError

    def read_newest(self) -> AbstractContextManager[Session]:
        raise NotImplementedError

    def __getitem__(self, wanted: type[Any]) -> Any:
        raise LookupError(wanted)


def put(session: Session, args: JobArgs | None = None, **options: Any) -> UUID:
    """Enqueue a job and return its id."""
    return enqueue(session, args or Plain(), now=NOW, **options)


def row(session: Session, job_id: UUID) -> Job:
    """Return a job as the database has it now."""
    found = select(Job).where(Job.id == job_id).execution_options(populate_existing=True)
    return session.execute(found).scalar_one()


def columns(session: Session, job_id: UUID) -> dict[str, Any]:
    """Return all columns of a job as the database has them now, to compare."""
    found = session.execute(select(Job.__table__).where(Job.id == job_id)).one()
    return dict(found._mapping)


def state(session: Session, job_id: UUID) -> JobState:
    return row(session, job_id).state


def count(session: Session, *which: Any) -> int:
    """Return how many jobs there are that fulfil the conditions."""
    return session.execute(select(func.count()).select_from(Job).where(*which)).scalar_one()


def change(session: Session, job_id: UUID, **values: Any) -> None:
    """Write columns of a job past the ledger."""
    session.execute(update(Job).where(Job.id == job_id).values(values))


def claim_by_row(
    connection: Connection, job_id: UUID, *, worker_id: UUID, pid: int
) -> claims.Claim | None:
    """Claim a job under its own kind; None where that is not possible."""
    kind = connection.execute(select(Job.kind).where(Job.id == job_id)).scalar()
    held = claims.claim(
        connection,
        [job_id],
        claim_id=uuid4(),
        kind=kind or "",
        worker_id=worker_id,
        pid=pid,
        unlimited=True,
    )
    return held[0] if held else None


def try_claim(
    session: Session, job_id: UUID, *, worker_id: UUID | None = None, pid: int = 1
) -> claims.Claim | None:
    """Claim a job, as a worker that receives its message does; None where it may not."""
    return claim_by_row(session.connection(), job_id, worker_id=worker_id or uuid4(), pid=pid)


def beat(
    session: Session,
    worker_id: UUID | None = None,
    *,
    name: str = "w1@test",
    queues: str = "default",
    pid: int = 1,
    silent_after: timedelta = timedelta(seconds=30),
) -> UUID:
    """Write a worker's sign of life, and return the worker's id."""
    judge = rescue.Judge(worker_id or uuid4(), silent_after)
    rescue.record_heartbeat(session, judge, name=name, queues=queues, pid=pid)
    return judge.worker_id


def take(session: Session, job_id: UUID, **worker: Any) -> claims.Claim:
    """Make a job due, claim it and return the claim."""
    change(session, job_id, run_at=LONG_AGO)
    relay.queue_due(session)
    taken = try_claim(session, job_id, **worker)
    assert taken is not None
    return taken


def run(session: Session, job_id: UUID) -> Run:
    """Make a job due, claim it and return its run, which has no runtime."""
    return Run(take(session, job_id), NoCollaborators())


def finish(session: Session, job_id: UUID, ends: JobState = JobState.SUCCEEDED) -> None:
    """Claim a job and end it."""
    claims.mark_ended(session, take(session, job_id), ends, claims.Notes())


def batch(
    session: Session, children: int = 3, *, then: bool = True, parent_id: UUID | None = None
) -> tuple[UUID, list[UUID]]:
    """Write a waiting parent, and return its id with its children's."""
    job_id = put(session, Parent(), parent_id=parent_id)
    spawn(session, job_id, [Plain(number=n) for n in range(children)], Then() if then else None)
    return job_id, children_of(session, job_id)


def spawn(
    session: Session, job_id: UUID, children: Sequence[JobArgs], then: JobArgs | None = None
) -> None:
    """Run a job that spawns children and finishes."""
    parent = run(session, job_id)
    parent.spawn(session, children, then=then)
    parent.finish(session)


def children_of(session: Session, parent_id: UUID) -> list[UUID]:
    """Return the ids of a job's children in order."""
    found = select(Job.id).where(Job.parent_id == parent_id).order_by(Job.id)
    return list(session.execute(found).scalars())


def of_kind(session: Session, kind: type[JobArgs]) -> list[UUID]:
    """Return the ids of the jobs of a kind in order."""
    found = select(Job.id).where(Job.kind == kind.policy.kind).order_by(Job.id)
    return list(session.execute(found).scalars())


def numbers(session: Session, job_id: UUID) -> tuple[JobState, int, int]:
    """Return a parent's state, and how many of its children are open and how many have failed."""
    parent = row(session, job_id)
    return parent.state, parent.children_open, parent.children_failed
