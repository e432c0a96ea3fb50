"""Installations with real workers on real brokers, by settings alone.

For the engine's tests and the project's: an installation is one of the app that it is given.
"""

import fcntl
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from celery.app.utils import find_app
from forking import ForkedProcess
from kombu import Connection, pools
from nightshift.celery.app import App
from nightshift.database import Base
from nightshift.jobs import rescue
from nightshift.jobs.models import ENDED, Job
from nightshift.runtime import Runtime
from servers import RABBITMQ_URL, postgres_database, reachable, redis_database
from sqlalchemy import select, text

HERE = Path(__file__).parent

# Seconds. Only a test that fails waits so long: a busy machine may be ten times slower than an idle
# one.
LONG = 150.0

# Seconds for processes to stop after a test, whose jobs may run for longer.
STOPPING = 10.0

# Settings that let a test see a dead worker, and a due job, soon.
QUICK = {
    "heartbeat_interval": "PT1S",
    "worker_silent_after": "PT5S",
    "relay_interval": "PT0.2S",
}


@dataclass
class Installation:
    """One database and one broker, with the environment that a process on them needs."""

    app: App
    environment: dict[str, str]
    folder: Path
    processes: list[ForkedProcess] = field(default_factory=list)

    @property
    def runtime(self) -> Runtime:
        return self.app.runtime

    def start(self, *command: str, **environment: str) -> ForkedProcess:
        """Start a Celery command; it is stopped after the test."""
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        everything = {**os.environ, "PYTHONPATH": path, **self.environment, **environment}
        log = self.folder / f"{command[0]}-{len(self.processes)}.log"
        arguments = ["-A", self.app.main, *command]
        process = ForkedProcess("celery", arguments, everything, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def worker(self, *options: str, wait: bool = True, **environment: str) -> ForkedProcess:
        """Start a worker of two processes, and wait until its keeper has given a sign of life."""
        name = f"w{len(self.processes)}@test"
        process = self.start("worker", "-n", name, "--concurrency=2", *options, **environment)
        if wait:
            self.until(lambda: self._is_kept(process.pid))
        return process

    def _is_kept(self, pid: int) -> bool:
        # The worker records itself first, and then its keeper.
        return any(one.pid == pid and one.heartbeat_at > one.started_at for one in self.workers())

    def workers(self) -> list[Any]:
        silent_after = self.runtime.settings.worker_silent_after
        with self.runtime.read_only() as session:
            return rescue.find_living_workers(session, silent_after=silent_after)

    def until(self, condition: Callable[[], Any], *, seconds: float = LONG) -> Any:
        """Wait for something to become true and return it."""
        give_up, pause = time.monotonic() + seconds, 0.02
        while not (value := condition()):
            late = time.monotonic() >= give_up
            assert not late, f"it did not happen within {seconds} s\n{self.logs()}"
            # Looking is work, too, which the processes wait for.
            time.sleep(pause)
            pause = min(1.3 * pause, 0.2)
        return value

    def job(self, job_id: UUID) -> Job:
        with self.runtime.read_only() as session:
            return session.execute(select(Job).where(Job.id == job_id)).scalar_one()

    def ended(self, job_id: UUID, *, seconds: float = LONG) -> Job:
        """Wait for the end of a job and return its row."""
        return self.until(lambda: (row := self.job(job_id)).state in ENDED and row, seconds=seconds)

    def open_jobs(self) -> int:
        with self.runtime.read_only() as session:
            statement = text("select count(*) from job where finished_at is null")
            return session.execute(statement).scalar_one()

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in self.folder.glob("*.log")
        )

    def stop(self) -> None:
        children: list[psutil.Process] = []
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                children += psutil.Process(process.pid).children()
        for process in self.processes:
            process.terminate()
        give_up = time.monotonic() + STOPPING
        for process in self.processes:
            try:
                process.wait(max(0.1, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        # Keepers go on for a while, to release what is dropped here.
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=20)


def create_tables(app: App) -> None:
    """Create the tables of an app's components as the models say."""
    names = app.composition.table_branches()
    tables = [Base.metadata.tables[name] for name in names]
    engine = app.runtime.engine.execution_options(sqlite_begin="IMMEDIATE")
    Base.metadata.create_all(engine, tables=tables)


@contextmanager
def installed(
    app_name: str,
    folder: Path,
    database_url: str,
    broker_url: str,
    *,
    prepare: Callable[[App], None] = create_tables,
    **settings: str,
) -> Iterator[Installation]:
    """Yield an installation of the app in a module, with the tables that `prepare` makes."""
    environment = {
        "DATABASE_URL": database_url,
        "BROKER_URL": broker_url,
        **{name.upper(): value for name, value in settings.items()},
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    composition = find_app(app_name).composition
    app = App(app_name, composition, _env_file=None)
    prepare(app)
    installation = Installation(app, environment, folder)
    try:
        yield installation
    finally:
        installation.stop()
        app.runtime.close()
        pools.reset()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def rabbitmq(queues: list[str]) -> Iterator[str]:
    """Yield the URL of a RabbitMQ whose queues are empty, and which no other run of the tests uses.

    It is an extra: where it is not reachable its tests are skipped, loudly.
    """
    if not reachable(RABBITMQ_URL):
        hint = "start it, or name another in TEST_RABBITMQ_URL"
        pytest.skip(f"RABBITMQ IS NOT REACHABLE at {RABBITMQ_URL}: {hint}")
    # Its queues have one name for all runs.
    with (Path(tempfile.gettempdir()) / "nightshift-tests-rabbitmq").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Connection(RABBITMQ_URL) as connection:
            for queue in queues:
                # Queues of another type, from another time, would stand in the way too.
                connection.default_channel.queue_delete(queue)
        yield RABBITMQ_URL


@contextmanager
def any_installation(
    kind: str, app_name: str, folder: Path, **options: Any
) -> Iterator[Installation]:
    """Yield an installation by its kind.

    `embedded` is SQLite and files, `servers` Postgres and Redis, `rabbit` Postgres and RabbitMQ.
    """
    if kind == "embedded":
        urls = (f"sqlite:///{folder}/nightshift.db", f"filesystem://{folder}/broker")
        with installed(app_name, folder, *urls, **options) as installation:
            yield installation
    elif kind == "rabbit":
        with (
            rabbitmq(find_app(app_name).composition.queues) as broker,
            postgres_database() as url,
            installed(app_name, folder, url, broker, **options) as installation,
        ):
            yield installation
    else:
        with (
            postgres_database() as url,
            redis_database() as broker,
            installed(app_name, folder, url, broker, **options) as installation,
        ):
            yield installation
