"""A small school with a feed store, and an installation whose jobs run without a worker."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from tests.services.calendars.builders import change_lessons, make_school
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


# With it, a test of `calendars` runs on each kind of store.
on_both_stores = pytest.mark.parametrize("calendars", ["folder", "bucket"], indirect=True)


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


class Snapshot:
    """An installation as it is now, to be put back: the rows of all tables, and the feeds' files.

    That is a tenth of the time that it takes to load a school and build its feeds.
    """

    def __init__(self, calendars: Calendars) -> None:
        self._calendars = calendars
        root = calendars.store.root
        with calendars.runtime.read_only() as session:
            connection = session.connection()
            found = {
                table: [dict(row) for row in connection.execute(table.select()).mappings()]
                for table in Base.metadata.sorted_tables
            }
        self._rows = {table: rows for table, rows in found.items() if rows}
        for table, rows in self._rows.items():
            # A row that refers to another of its own table comes after it.
            own = [key.parent.name for key in table.foreign_keys if key.column.table is table]
            rows.sort(key=lambda row, own=own: any(row[name] is not None for name in own))
        self._files = {
            root / name: (content, (root / name).stat().st_mtime_ns)
            for name, content in calendars.files().items()
        }

    def restore(self) -> None:
        """Put all of it into an installation that `empty` has emptied."""
        noted = (ChangeLog.__table__, EventStamp.__table__)
        with self._calendars.runtime.unit_of_work() as session:
            for table, rows in self._rows.items():
                if table not in noted:
                    session.connection().execute(table.insert(), rows)
            # The triggers have noted these rows again.
            for table in noted:
                session.execute(table.delete())
                if rows := self._rows.get(table):
                    session.connection().execute(table.insert(), rows)
        for path, (content, mtime_ns) in self._files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, ns=(mtime_ns, mtime_ns))


def empty(calendars: Calendars) -> None:
    """Delete every row and every file of an installation."""
    with calendars.runtime.unit_of_work() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        # The triggers have noted all that.
        session.execute(delete(ChangeLog))
        session.execute(delete(EventStamp))
    root = calendars.store.root
    if root.is_dir():
        shutil.rmtree(root)
    else:
        root.unlink(missing_ok=True)


@dataclass(frozen=True)
class Shared:
    """An installation that tests share one after the other; each begins with a snapshot of it."""

    calendars: Calendars
    environment: dict[str, str]
    loaded: Snapshot
    synced: Snapshot


@pytest.fixture(scope="session")
def shared(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, example_school: Path
) -> Iterator[Shared]:
    """Yield an installation of the example school, whose database is empty between the tests.

    The window is wide enough for any day, so the clock does not decide what the jobs do.
    """
    folder = tmp_path_factory.mktemp("calendars")
    environment = {
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "BROKER_URL": f"filesystem://{folder / 'broker'}",
        "FEED_STORE": str(folder / "feeds"),
        "SCHOOL_NAME": "Kantonsschule",
        "FEED_DAYS_PAST": "10000",
        "FEED_DAYS_AHEAD": "10000",
    }
    values = {name.lower(): value for name, value in environment.items()}
    app = App("project.celery", COMPOSITION, _env_file=None, **values)
    # The test runs the jobs: nothing goes to the broker.
    app.runtime.publisher = None
    calendars = Calendars(app)
    zone = app.runtime[SchoolSettings].school_timezone
    with app.runtime.unit_of_work() as session:
        load(session, example_school, zone=zone, now=NOW)
        change_lessons(session)
    loaded = Snapshot(calendars)
    calendars.sync()
    calendars.change(ChangeLog.__table__.delete())
    synced = Snapshot(calendars)
    empty(calendars)
    yield Shared(calendars, environment, loaded, synced)
    app.runtime.close()


def _restored(
    shared: Shared, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Calendars]:
    # For a process that the test starts.
    for name, value in shared.environment.items():
        monkeypatch.setenv(name, value)
    try:
        snapshot.restore()
        yield shared.calendars
    finally:
        empty(shared.calendars)


@pytest.fixture
def calendars(
    request: pytest.FixtureRequest, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Calendars]:
    """Yield an installation with the example school, and no feeds: in a folder, or a bucket."""
    restored = _restored(shared, shared.loaded, monkeypatch)
    if getattr(request, "param", "folder") == "folder":
        yield from restored
        return
    in_bucket = storage_settings(request.getfixturevalue("storage_address"))
    values = {name.lower(): value for name, value in (shared.environment | in_bucket).items()}
    for _ in restored:
        app = App("project.celery", COMPOSITION, _env_file=None, **values)
        app.runtime.publisher = None
        yield Calendars(app)
        app.runtime.close()


@pytest.fixture
def fresh(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calendars]:
    """Yield an installation with the example school; its feeds are all up to date."""
    yield from _restored(shared, shared.synced, monkeypatch)
