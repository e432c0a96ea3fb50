"""Real workers on real brokers, by settings alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from kombu import Connection, pools
from sqlalchemy import create_engine, make_url, select, text

from project.bootstrap import Bootstrap, bootstrap
from project.celery import app
from project.celeryconfig import QUEUES, configuration
from project.publisher import publisher
from services.jobs import rescue
from services.jobs.models import ENDED, Job
from tests.conftest import POSTGRES_URL, RABBITMQ_URL, REDIS_URL, make_settings, reachable, require

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Installation:
    """One database and one broker, with the environment that a process on them needs."""

    environment: dict[str, str]
    folder: Path
    boot: Bootstrap
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a Celery command; it is stopped after the test."""
        everything = {**os.environ, **self.environment, **environment}
        arguments = [sys.executable, "-m", "celery", "-A", "project", *command]
        with (self.folder / f"{command[0]}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(arguments, cwd=ROOT, env=everything, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def worker(self, *options: str, wait: bool = True, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker of two processes with the probe's jobs, and wait until it has shown itself."""
        name = f"w{len(self.processes)}@test"
        process = self.start("worker", "-n", name, "-I", "tests.worker.probe", "--concurrency=2", *options, **environment)
        if wait:
            self.until(lambda: process.pid in [worker.pid for worker in self.workers()], seconds=40)
        return process

    def workers(self) -> list[Any]:
        with self.boot.read_only() as session:
            return rescue.alive(session, silent_after=self.boot.settings.worker_silent_after)

    def until(self, condition: Callable[[], Any], *, seconds: float = 30) -> Any:
        """Wait for something to become true and return it."""
        give_up = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < give_up, f"it did not happen within {seconds} s\n{self.logs()}"
            time.sleep(0.05)
        return value

    def job(self, job_id: UUID) -> Job:
        with self.boot.read_only() as session:
            return session.execute(select(Job).where(Job.id == job_id)).scalar_one()

    def ended(self, job_id: UUID, *, seconds: float = 30) -> Job:
        """Wait for the end of a job and return its row."""
        return self.until(lambda: (row := self.job(job_id)).state in ENDED and row, seconds=seconds)

    def open_jobs(self) -> int:
        with self.boot.read_only() as session:
            return session.execute(text("select count(*) from job where finished_at is null")).scalar_one()

    def effects(self, job_id: UUID | None = None) -> int:
        where = "" if job_id is None else f" where job_id = '{job_id.hex}'"
        with self.boot.read_only() as session:
            return session.execute(text(f"select count(*) from effect{where}")).scalar_one()

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()


def forget() -> None:
    """Close what this process holds of an installation, so that the next one gets its own."""
    publisher().close()
    pools.reset()
    app._pool = None
    # It keeps the queues, whose type is the broker's.
    app.__dict__.pop("amqp", None)
    for cached in (bootstrap, publisher):
        cached.cache_clear()


@contextmanager
def installed(folder: Path, database_url: str, broker_url: str, **settings: str) -> Iterator[Installation]:
    """Give an installation whose tables the migrations made."""
    environment = {
        "DATABASE_URL": database_url,
        "BROKER_URL": broker_url,
        "FEED_STORE": str(folder / "feeds"),
        "MAIL_URL": f"folder://{folder}/mail",
        "SCHOOL_NAME": "Probe",
        **{name.upper(): value for name, value in settings.items()},
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    # This process enqueues too: its app and its collaborators are those of the installation.
    configured = make_settings(**{name.lower(): value for name, value in environment.items()})
    app.conf.update({"broker_transport": None, **configuration(configured)})
    forget()
    subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, check=True, capture_output=True)
    installation = Installation(environment, folder, bootstrap())
    with installation.boot.unit_of_work() as session:
        session.execute(text("create table effect (job_id varchar(32), attempt integer, at double precision)"))
    try:
        yield installation
    finally:
        installation.stop()
        installation.boot.disconnect()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        forget()


@contextmanager
def postgres_database() -> Iterator[str]:
    """Give a Postgres database of one's own."""
    require(POSTGRES_URL, "postgres")
    name = f"nightshift_test_{uuid4().hex[:12]}"
    server = create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()


@contextmanager
def redis_database() -> Iterator[str]:
    """Give a Redis database that nobody uses, also no other run of the tests."""
    require(REDIS_URL, "redis")
    for number in range(15, 0, -1):
        url = f"{REDIS_URL.rpartition('/')[0]}/{number}"
        with redis.Redis.from_url(url) as broker:
            if broker.dbsize() == 0 and broker.set("taken", os.getpid(), nx=True, ex=3600):
                try:
                    yield url
                finally:
                    broker.flushdb()
                return
    pytest.fail("no Redis database is empty: tests that were killed may have left something; flush them")


def rabbitmq() -> str:
    """Return the URL of a RabbitMQ whose queues are empty. It is an extra: where it is not reachable its tests are skipped, loudly."""
    if not reachable(RABBITMQ_URL):
        pytest.skip(f"RABBITMQ IS NOT REACHABLE at {RABBITMQ_URL}: start it, or name another in TEST_RABBITMQ_URL")
    with Connection(RABBITMQ_URL) as connection:
        for queue in QUEUES:
            # Queues of another type, from another time, would stand in the way too.
            connection.default_channel.queue_delete(queue)
    return RABBITMQ_URL


@contextmanager
def any_installation(kind: str, folder: Path, **settings: str) -> Iterator[Installation]:
    """Give an installation by its kind: `embedded` (SQLite, files), `servers` (Postgres, Redis) or `rabbit` (Postgres, RabbitMQ)."""
    if kind == "embedded":
        with installed(folder, f"sqlite:///{folder}/nightshift.db", f"filesystem://{folder}/broker", **settings) as installation:
            yield installation
        return
    if kind == "rabbit":
        with postgres_database() as url, installed(folder, url, rabbitmq(), **settings) as installation:
            yield installation
        return
    with postgres_database() as url, redis_database() as broker, installed(folder, url, broker, **settings) as installation:
        yield installation


@pytest.fixture(params=["embedded", "servers"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """Give a fresh installation of each kind."""
    with any_installation(request.param, tmp_path) as installation:
        yield installation


@pytest.fixture(scope="module", params=["embedded", "servers", "rabbit"])
def working(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Give an installation of each kind with one worker, shared by the tests of a module."""
    quick = {"heartbeat_interval": "PT1S", "worker_silent_after": "PT5S", "relay_interval": "PT0.2S"}
    with any_installation(request.param, tmp_path_factory.mktemp(request.param), **quick) as installation:
        installation.worker()
        yield installation
