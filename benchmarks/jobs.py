"""No-op jobs a second, beside bare Celery and other job systems, on the same servers."""

import importlib
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from benchmarks.servers import ROOT, installation, make_runtime, worker

JOBS = 5_000
OURS, BARE = "nightshift_jobs", "bare_celery"
OURS_INSERT, BARE_INSERT = "nightshift_insert", "bare_insert"
PEERS = {
    "procrastinate_app": "procrastinate",
    "rq_app": "rq",
    "dramatiq_app": "dramatiq[redis]",
    "huey_app": "huey",
}
PEERS_VENV = ROOT / "var" / "bench-peers"


def run() -> dict[str, Any]:
    """Measure and return the figures."""
    figures: dict[str, Any] = {}
    with installation():
        rates = {}
        make_table()
        # In turn, twice: the machine's mood changes within a run.
        for _ in range(2):
            for name in (OURS, BARE, OURS_INSERT, BARE_INSERT):
                rates[name] = max(rates.get(name, 0.0), rate(name, sys.executable))
        peers = peers_python()
        for name in PEERS if peers else ():
            rates[name] = rate(name, peers)
        figures |= {
            f"{name.partition('_app')[0]}, no-op jobs/s": value for name, value in rates.items()
        }
        figures["ours / bare Celery (≥ 2)"] = rates[OURS] / rates[BARE]
        figures["ours / bare Celery, each inserts a row (≥ 1.5)"] = (
            rates[OURS_INSERT] / rates[BARE_INSERT]
        )
        if "procrastinate_app" in rates:
            figures["ours / procrastinate (> 1)"] = rates[OURS] / rates["procrastinate_app"]
        figures |= enqueueing()
        figures |= urgent()
    return figures


def make_table() -> None:
    """Make the table into which jobs insert a row."""
    with make_runtime().engine.begin() as connection:
        connection.execute(
            text("create table bench (id bigint generated always as identity, number int)")
        )


def rate(name: str, python: str) -> float:
    """Enqueue no-op jobs and start two worker processes.

    Return the jobs a second between the first and the last one.
    """
    peer = (
        "import importlib, sys; peer = importlib.import_module('benchmarks.peers.' + sys.argv[1]); "
    )
    subprocess.run([python, "-c", peer + f"peer.enqueue({JOBS})", name], cwd=ROOT, check=True)
    watch = peer + (
        "import time, os\n"
        "while peer.remaining() == int(sys.argv[2]): time.sleep(0.01)\n"
        "first, began = peer.remaining(), time.perf_counter()\n"
        "while peer.remaining() > 0: time.sleep(0.05)\n"
        "print(first / (time.perf_counter() - began))"
    )
    module = subprocess.run(
        [
            python,
            "-c",
            peer + "print(chr(10).join(peer.WORKER)); print(getattr(peer, 'PROCESSES', 1))",
            name,
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    command, processes = [python, *module[:-1]], int(module[-1])
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(processes)
    ]
    try:
        watched = subprocess.run(
            [python, "-c", watch, name, str(JOBS)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(60)
    return float(watched.stdout)


def peers_python() -> str:
    """Return a Python that has the peers, or nothing when they cannot be had."""
    python = PEERS_VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS_VENV)], check=True)
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *PEERS.values(),
        "psycopg[binary]",
    ]
    if subprocess.run(install, check=False, capture_output=True).returncode:
        print("  the peers could not be installed: they are left out")
        return ""
    return str(python)


def enqueueing() -> dict[str, Any]:
    """Compare `enqueue_many` with a loop of `delay()`.

    That is: how soon the caller goes on, and when all are published.
    """
    bare = importlib.import_module(f"benchmarks.peers.{BARE}")
    ours = importlib.import_module(f"benchmarks.peers.{OURS}")
    number = 10_000
    began = time.perf_counter()
    bare.enqueue(number)
    looped = time.perf_counter() - began
    began = time.perf_counter()
    ours.enqueue(number)
    many = time.perf_counter() - began
    bare.app.control.purge()
    with worker(f"benchmarks.peers.{OURS}"):
        began = time.perf_counter()
        while ours.remaining():
            time.sleep(0.05)
        done = time.perf_counter() - began
    return {
        "delay() in a loop, 10,000 jobs, s": looped,
        "enqueue_many of 10,000 jobs, s": many,
        "enqueue_many returns sooner by, × (≥ 10)": looped / many,
        "all 10,000 published and run after, s": done,
    }


def urgent() -> dict[str, Any]:
    """Put one urgent job behind 5,000 ordinary ones of its queue."""
    from nightshift.jobs import enqueue
    from nightshift.jobs.models import Job

    ours = importlib.import_module(f"benchmarks.peers.{OURS}")
    runtime = ours.app.runtime
    with worker(f"benchmarks.peers.{OURS}"):
        ours.enqueue(5_000)
        with runtime.unit_of_work() as session:
            job_id = enqueue(session, ours.Noop(number=-1), now=runtime.now(), priority=0)
        waited = timedelta()
        while True:
            with runtime.read_only() as session:
                job = session.get_one(Job, job_id)
                if job.started_at is not None:
                    waited = job.started_at - job.created_at
                    break
            time.sleep(0.02)
        left = ours.remaining()
        while ours.remaining():
            time.sleep(0.05)
    return {
        "an urgent job behind 5,000 others started after, s (≤ 5)": waited.total_seconds(),
        "others left when it started": left,
    }
