"""Ours: each job also of a kind whose jobs never run together (`bundle=1`)."""

import sys
import time

from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.jobs import JobArgs, Run, enqueue_many
from sqlalchemy import text

from project.app import COMPONENTS

INSERT = text("insert into bench (number) values (:number)")


class Noop(JobArgs, kind="bench.noop"):
    number: int


class NoopAlone(JobArgs, kind="bench.noop_alone", bundle=1):
    number: int


class Insert(JobArgs, kind="bench.insert"):
    number: int


class InsertAlone(JobArgs, kind="bench.insert_alone", bundle=1):
    number: int


class Slow(JobArgs, kind="bench.slow"):
    number: int


class SlowAlone(JobArgs, kind="bench.slow_alone", bundle=1):
    number: int


class Urgent(JobArgs, kind="bench.urgent", priority=0):
    number: int


@job(Noop)
def noop(session: Session, args: Noop, run: Run) -> None:
    """Do nothing."""


@job(NoopAlone)
def noop_alone(session: Session, args: NoopAlone, run: Run) -> None:
    """Do nothing."""


@job(Insert)
def insert(session: Session, args: Insert, run: Run) -> None:
    """Insert a row."""
    session.execute(INSERT, {"number": args.number})


@job(InsertAlone)
def insert_alone(session: Session, args: InsertAlone, run: Run) -> None:
    """Insert a row."""
    session.execute(INSERT, {"number": args.number})


@job(Slow)
def slow(session: Session, args: Slow, run: Run) -> None:
    """Take 200 ms."""
    time.sleep(0.2)


@job(SlowAlone)
def slow_alone(session: Session, args: SlowAlone, run: Run) -> None:
    """Take 200 ms."""
    time.sleep(0.2)


@job(Urgent)
def urgent(session: Session, args: Urgent, run: Run) -> None:
    """Do nothing."""


KINDS = (Noop, NoopAlone, Insert, InsertAlone, Slow, SlowAlone, Urgent)
bench = Component(name="bench", kinds=KINDS, tasks=(__name__,))
app = App(__name__, Composition([*COMPONENTS, bench]))


def enqueue(number: int, job: str = "noop") -> None:
    """Enqueue all in one transaction."""
    runtime = app.runtime
    kind = next(kind for kind in KINDS if kind.policy.kind == f"bench.{job}")
    with runtime.unit_of_work() as session:
        jobs = [kind(number=index) for index in range(number)]
        enqueue_many(session, jobs, now=runtime.now())


LEFT = "select count(*) from job where finished_at is null"
WORKER = [sys.executable, "-m", "celery", "-A", __name__, "worker", "--concurrency=2"]
