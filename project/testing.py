"""What a test of one's own jobs needs. Enable it with `pytest_plugins = ["project.testing"]` in tests/conftest.py; see docs/testing.md.

PYTEST_DONT_REWRITE: a conftest may import from here before the plugin is registered.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import signals
from celery.contrib.testing.worker import start_worker
from pydantic_core import to_jsonable_python
from sqlalchemy import select

from project import steps
from project.bootstrap import Bootstrap, bootstrap
from project.celery import app
from project.celeryconfig import configuration
from project.publisher import publisher
from project.settings import Settings
from project.task import run_here
from services.database import Base, Session, utc_now
from services.jobs import relay
from services.jobs.args import JobArgs
from services.jobs.models import ENDED, Job, JobState, PausedQueue

WAITING_TO_RUN = (JobState.SCHEDULED, JobState.QUEUED, JobState.HELD)

# A body that snoozes or enqueues itself without a delay is due for ever.
MOST_RUNS = 10_000


def assert_enqueued(session: Session, kind: type[JobArgs], /, *, count: int = 1, **fields: Any) -> None:
    """Assert that just `count` jobs of a kind wait to run whose arguments have these fields; other fields may hold anything.

    Raises AssertionError that lists what is enqueued, and TypeError for a field that the kind does not have.
    """
    unknown = set(fields) - set(kind.model_fields)
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    wanted = to_jsonable_python(fields)
    waiting = session.execute(select(Job).where(Job.state.in_(WAITING_TO_RUN)).order_by(Job.run_at)).scalars().all()
    found = [row for row in waiting if row.kind == kind.policy.kind and wanted.items() <= row.args.items()]
    if len(found) != count:
        there = "".join(f"\n  {_call(row.kind, row.args)}, {row.state}, due {row.run_at:%Y-%m-%d %H:%M:%S} UTC" for row in waiting)
        expected = f"expected {count} of {_call(kind.policy.kind, wanted)}, found {len(found)}"
        raise AssertionError(f"{expected}; enqueued are:{there or ' none'}")


def _call(kind: str, args: dict[str, Any]) -> str:
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in args.items())})"


def run_due(boot: Bootstrap, *, at_most: int = MOST_RUNS) -> list[Job]:
    """Run every job that is due, and what it makes due, in this process, and return their rows as they are then, by first run.

    What a body raises is in its row's `errors`. A retry is due only after its backoff, so it is not run here.

    Raises LookupError for a kind that no task runs, and RuntimeError when there is no end to it after `at_most` runs.
    """
    app.loader.import_default_modules()
    ran: dict[UUID, None] = {}
    for _ in range(at_most):
        due = _next_due(boot)
        if due is None:
            with boot.read_only() as session:
                rows = {row.id: row for row in session.execute(select(Job).where(Job.id.in_(ran))).scalars()}
                session.expunge_all()
            return [rows[job_id] for job_id in ran]
        job_id, kind = due
        if kind not in app.tasks:
            raise LookupError(f"no task runs {kind!r}: is there a function under @job, in a module of `imports`?")
        run_here(job_id, kind, boot)
        ran[job_id] = None
    raise RuntimeError(f"{at_most} runs, and jobs are still due; the last was {kind}")


def _next_due(boot: Bootstrap) -> tuple[UUID, str] | None:
    runnable = (Job.state == JobState.QUEUED, Job.run_at <= utc_now(), Job.queue.not_in(select(PausedQueue.queue)))
    with boot.unit_of_work() as session:
        relay.promote(session)
        row = session.execute(select(Job.id, Job.kind).where(*runnable).order_by(Job.priority, Job.run_at).limit(1)).one_or_none()
    return None if row is None else (row.id, row.kind)


@dataclass(frozen=True, slots=True)
class JobWorker:
    """A worker that runs in this process, on a database and a broker of the test's own."""

    boot: Bootstrap

    def ended(self, job_id: UUID, *, seconds: float = 10) -> Job:
        """Wait for the end of a job and return its row. Raises TimeoutError that says how far it came."""
        give_up = time.monotonic() + seconds
        while True:
            with self.boot.read_only() as session:
                row = session.execute(select(Job).where(Job.id == job_id)).scalar_one()
            if row.state in ENDED:
                return row
            if time.monotonic() > give_up:
                raise TimeoutError(
                    f"{row.kind} is still {row.state} after {seconds:g} s, attempt {row.attempt}; {row.errors or ''}"
                )
            time.sleep(0.02)


@pytest.fixture
def job_boot(tmp_path: Path) -> Iterator[Bootstrap]:
    """Give the collaborators of an installation in the test's folder: an empty SQLite database, and folders."""
    environment = {
        "ENVIRONMENT": "development",
        "DATABASE_URL": f"sqlite:///{tmp_path}/nightshift.db",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
        "FEED_STORE": f"{tmp_path}/feeds",
        "MAIL_URL": f"folder://{tmp_path}/mail",
        "RELAY_INTERVAL": "PT0.2S",
    }
    with _environment(environment), _configured(configuration(Settings())):
        boot = bootstrap()
        # The tasks bring every model whose table is needed.
        app.loader.import_default_modules()
        Base.metadata.create_all(boot.engine.execution_options(sqlite_begin="IMMEDIATE"))
        yield boot
        boot.disconnect()


@pytest.fixture
def job_worker(job_boot: Bootstrap) -> Iterator[JobWorker]:
    """Give a real worker in this process, with its keeper beside it. Bodies run in its thread, so a test may hold a breakpoint in one."""
    with _own_logging(), _no_child():
        with start_worker(app, pool="solo", perform_ping_check=False, loglevel=logging.INFO) as worker:
            yield JobWorker(job_boot)
        # It goes by itself once the worker has; a test run leaves no process behind.
        for process in [step.process for step in worker.steps if isinstance(step, steps.Keeper)]:
            if process is not None:
                process.wait(10)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _configured(values: dict[str, Any]) -> Iterator[None]:
    """Give the app and this process's collaborators another configuration for a while."""
    values = {"broker_transport": None, **values}
    before = {name: app.conf.get(name) for name in values}
    try:
        _reconfigure(values)
        yield
    finally:
        _reconfigure(before)


def _reconfigure(values: dict[str, Any]) -> None:
    app.conf.update(values)
    # What the app made of the configuration before: its connections, producers and queues.
    app._pool = None  # noqa: SLF001 - `close()` would also take the app off Celery's list
    app.amqp = type(app.amqp)(app)
    for cached in (bootstrap, publisher):
        cached.cache_clear()


@contextmanager
def _own_logging() -> Iterator[None]:
    """Give the root logger back as it was: a worker takes it over."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _no_child() -> Iterator[None]:
    """Keep the solo pool from preparing this process as if it were a child of the worker: the test run would die with its shell."""
    signals.worker_process_init.disconnect(steps._child_started)  # noqa: SLF001
    try:
        yield
    finally:
        signals.worker_process_init.connect(steps._child_started, weak=False)  # noqa: SLF001
