"""Jobs a second and their CPU time, beside bare Celery and other job systems, on the same servers.

Prints tables of docs/performance.md. `BENCH_JOBS` is how many jobs each system runs, `BENCH_ROUNDS`
how often; `BENCH_PYTHON` is the Python that the other systems are installed for.
"""

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import text

from benchmarks.measure import BARE, OURS, Run, connect, run_jobs
from benchmarks.servers import ROOT, installation

JOBS = int(os.environ.get("BENCH_JOBS", "10000"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
PYTHON = os.environ.get("BENCH_PYTHON", sys.executable)
FOLDER = ROOT / "var" / "bench-peers"


@dataclass(frozen=True)
class System:
    """What is measured: a module of benchmarks/peers, one of its jobs, and what it needs."""

    title: str
    module: str
    job: str = "noop"
    packages: Sequence[str] = ()
    jobs: int = JOBS


NOOP, INSERT = System("ours, no-op", OURS), System("ours, one row", OURS, "insert")
NOOP_ALONE = System("ours, no-op, `bundle=1`", OURS, "noop_alone")
INSERT_ALONE = System("ours, one row, `bundle=1`", OURS, "insert_alone")
BARE_NOOP = System("bare Celery, no-op", BARE)
BARE_INSERT = System("bare Celery, one row and its commit", BARE, "insert")
PGQUEUER = System("pgqueuer, no-op", "pgqueuer_app", packages=("pgqueuer[asyncpg]",))
OBAN = System("oban for Python, no-op", "oban_app", packages=("oban",))
# The slow ones run fewer jobs.
PROCRASTINATE = System(
    *("procrastinate, no-op", "procrastinate_app"), packages=("procrastinate",), jobs=JOBS // 5
)
GRAPHILE = System("graphile-worker (Node.js), no-op", "graphile_app", packages=("psycopg[binary]",))
OTHERS = (
    *(PGQUEUER, OBAN, GRAPHILE, PROCRASTINATE),
    System("dramatiq, no-op", "dramatiq_app", packages=("dramatiq[redis]",)),
    System("huey, no-op", "huey_app", packages=("huey", "redis")),
    System("rq, no-op", "rq_app", packages=("rq",), jobs=JOBS // 20),
)
CELERY = (BARE_NOOP, NOOP, NOOP_ALONE, BARE_INSERT, INSERT, INSERT_ALONE)

# What was promised: the first's rate against the second's.
RATIOS = (
    ("no-op against bare Celery's", NOOP, BARE_NOOP, "≥ 3"),
    ("one row against bare Celery's, with its commit", INSERT, BARE_INSERT, "≥ 2"),
    ("no-op with `bundle=1` against bare Celery's", NOOP_ALONE, BARE_NOOP, "≥ 0.5"),
    ("one row with `bundle=1` against bare Celery's", INSERT_ALONE, BARE_INSERT, "≥ 0.7"),
    ("no-op against pgqueuer's", NOOP, PGQUEUER, "≥ 1"),
    ("no-op against oban's", NOOP, OBAN, "≥ 2"),
    ("no-op against procrastinate's", NOOP, PROCRASTINATE, "≥ 5"),
)


def run() -> dict[str, Any]:
    """Measure in turn, several times, and print medians: the machine's mood changes."""
    python = make_python()
    systems = [*CELERY, *(one for one in OTHERS if install(one, python))]
    runs: dict[System, list[Run]] = defaultdict(list)
    for _ in range(ROUNDS):
        for system in list(systems):
            try:
                runs[system].append(measure(system, python))
                print(f"  {system.title}: {runs[system][-1].rate:,.0f} jobs/s", flush=True)
            except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
                if system in CELERY:
                    raise
                leave_out(system, error)
                systems.remove(system)
                del runs[system]
    print_rates(runs)
    print_ratios(runs)
    return {}


def measure(system: System, python: str) -> Run:
    """Run the jobs in a database and a Redis of their own."""
    with installation():
        with connect() as connection:
            connection.execute(
                text("create table bench (id bigint generated always as identity, number int)")
            )
        return run_jobs(
            system.module,
            system.job,
            system.jobs,
            python if system in OTHERS else sys.executable,
        )


def print_rates(runs: dict[System, list[Run]]) -> None:
    """Print a row for each system."""
    print("\n| | jobs/s | lowest to highest | CPU a job, ms: workers | Postgres | Redis | all |")
    print("|---|---|---|---|---|---|---|")
    for system, its in runs.items():
        rates = [one.rate for one in its]
        costs = (
            f"{median(getattr(one, name) for one in its):.2f}"
            for name in ("workers", "postgres", "redis", "cpu")
        )
        print(
            f"| {system.title} | {median(rates):,.0f} | {min(rates):,.0f}–{max(rates):,.0f} |",
            " | ".join(costs),
            "|",
        )


def print_ratios(runs: dict[System, list[Run]]) -> None:
    """Print the ratios, each the median of the rounds' own, beside what was promised."""
    print("\n| | measured | target |\n|---|---|---|")
    for title, ours, other, target in RATIOS:
        if other in runs:
            pairs = zip(runs[ours], runs[other], strict=True)
            print(f"| {title} | {median(a.rate / b.rate for a, b in pairs):.2f} | {target} |")
    for title, ours, other, most in (
        ("CPU of a no-op", NOOP, BARE_NOOP, "0.5"),
        ("CPU of one row", INSERT, BARE_INSERT, "1.8"),
    ):
        cpu = median(one.cpu for one in runs[ours])
        ratio = median(a.cpu / b.cpu for a, b in zip(runs[ours], runs[other], strict=True))
        print(f"| {title}, ms | {cpu:.2f} | ≤ {most}, or: |")
        print(f"| … against bare Celery's | {ratio:.2f} | ≤ 0.4 |")


def make_python() -> str:
    """Return the Python of a virtual environment for the other systems."""
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.check_output([PYTHON, "-c", show], text=True).strip()
    print(f"  log level WARNING; ours in Python {sys.version.split()[0]}, the others in {version}")
    folder = FOLDER / version
    if not folder.exists():
        subprocess.run([PYTHON, "-m", "venv", str(folder)], check=True)
    return str(folder / "bin" / "python")


def install(system: System, python: str) -> bool:
    """Install a system, and return whether it can be had."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([*pip, *system.packages], check=True, capture_output=True, text=True)
        if system is GRAPHILE:
            npm = shutil.which("npm") or "npm"
            subprocess.run(
                [npm, "install", "--silent", "--prefix", str(FOLDER / "node"), "graphile-worker"],
                check=True,
                capture_output=True,
                text=True,
            )
    except (OSError, subprocess.CalledProcessError) as error:
        leave_out(system, error)
        return False
    return True


def leave_out(system: System, error: Exception) -> None:
    """Say that a system is missing in the tables, and why."""
    output = (getattr(error, "stderr", None) or "").strip().splitlines()
    print(f"  LEFT OUT: {system.title}: {output[-1] if output else error}", flush=True)
