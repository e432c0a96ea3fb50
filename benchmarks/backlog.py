"""A million due jobs: do the last ones run as fast as the first ones, and does memory stay flat?"""

import importlib
import time
from typing import Any

import psutil
from nightshift.jobs import care
from nightshift.runtime import Runtime
from sqlalchemy import text

from benchmarks.servers import installation, worker

JOBS = 1_000_000
MEASURED = 20_000
OURS = "nightshift_jobs"

FILL = """
insert into job (id, kind, queue, priority, state, args, unique_until_started, created_at, run_at,
                 attempt, max_attempts, time_limit, children, children_open, children_failed)
select gen_random_uuid(), 'bench.noop', 'default', 5, 'queued', '{"number": 0}', false, now(),
       now() - make_interval(secs => number / 1000.0), 0, 5, 60, 0, 0, 0
from generate_series(1, :jobs) as number
"""
# Everything but the newest: those are the last ones to run.
END_MOST = """
update job set state = 'succeeded', finished_at = now()
where state = 'queued' and sent_at is null
  and run_at < (select min(run_at) from (select run_at from job where state = 'queued'
                and sent_at is null order by run_at desc limit :left) as last)
"""


def run() -> dict[str, Any]:
    """Measure and return the figures."""
    with installation():
        ours = importlib.import_module(f"benchmarks.peers.{OURS}")
        runtime = ours.app.runtime
        execute(runtime, FILL, jobs=1)
        with worker(f"benchmarks.peers.{OURS}"):
            alone = wait_for_first(runtime)
        execute(runtime, "delete from job")
        execute(runtime, FILL, jobs=JOBS)
        vacuum(runtime)
        with worker(f"benchmarks.peers.{OURS}") as process:
            first = wait_for_first(runtime)
            at_first = rate(runtime, MEASURED)
            memory = total_memory(process.pid)
            # Nothing runs meanwhile, and the server writes what the statement changed: a gigabyte
            # that no job has caused.
            with runtime.unit_of_work() as session:
                care.pause(session, "default", now=runtime.now())
            execute(runtime, END_MOST, left=MEASURED + 2_000)
            vacuum(runtime)
            with runtime.unit_of_work() as session:
                care.resume(session, "default")
            at_last = rate(runtime, MEASURED)
            later = total_memory(process.pid)
    return {
        "due jobs": JOBS,
        "first job ended after the worker's start, s": first,
        "the same without the backlog, s": alone,
        "what the backlog costs the first job, s (≤ 5)": first - alone,
        f"first {MEASURED:,}, jobs/s": at_first,
        f"last {MEASURED:,}, jobs/s": at_last,
        "last / first (0.8 to 1.2)": at_last / at_first,
        "memory of worker, children and keeper, last / first (≈ 1)": later / memory,
    }


def execute(runtime: Runtime, statement: str, **values: int) -> None:
    with runtime.engine.begin() as connection:
        connection.execute(text("set local statement_timeout = 0"))
        connection.connection.driver_connection.silence = None  # type: ignore[union-attr]
        connection.execute(text(statement), values)


def vacuum(runtime: Runtime) -> None:
    # As autovacuum and the checkpointer do within some minutes.
    with runtime.make_engine(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.connection.driver_connection.silence = None  # type: ignore[union-attr]
        connection.execute(text("set statement_timeout = 0"))
        connection.execute(text("vacuum analyze job"))
        connection.execute(text("checkpoint"))


def count_succeeded(runtime: Runtime) -> int:
    with runtime.read_only() as session:
        ran = "select count(*) from job where state = 'succeeded' and started_at is not null"
        return int(session.execute(text(ran)).scalar_one())


def wait_for_first(runtime: Runtime) -> float:
    """Return the seconds until a job has ended."""
    began = time.perf_counter()
    while count_succeeded(runtime) == 0:
        time.sleep(0.05)
    return time.perf_counter() - began


def rate(runtime: Runtime, jobs: int) -> float:
    """Return the jobs a second over the next `jobs` that end."""
    before, began = count_succeeded(runtime), time.perf_counter()
    while (ended := count_succeeded(runtime) - before) < jobs:
        time.sleep(0.5)
    return ended / (time.perf_counter() - began)


def total_memory(pid: int) -> int:
    """Return the bytes that a process and its children hold."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
