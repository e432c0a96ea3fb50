"""Ours."""

from sqlalchemy import text

from project.bootstrap import bootstrap
from project.task import job
from services.database import Session
from services.jobs import JobArgs, Run, enqueue_many


class Noop(JobArgs, kind="bench.noop"):
    number: int


@job(Noop)
def noop(session: Session, args: Noop, run: Run) -> None:
    """Do nothing."""


def enqueue(number: int) -> None:
    boot = bootstrap()
    with boot.unit_of_work() as session:
        enqueue_many(session, [Noop(number=index) for index in range(number)], now=boot.now())


def remaining() -> int:
    with bootstrap().read_only() as session:
        return int(session.execute(text("select count(*) from job where finished_at is null")).scalar_one())


WORKER = [
    "-m",
    "celery",
    "-A",
    "project",
    "worker",
    "-I",
    "benchmarks.peers.nightshift_jobs",
    "--concurrency=2",
    "-n",
    "ours@bench",
]
