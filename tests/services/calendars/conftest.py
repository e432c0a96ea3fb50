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
from nightshift.testing import run_due
from sqlalchemy import Engine, delete, func, select

from project.school.settings import SchoolSettings
from services.calendars import feeds, sync
from services.calendars.folders import FolderStore
from services.calendars.jobs import RefreshFeeds, SyncCalendars
from services.calendars.models import ChangeLog, EventStamp, Feed, SyncRun
from services.calendars.store import FeedStore
from services.calendars.sync import Rules
from services.school.loading import load
from tests.conftest import COMPOSITION, NOW
from tests.services.calendars.builders import make_school
from tests.services.calendars.storage import (
    Storage,
    files,
    make_bucket_store,
    settings as storage_settings,
    stamps,
    storage,
)

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """Yield a server of S3-compatible storage, for the test session."""
    with storage(tmp_path_factory.mktemp("storage") / "requests") as server:
        yield server


@pytest.fixture
def storage_address(server: Storage) -> str:
    """Return the address of S3-compatible storage."""
    return server.address


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeedStore:
    """Return an empty feed store of each kind."""
    if request.param == "folder":
        return FolderStore(tmp_path / "feeds")
    made: FeedStore = make_bucket_store(request.getfixturevalue("storage_address"))
    return made


@pytest.fixture
def store_settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Return the settings of an empty feed store: a folder, or with the parameter a bucket."""
    if getattr(request, "param", "folder") == "folder":
        return {"FEED_STORE": str(tmp_path / "feeds")}
    return storage_settings(request.getfixturevalue("storage_address"))


# With it, a test runs on each kind of store.
on_both_stores = pytest.mark.parametrize("store_settings", ["folder", "bucket"], indirect=True)


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

    def start_refresh(self) -> UUID:
        with self.runtime.unit_of_work() as session:
            return enqueue(session, RefreshFeeds(), now=LONG_AGO)

    def refresh(self) -> set[str]:
        """Run what a keeper would start, and return the files that were written or removed."""
        before = self.stamps()
        self.start_refresh()
        assert {job.state for job in run_due(self.app)} == {JobState.SUCCEEDED}
        assert self.count_notes() == 0
        after = self.stamps()
        return {name for name in before | after if before.get(name) != after.get(name)}

    def count_notes(self) -> int:
        """Return how many rows the change log has."""
        with self.runtime.read_only() as session:
            return session.execute(select(func.count()).select_from(ChangeLog)).scalar_one()

    def is_right(self) -> bool:
        """Return whether a full sync finds nothing to do, and each file has its feed's bytes."""
        before = self.stamps()
        return self.has_right_bytes() and self.stamps() == before

    def has_right_bytes(self) -> bool:
        """Return whether each file has its feed's bytes, before and after a full sync."""
        before = self.files()
        self.sync()
        with self.runtime.read_only() as session:
            wanted = feeds.read_contents(
                session,
                self.rules.window(self.runtime.now()),
                school_name="Kantonsschule",
                feed_ids=list(session.scalars(select(Feed.id))),
            )
            store = self.store
            same = all(store.read(feed.kind, feed.owner_id) == content for feed, content in wanted)
        return same and self.files() == before

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
        return files(self.store)

    def stamps(self) -> dict[str, Any]:
        """Return of every file which one it is and when it was written."""
        return stamps(self.store)


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
def calendars(
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    example_school: Path,
    store_settings: dict[str, str],
) -> Iterator[Calendars]:
    """Yield an installation with the example school, and empty its database afterwards.

    The window is wide enough for any day, so the clock does not decide what the jobs do.
    """
    environment = {
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "BROKER_URL": f"filesystem://{tmp_path / 'broker'}",
        "SCHOOL_NAME": "Kantonsschule",
        "FEED_DAYS_PAST": "10000",
        "FEED_DAYS_AHEAD": "10000",
        **store_settings,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = App("project.celery", COMPOSITION, _env_file=None)
    # The test runs the jobs: nothing goes to the broker.
    app.runtime.publisher = None
    zone = app.runtime[SchoolSettings].school_timezone
    with app.runtime.unit_of_work() as session:
        load(session, example_school, zone=zone, now=NOW)
    yield Calendars(app)
    with app.runtime.unit_of_work() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        # The triggers have noted all that.
        session.execute(delete(ChangeLog))
        session.execute(delete(EventStamp))
    app.runtime.close()
