"""Start a job system's workers, and measure their jobs a second and what these cost."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import redis
from sqlalchemy import Connection, create_engine, text

from benchmarks.servers import ROOT

OURS, BARE = "nightshift_jobs", "bare_celery"
LONGEST = 900  # seconds that one measurement may take


@dataclass(frozen=True)
class Run:
    """Jobs a second, and the CPU milliseconds that one job costs."""

    rate: float
    workers: float
    postgres: float
    redis: float

    @property
    def cpu(self) -> float:
        return self.workers + self.postgres + self.redis


def peer(name: str, *arguments: object, python: str = sys.executable) -> str:
    """Call benchmarks/peers in a process of its own, and return what it prints."""
    command = [python, "-m", "benchmarks.peers", name, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def run_jobs(name: str, job: str, number: int, python: str = sys.executable) -> Run:
    """Enqueue jobs, then start two worker processes. Measure from the first end to the last."""
    peer(name, "enqueue", job, number, python=python)
    system = json.loads(peer(name, "describe", python=python))
    with connect() as connection, workers(system) as processes:
        while (first := count(connection, system["left"])) == number:
            if any(process.poll() for process in processes):
                raise RuntimeError(f"a worker of {name} has ended: {' '.join(system['worker'])}")
            time.sleep(0.01)
        before, began = read_cpu(processes, connection), time.perf_counter()
        wait(connection, system["left"])
        seconds, after = time.perf_counter() - began, read_cpu(processes, connection)
    each = (1000 * (end - start) / first for start, end in zip(before, after, strict=True))
    return Run(first / seconds, *each)


@contextmanager
def workers(system: dict[str, Any]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield the running processes of a peer's worker."""
    processes = [
        subprocess.Popen(
            system["worker"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(system["processes"])
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def connect() -> Iterator[Connection]:
    """Yield a connection to the installation's database, in no transaction."""
    engine = create_engine(os.environ["DATABASE_URL"], isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def count(connection: Connection, left: str | list[list[str]]) -> int:
    """Return how many jobs have not ended: a statement, or commands of Redis to add up."""
    if isinstance(left, str):
        return int(connection.execute(text(left)).scalar_one())
    with redis.Redis.from_url(os.environ["BROKER_URL"]) as client:
        return sum(int(client.execute_command(*command)) for command in left)


def wait(connection: Connection, left: str | list[list[str]]) -> None:
    """Return when all jobs have ended. Raises TimeoutError."""
    deadline = time.monotonic() + LONGEST
    while count(connection, left):
        if time.monotonic() > deadline:
            raise TimeoutError(f"jobs are left after {LONGEST} s")
        time.sleep(0.1)


def read_cpu(
    processes: list[subprocess.Popen[bytes]], connection: Connection
) -> tuple[float, float, float]:
    """Return the CPU seconds that workers, Postgres and Redis have used so far.

    Of Postgres all processes count, those of ended connections too, but not this connection's.
    """
    with redis.Redis.from_url(os.environ["BROKER_URL"]) as client:
        info = client.info("cpu")
    watching = psutil.Process(connection.execute(text("select pg_backend_pid()")).scalar_one())
    return (
        sum(add_up(psutil.Process(process.pid)) for process in processes),
        add_up(watching.parent()) - add_up(watching),
        sum(info[f"used_cpu_{kind}"] for kind in ("sys", "user", "sys_children", "user_children")),
    )


def add_up(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and its descendants, those that have ended included."""
    seconds = 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds
