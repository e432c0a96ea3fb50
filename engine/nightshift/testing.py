"""A pytest plugin for the tests of a project's jobs; docs/testing.md shows it.

Enable it with `-p nightshift.testing` in pytest's `addopts`. A project whose package is not called
`project` overrides the fixture `project_app`. A project whose settings name folders or servers
overrides `job_environment`.

PYTEST_DONT_REWRITE: a conftest may import from here before the plugin is registered.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery.app.utils import find_app
from celery.contrib.testing.worker import start_worker
from pydantic_core import to_jsonable_python
from sqlalchemy import select

from nightshift.celery.app import App
from nightshift.celery.task import run_here
from nightshift.database import Base, Session
from nightshift.jobs import relay
from nightshift.jobs.args import JobArgs
from nightshift.jobs.models import ENDED, NOT_STARTED, Job

# A body that snoozes, or enqueues itself, without a delay is due again at once, for ever.
MOST_RUNS = 10_000


def assert_enqueued(
    session: Session, kind: type[JobArgs], /, *, count: int = 1, **fields: Any
) -> None:
    """Assert that exactly `count` jobs of a kind with these arguments wait to run.

    Arguments that are not given may have any value. Raises AssertionError, which lists what is
    enqueued, and TypeError for a field that the kind does not have.
    """
    unknown = set(fields) - set(kind.model_fields)
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    wanted = to_jsonable_python(fields)
    not_started = select(Job).where(Job.state.in_(NOT_STARTED)).order_by(Job.run_at)
    waiting = session.scalars(not_started).all()
    found = [
        row
        for row in waiting
        if row.kind == kind.policy.kind and wanted.items() <= row.args.items()
    ]
    if len(found) != count:
        there = "".join(
            f"\n  {_call(row.kind, row.args)}, {row.state}, due {row.run_at:%Y-%m-%d %H:%M:%S} UTC"
            for row in waiting
        )
        expected = f"expected {count} of {_call(kind.policy.kind, wanted)}, found {len(found)}"
        raise AssertionError(f"{expected}; enqueued are:{there or ' none'}")


def _call(kind: str, args: dict[str, Any]) -> str:
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in args.items())})"


def run_due(app: App, *, at_most: int = MOST_RUNS) -> list[Job]:
    """Run in this process the jobs that are due, and those that become due; return their rows.

    The rows are as they are at the end, in the order of the jobs' first runs. What a body raises is
    in its row's `errors`. A retry is due only after its backoff, so it is not run here.

    Raises LookupError for a kind without a body, and RuntimeError when jobs are still due after
    `at_most` runs.
    """
    app.loader.import_default_modules()
    ran: dict[UUID, None] = {}
    last_kind = ""
    for _ in range(at_most):
        with app.runtime.unit_of_work() as session:
            due = relay.find_next_due(session)
        if due is None:
            with app.runtime.read_only() as session:
                rows = {row.id: row for row in session.scalars(select(Job).where(Job.id.in_(ran)))}
                session.expunge_all()
            return [rows[job_id] for job_id in ran]
        if due.kind not in app.tasks:
            raise LookupError(
                f"no task runs {due.kind!r}: is its body, under @job, in one of the modules that"
                " a component names in `tasks`?"
            )
        run_here(app, due.id, due.kind)
        ran[due.id] = None
        last_kind = due.kind
    raise RuntimeError(f"{at_most} runs, and jobs are still due; the last was {last_kind}")


@dataclass(frozen=True, slots=True)
class JobWorker:
    """A worker that runs in this process, on a database and a broker of the test's own."""

    app: App

    def ended(self, job_id: UUID, *, seconds: float = 10) -> Job:
        """Wait for the end of a job and return its row.

        Raises TimeoutError, which says the job's state, after `seconds`.
        """
        give_up = time.monotonic() + seconds
        while True:
            with self.app.runtime.read_only() as session:
                row = session.execute(select(Job).where(Job.id == job_id)).scalar_one()
            if row.state in ENDED:
                return row
            if time.monotonic() > give_up:
                raise TimeoutError(
                    f"{row.kind} is still {row.state} after {seconds:g} s,"
                    f" attempt {row.attempt}; {row.errors or ''}"
                )
            time.sleep(0.02)


@pytest.fixture(scope="session")
def project_app() -> App:
    """Return the app whose components the tests use."""
    return find_app("project")  # type: ignore[no-any-return]


@pytest.fixture
def job_environment() -> dict[str, str]:
    """Return environment variables for `job_app`, beside those that it sets."""
    return {}


@pytest.fixture
def job_app(
    project_app: App,
    job_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[App]:
    """Yield the app of an installation in the test's folder: empty SQLite database, file broker."""
    environment = {
        "ENVIRONMENT": "development",
        "DATABASE_URL": f"sqlite:///{tmp_path}/nightshift.db",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
        "RELAY_INTERVAL": "PT0.2S",
        **job_environment,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = App(project_app.main, project_app.composition, _env_file=None)
    app.composition.table_branches()  # imports the models
    Base.metadata.create_all(app.runtime.engine.execution_options(sqlite_begin="IMMEDIATE"))
    yield app
    app.runtime.close()


@pytest.fixture
def job_worker(job_app: App) -> Iterator[JobWorker]:
    """Yield a real worker in this process, with its keeper beside it.

    Bodies run in a thread of this process, so a test may set a breakpoint in one.
    """
    job_app.any_pool = True
    options = {"pool": "solo", "perform_ping_check": False, "loglevel": logging.INFO}
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with start_worker(job_app, **options):
            yield JobWorker(job_app)
    finally:
        # A worker sets up the root logger for itself.
        root.handlers[:] = handlers
        root.setLevel(level)
