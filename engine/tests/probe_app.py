"""An app with jobs that the tests give to real workers: `celery -A probe_app worker`.

A job's effect is a row under the job's id, written in the job's own transaction.
"""

import os
import signal
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.database import Base, Session
from nightshift.errors import PermanentError, TransientError
from nightshift.jobs import Backoff, Cancel, Discard, JobArgs, Outcome, Rate, Run, Snooze
from nightshift.ledger import ledger
from sqlalchemy import text
from sqlalchemy.orm import Mapped, mapped_column

SOON = Backoff(first=timedelta(seconds=0.2), cap=timedelta(seconds=1))


class Leave(JobArgs, kind="probe.leave", backoff=SOON, max_attempts=30):
    """Leave a row, after some milliseconds of work."""

    number: int = 0
    milliseconds: int = 0


class Fail(JobArgs, kind="probe.fail", backoff=SOON, max_attempts=3):
    permanent: bool = False
    until_attempt: int = 99


class Answer(JobArgs, kind="probe.answer", backoff=SOON):
    what: str


class Die(JobArgs, kind="probe.die", backoff=SOON, max_attempts=3):
    """Kill the process that runs it, for the first so many attempts."""

    attempts: int = 99


class Sleep(JobArgs, kind="probe.sleep", time_limit=timedelta(seconds=120), max_attempts=5):
    seconds: float
    marker: str = ""


class Stubborn(JobArgs, kind="probe.stubborn", time_limit=timedelta(seconds=100)):
    """Catch everything, also what ends the process, and go on."""

    marker: str


class Long(JobArgs, kind="probe.long", time_limit=timedelta(seconds=180)):
    seconds: float
    marker: str


class TooLong(
    JobArgs, kind="probe.too_long", time_limit=timedelta(seconds=2), max_attempts=2, backoff=SOON
):
    seconds: float = 60


class Parent(JobArgs, kind="probe.parent"):
    children: int
    failing: int = 0
    milliseconds: int = 0


class Counted(JobArgs, kind="probe.counted"):
    parent: UUID


class Limited(JobArgs, kind="probe.limited", concurrency=1):
    number: int


class Rated(JobArgs, kind="probe.rated", rate=Rate(3, timedelta(seconds=5))):
    number: int


class Steps(JobArgs, kind="probe.steps"):
    """Say how far it is, until it is cancelled or done; with a marker, as long as that is there."""

    seconds: float = 5
    marker: str = ""


class Effect(Base):
    """What a job has left."""

    __tablename__ = "effect"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str]
    attempt: Mapped[int]
    at: Mapped[float]


def leave(session: Session, run: Run) -> None:
    session.execute(
        text("insert into effect (job_id, attempt, at) values (:job, :attempt, :at)"),
        {"job": run.id.hex, "attempt": run.attempt, "at": time.time()},
    )


@job(Leave)
def leave_a_row(session: Session, args: Leave, run: Run) -> Outcome:
    if args.milliseconds:
        time.sleep(args.milliseconds / 1000)
    leave(session, run)
    return args.number


@job(Fail)
def fail(session: Session, args: Fail, run: Run) -> None:
    leave(session, run)
    if run.attempt >= args.until_attempt:
        return
    raise (PermanentError if args.permanent else TransientError)("as asked")


@job(Answer)
def answer(session: Session, args: Answer, run: Run) -> Outcome:
    leave(session, run)
    later = Snooze(timedelta(seconds=0.3))
    earlier = session.execute(
        text("select count(*) from effect where job_id = :job"), {"job": run.id.hex}
    ).scalar_one()
    return {
        "snooze": later if earlier < 3 else "awake",
        "discard": Discard("no use"),
        "cancel": Cancel("not wanted"),
    }[args.what]


@job(Die)
def die(session: Session, args: Die, run: Run) -> None:
    if run.attempt <= args.attempts:
        os.kill(os.getpid(), signal.SIGKILL)
    leave(session, run)


@job(Sleep, own_transactions=True)
def sleep(args: Sleep, run: Run) -> None:
    if args.marker:
        Path(args.marker).write_text(str(os.getpid()))
    time.sleep(args.seconds)
    with run.unit_of_work() as session:
        leave(session, run)
        run.finish(session)


@job(Stubborn, own_transactions=True)
def stay(args: Stubborn, run: Run) -> None:
    Path(args.marker).write_text(str(os.getpid()))
    with suppress(BaseException):
        time.sleep(60)


@job(Long, own_transactions=True)
def sleep_long(args: Long, run: Run) -> None:
    Path(args.marker).write_text(str(os.getpid()))
    time.sleep(args.seconds)
    with run.unit_of_work() as session:
        leave(session, run)
        run.finish(session)


@job(TooLong, own_transactions=True)
def too_long(args: TooLong, run: Run) -> None:
    time.sleep(args.seconds)


@job(Parent)
def parent(session: Session, args: Parent, run: Run) -> None:
    failing = [Fail(permanent=True) for _ in range(args.failing)]
    numbers = range(args.children - args.failing)
    leaving = [Leave(number=n, milliseconds=args.milliseconds) for n in numbers]
    run.spawn(session, [*leaving, *failing], then=Counted(parent=run.id))


@job(Counted)
def counted(session: Session, args: Counted, run: Run) -> None:
    leave(session, run)


@job(Limited)
def limited(session: Session, args: Limited, run: Run) -> None:
    time.sleep(0.2)
    leave(session, run)


@job(Rated)
def rated(session: Session, args: Rated, run: Run) -> None:
    leave(session, run)


@job(Steps, own_transactions=True)
def steps(args: Steps, run: Run) -> None:
    end = time.monotonic() + args.seconds
    done = 0
    while time.monotonic() < end and (not args.marker or Path(args.marker).exists()):
        done += 1
        run.progress(done, 1000)
        run.log(f"step {done}")
        time.sleep(0.1)


class Refresh(JobArgs, kind="probe.refresh", unique_by=(), unique_until="started"):
    number: int


@job(Refresh)
def refresh(session: Session, args: Refresh, run: Run) -> Outcome:
    leave(session, run)
    return args.number


class Mixed(JobArgs, kind="probe.mixed", max_attempts=3, backoff=SOON):
    """Leave a row, and do what may harm the jobs that run together with it."""

    seconds: float = 0
    dies: bool = False
    locks: int | None = None


class Brief(
    JobArgs, kind="probe.brief", time_limit=timedelta(seconds=2), max_attempts=3, backoff=SOON
):
    """Leave a row, perhaps too late."""

    seconds: float = 0


@job(Brief)
def brief(session: Session, args: Brief, run: Run) -> None:
    time.sleep(args.seconds)
    leave(session, run)


@job(Mixed)
def mixed(session: Session, args: Mixed, run: Run) -> None:
    if args.locks is not None:
        lock = "update effect set attempt = attempt where id = :id"
        session.execute(text(lock), {"id": args.locks})
    time.sleep(args.seconds)
    leave(session, run)
    if args.dies:
        os.kill(os.getpid(), signal.SIGKILL)


KINDS = (
    Leave, Fail, Answer, Die, Sleep, Stubborn, Long, TooLong, Parent, Counted, Limited, Rated,
    Steps, Refresh, Mixed, Brief,
)  # fmt: skip

probe = Component(name="probe", models=("probe_app",), kinds=KINDS, tasks=("probe_app",))

app = App("probe_app", Composition([ledger, probe]))


@app.task(name="probe.plain")
def plain(path: str) -> None:
    """A task that is no job."""
    Path(path).write_text("ran")
