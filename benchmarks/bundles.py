"""Jobs that run together, beside jobs of a kind whose jobs do not (`bundle=1`).

Prints tables of docs/performance.md. `BENCH_ROUNDS` is how often each is measured, `BENCH_JOBS` how
many jobs are enqueued at once, `BENCH_HELD` how many run beside a transaction that stays open.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from sqlalchemy import Connection, text

from benchmarks.measure import BARE, OURS, connect, peer, wait, workers
from benchmarks.servers import installation

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
JOBS = int(os.environ.get("BENCH_JOBS", "10000"))
HELD = int(os.environ.get("BENCH_HELD", "50000"))
IDLE, PAUSE = 200, 0.1  # jobs that come one by one, and seconds between them

LEFT = "select count(*) from job where finished_at is null"
SUCCEEDED = "select count(*) from job where state = 'succeeded'"
# In seconds, from the first job's enqueueing to the last one's end.
TOOK = "select extract(epoch from max(finished_at) - min(created_at)) from job"
TOOK_ON_SQLITE = (
    "select 86400 * (julianday(max(finished_at)) - julianday(min(created_at))) from job"
)
URGENT = "select extract(epoch from started_at - created_at) from job where kind = 'bench.urgent'"
# In milliseconds, from enqueueing to the start.
WAITED = """
select percentile_cont(0.5) within group (order by waited),
       percentile_cont(0.99) within group (order by waited)
from (select 1000 * extract(epoch from started_at - created_at) as waited from job) as job
"""
CHURN = """
select n_dead_tup, pg_total_relation_size(relid) / 1e6, n_tup_hot_upd::float / n_tup_upd
from pg_stat_user_tables where relname = 'job'
"""

Figures = list[float]


def run() -> dict[str, Any]:
    """Measure, and print a row for each figure."""
    head("", "together", "`bundle=1`")
    compare([f"{JOBS:,} no-ops from `enqueue_many` to the last end, s"], take, "noop", JOBS)
    compare(["40 jobs of 200 ms, s"], take, "slow", 40)
    urgent = f"an urgent job behind {JOBS // 2:,} no-ops starts after, s"
    compare([urgent], take_urgent, "noop")
    idle = ["idle: from `enqueue` to the start, p50, ms", "the same, p99, ms"]
    compare(idle, take_apart, "noop")
    files = f"SQLite and a broker of files: {JOBS // 5:,} no-ops, s"
    compare([files], take_on_files, "noop")

    head("beside a transaction elsewhere", "open", "none")
    names = [f"{HELD:,} no-ops, s", "dead tuples", "table and indexes, MB", "HOT updates"]
    names.append("then: the caller has enqueued 200 more after, s")
    rows(names, [take_held(is_open=True)], [take_held(is_open=False)])

    head("", "`enqueue_many`", "a loop of `delay()`")
    many, loop = [], []
    for _ in range(ROUNDS):
        with installation():
            many.append([float(peer(OURS, "enqueue", "noop", JOBS))])
            loop.append([float(peer(BARE, "enqueue", "noop", JOBS))])
    rows([f"the caller has enqueued {JOBS:,} jobs after, s"], many, loop)
    return {}


def take(job: str, number: int) -> Figures:
    """Return the seconds that jobs took which were enqueued at once."""
    with warm() as connection:
        run_all(connection, job, number)
        return read(connection, TOOK)


def take_urgent(job: str) -> Figures:
    """Return the seconds that an urgent job waited behind others of its queue."""
    with warm() as connection:
        run_all(connection, job, JOBS // 2, "urgent", 1)
        return read(connection, URGENT)


def take_apart(job: str) -> Figures:
    """Return the median and the 99th percentile of the waits of jobs that came one by one."""
    with warm() as connection:
        peer(OURS, "apart", job, IDLE, PAUSE)
        wait(connection, LEFT)
        return read(connection, WAITED)


def take_on_files(job: str) -> Figures:
    """Return the seconds that jobs took on SQLite, with a broker of files."""
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as folder:
        settings = {
            "DATABASE_URL": f"sqlite:///{folder}/bench.db",
            "BROKER_URL": f"filesystem://{folder}/broker",
        }
        with warm(**settings) as connection:
            run_all(connection, job, JOBS // 5)
            return read(connection, TOOK_ON_SQLITE)


def take_held(*, is_open: bool) -> Figures:
    """Run many jobs while a transaction is open elsewhere, so that no row version may go.

    Return the seconds that they took, what they left in the table, and the seconds that 200 more
    keep their caller.
    """
    with warm() as connection, connect() as elsewhere:
        if is_open:
            elsewhere.execute(text("begin isolation level repeatable read"))
            elsewhere.execute(text("select count(*) from job"))
        run_all(connection, *("noop", min(HELD, 10_000)) * max(1, HELD // 10_000))
        took = read(connection, TOOK)
        time.sleep(3)  # until all connections have reported their statistics
        left = read(connection, CHURN)
        # The first of them opens the connections.
        return [*took, *left, float(peer(OURS, "enqueue", "noop", 1, "noop", 200).split()[-1])]


@contextmanager
def warm(**settings: str) -> Iterator[Connection]:
    """Yield a connection to a fresh installation, whose two processes have run jobs already."""
    with installation(**settings):
        system = json.loads(peer(OURS, "describe"))
        with connect() as connection, workers(system):
            run_all(connection, "noop", 20)
            connection.execute(text("delete from job"))
            yield connection


def run_all(connection: Connection, *jobs: object) -> None:
    """Enqueue jobs and wait for their ends. All must succeed."""
    peer(OURS, "enqueue", *jobs)
    wait(connection, LEFT)
    number = sum(one for one in jobs if isinstance(one, int))
    succeeded = connection.execute(text(SUCCEEDED)).scalar_one()
    if succeeded != number:
        raise RuntimeError(f"{number} jobs were enqueued, and {succeeded} have succeeded")


def read(connection: Connection, statement: str) -> Figures:
    return [float(value) for value in connection.execute(text(statement)).one()]


def compare(names: list[str], measure: Callable[..., Figures], job: str, *more: int) -> None:
    """Measure jobs that run together and jobs that do not, in turn."""
    together, alone = [], []
    for _ in range(ROUNDS):
        together.append(measure(job, *more))
        alone.append(measure(f"{job}_alone", *more))
    rows(names, together, alone)


def head(*titles: str) -> None:
    print(f"\n| {' | '.join(titles)} | ratio |\n|{'---|' * (len(titles) + 1)}")


def rows(names: list[str], first: list[Figures], second: list[Figures]) -> None:
    """Print a row for each name: both medians, and the median of the rounds' ratios."""
    for index, name in enumerate(names):
        pairs = [(one[index], other[index]) for one, other in zip(first, second, strict=True)]
        one, other = (median(side) for side in zip(*pairs, strict=True))
        ratio = show(median(a / b for a, b in pairs)) if all(b for _, b in pairs) else "–"
        print(f"| {name} | {show(one)} | {show(other)} | {ratio} |", flush=True)


def show(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
