"""Ours, with a row that each job inserts in its transaction."""

from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.jobs import JobArgs, Run, enqueue_many
from sqlalchemy import text

from project.app import COMPONENTS


class Insert(JobArgs, kind="bench.insert"):
    number: int


INSERT = text("insert into bench (number) values (:number)")


@job(Insert)
def insert(session: Session, args: Insert, run: Run) -> None:
    """Insert a row."""
    session.execute(INSERT, {"number": args.number})


bench = Component(name="bench", kinds=(Insert,), tasks=(__name__,))
app = App(__name__, Composition([*COMPONENTS, bench]))


def enqueue(number: int) -> None:
    runtime = app.runtime
    with runtime.unit_of_work() as session:
        enqueue_many(session, [Insert(number=index) for index in range(number)], now=runtime.now())


def remaining() -> int:
    query = text("select count(*) from job where finished_at is null")
    with app.runtime.read_only() as session:
        return int(session.execute(query).scalar_one())


WORKER = ["-m", "celery", "-A", __name__, "worker", "--concurrency=2", "-n", "ours@bench"]
