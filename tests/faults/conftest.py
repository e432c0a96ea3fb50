"""The long runs: `make faults`."""

import random
import subprocess

import pytest

from tests.worker.conftest import Installation


def children(pid: int) -> list[int]:
    """Return the pool processes of a worker: its children but for the keeper."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "celery"], capture_output=True, check=False, text=True).stdout.split()
    return [int(child) for child in found]


def kill(pid: int) -> None:
    """Kill a process as a crash would."""
    subprocess.run(["kill", "-9", str(pid)], check=False)


def kill_something(installation: Installation, worker: subprocess.Popen[bytes]) -> tuple[str, subprocess.Popen[bytes]]:
    """Kill a child of the worker, or the worker, which is then started again as its supervisor would. Return what and the worker."""
    pool = children(worker.pid)
    if pool and random.random() < 0.5:
        kill(random.choice(pool))
        return "child", worker
    worker.kill()
    worker.wait()
    return "worker", installation.worker(wait=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/faults/" in str(item.path):
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.timeout(3000))
