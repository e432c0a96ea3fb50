"""A small school with a feed store, and an installation whose jobs run without a worker."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from job_rows import claim_by_row
from nightshift.celery.app import App
from nightshift.database import Base, Session
from nightshift.jobs import Run, claims, enqueue, relay
from nightshift.jobs.models import Job, JobState
from nightshift.runtime import Runtime
from sqlalchemy import Engine, delete, select

from project.school.settings import SchoolSettings
from services.calendars import sync
from services.calendars.jobs import SyncCalendars
from services.calendars.models import ChangeLog, SyncRun
from services.calendars.store import FeedStore
from services.calendars.sync import Rules
from services.school.loading import load
from tests.conftest import COMPOSITION, NOW
from tests.services.calendars.builders import make_school

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> FeedStore:
    """Return an empty feed store."""
    return FeedStore(tmp_path / "feeds")


@pytest.fixture
def school(session: Session) -> SimpleNamespace:
    """Return the rows of a small school, by name."""
    return make_school(session)


class Calendars:
    """An installation of the project in this process, whose jobs the test runs one by one."""

    def __init__(self, app: App) -> None:
        self.app = app
        app.loader.import_default_modules()

    @property
    def runtime(self) -> Runtime:
        return self.app.runtime

    @property
    def store(self) -> FeedStore:
        return self.runtime[FeedStore]

    @property
    def rules(self) -> Rules:
        return self.runtime[Rules]

    def enqueue(self) -> UUID:
        """Enqueue a sync and return its id."""
        with self.runtime.unit_of_work() as session:
            return enqueue(session, SyncCalendars(), now=LONG_AGO)

    def next(self, run_id: UUID) -> tuple[UUID, str] | None:
        """Return id and kind of a job of the run that waits for a worker."""
        with self.runtime.unit_of_work() as session:
            relay.queue_due(session)
            ours = (Job.id == run_id) | (Job.parent_id == run_id)
            query = select(Job.id, Job.kind).where(ours, Job.state == JobState.QUEUED)
            row = session.execute(query.order_by(Job.kind, Job.id).limit(1)).one_or_none()
        return None if row is None else (row.id, row.kind)

    def step(self, run_id: UUID) -> str | None:
        """Run one job and return its kind, or None when there is none.

        What the body raises is in the ledger.
        """
        found = self.next(run_id)
        if found is None:
            return None
        job_id, kind = found
        with suppress(Exception):  # Recorded by `perform`.
            self.app.tasks[kind].perform(job_id)
        assert self.job(job_id).state != JobState.QUEUED
        return kind

    def run_all(self, run_id: UUID) -> list[str]:
        """Run everything that there is to run, and return the kinds."""
        kinds = []
        while kind := self.step(run_id):
            kinds.append(kind)
        return kinds

    def sync(self) -> dict[str, Any]:
        """Run one sync and return its record."""
        run_id = self.enqueue()
        self.run_all(run_id)
        return self.record(run_id)

    def record(self, run_id: UUID) -> dict[str, Any]:
        with self.runtime.read_only() as session:
            found = session.execute(select(SyncRun).where(SyncRun.id == run_id)).scalar_one()
            return sync.summarise(found)

    def job(self, job_id: UUID) -> Job:
        with self.runtime.read_only() as session:
            return session.execute(select(Job).where(Job.id == job_id)).scalar_one()

    def claim(self, job_id: UUID, worker_id: UUID | None = None) -> claims.Claim:
        """Claim a job, as this process's worker or as another."""
        worker = worker_id or self.app.worker_id
        with self.runtime.unit_of_work() as session:
            taken = claim_by_row(session.connection(), job_id, worker_id=worker, pid=1)
        assert taken is not None
        return taken

    def change(self, *statements: Any) -> None:
        """Execute statements in one transaction."""
        with self.runtime.unit_of_work() as session:
            for statement in statements:
                session.execute(statement)

    def files(self) -> dict[str, bytes]:
        """Return the content of every file in the store, by path."""
        root = self.store.root
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return of every file which one it is and when it was written."""
        stats = {name: (self.store.root / name).stat() for name in self.files()}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


class InterruptedRun(Run):
    """A run in which something happens before its transactions: by number, from 1."""

    def __init__(
        self, calendars: Calendars, job_id: UUID, happens: dict[int, Callable[[], object]]
    ) -> None:
        super().__init__(calendars.claim(job_id), calendars.runtime)
        numbers = count(1)

        @contextmanager
        def unit_of_work() -> Iterator[Session]:
            happens.get(next(numbers), lambda: None)()
            with calendars.runtime.unit_of_work() as session:
                yield session

        self.unit_of_work = unit_of_work


@pytest.fixture
def empty_calendars(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Calendars]:
    """Yield an installation without a school, and empty its database afterwards.

    The window is wide enough for any day, so the clock does not decide what the jobs do.
    """
    environment = {
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "BROKER_URL": f"filesystem://{tmp_path / 'broker'}",
        "FEED_STORE": str(tmp_path / "feeds"),
        "SCHOOL_NAME": "Kantonsschule",
        "FEED_DAYS_PAST": "10000",
        "FEED_DAYS_AHEAD": "10000",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = App("project.celery", COMPOSITION, _env_file=None)
    # The test runs the jobs: nothing goes to the broker.
    app.runtime.publisher = None
    yield Calendars(app)
    with app.runtime.unit_of_work() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        session.execute(delete(ChangeLog))  # The triggers have noted all that.
    app.runtime.close()


@pytest.fixture
def calendars(empty_calendars: Calendars, example_school: Path) -> Calendars:
    """Return an installation with the example school."""
    runtime = empty_calendars.runtime
    zone = runtime[SchoolSettings].school_timezone
    with runtime.unit_of_work() as session:
        load(session, example_school, zone=zone, now=NOW)
    return empty_calendars
