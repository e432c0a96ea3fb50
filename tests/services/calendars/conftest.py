"""A house with the example school: whole jobs without a worker, on a database of its own."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, delete, select

from project.bootstrap import Bootstrap, bootstrap
from project.settings import Settings
from services.calendars import sync
from services.calendars.jobs import SyncCalendars
from services.calendars.models import ChangeLog, SyncRun
from services.database import Base
from services.jobs import enqueue, relay
from services.jobs.models import Job, JobState
from services.school.loading import load

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class QuietBootstrap(Bootstrap):
    """One that tells no broker."""

    def _send(self, enqueued: list[UUID]) -> None:
        pass


class House:
    """A house with its own database and store, and the hands of a worker."""

    def __init__(self, boot: Bootstrap) -> None:
        self.boot = boot
        self.worker = uuid4()

    def enqueue(self) -> UUID:
        with self.boot.unit_of_work() as session:
            return enqueue(session, SyncCalendars(), now=LONG_AGO)

    def next(self, run_id: UUID) -> tuple[UUID, str] | None:
        """Give a job of the run that waits for a worker."""
        with self.boot.unit_of_work() as session:
            relay.promote(session)
            ours = (Job.id == run_id) | (Job.parent_id == run_id)
            query = select(Job.id, Job.kind).where(ours, Job.state == JobState.QUEUED).order_by(Job.kind, Job.id)
            row = session.execute(query.limit(1)).one_or_none()
        return None if row is None else (row.id, row.kind)

    def step(self, run_id: UUID) -> str | None:
        """Run one job, and give its kind, or None when there is none; what the body raises is in the ledger."""
        from project.celery import app

        app.loader.import_default_modules()
        found = self.next(run_id)
        if found is None:
            return None
        job_id, kind = found
        task = app.tasks[kind]
        with suppress(Exception):  # Recorded by `perform`.
            task.perform(job_id, self.boot, worker=self.worker)
        assert self.job(job_id).state != JobState.QUEUED
        return kind

    def work_off(self, run_id: UUID) -> list[str]:
        """Run everything that there is to run, and give the kinds."""
        kinds = []
        while kind := self.step(run_id):
            kinds.append(kind)
        return kinds

    def sync(self) -> dict[str, Any]:
        run_id = self.enqueue()
        self.work_off(run_id)
        return self.record(run_id)

    def record(self, run_id: UUID) -> dict[str, Any]:
        with self.boot.read_only() as session:
            return sync.summary(session.execute(select(SyncRun).where(SyncRun.id == run_id)).scalar_one())

    def job(self, job_id: UUID) -> Job:
        with self.boot.read_only() as session:
            return session.execute(select(Job).where(Job.id == job_id)).scalar_one()

    def change(self, *statements: Any) -> None:
        with self.boot.unit_of_work() as session:
            for statement in statements:
                session.execute(statement)

    def files(self) -> dict[str, bytes]:
        root = self.boot.feed_store.root
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    def stamps(self) -> dict[str, tuple[int, int]]:
        root = self.boot.feed_store.root
        stats = {name: (root / name).stat() for name in self.files()}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.fixture
def house(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_school: Path) -> Iterator[House]:
    """Give a house in which the example school lives, and clear its database afterwards.

    What the jobs ask the clock for must not decide what they do, so the window is wide enough for any.
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
    bootstrap.cache_clear()
    bootstrap()  # The tasks ask it for the store and the rules.
    boot = QuietBootstrap(Settings())
    with boot.unit_of_work() as session:
        load(session, example_school, zone=boot.rules.zone, now=NOW)
    yield House(boot)
    bootstrap().disconnect()
    bootstrap.cache_clear()
    with boot.unit_of_work() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        session.execute(delete(ChangeLog))  # The triggers have noted all that.
    boot.disconnect()
