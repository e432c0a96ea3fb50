"""Killing the processes of an installation, as a crash would."""

import os
import random
import signal
from contextlib import suppress

import psutil
from forking import ForkedProcess
from installations import Installation


def find_children(worker_pid: int) -> list[int]:
    """Return the pool processes of a worker: its children but for the keeper."""
    return [pid for pid, command in _children(worker_pid) if not _is_keeper(command)]


def find_keepers(worker_pid: int) -> list[int]:
    """Return the keeper of a worker, or none where it has just died."""
    return [pid for pid, command in _children(worker_pid) if _is_keeper(command)]


def _is_keeper(command: list[str]) -> bool:
    return "nightshift.celery.keeper" in command


def _children(pid: int) -> list[tuple[int, list[str]]]:
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            # A zombie has no command line.
            with suppress(psutil.NoSuchProcess):
                if command := child.cmdline():
                    found.append((child.pid, command))
    return found


def is_running(pid: int) -> bool:
    """Return whether a process is there, and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(pid: int) -> None:
    """Kill a process; one that is gone already stays so."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_something(installation: Installation, worker: ForkedProcess) -> tuple[str, ForkedProcess]:
    """Kill a child of the worker, or the worker; return which, and the worker.

    A killed worker is started again, as its supervisor would.
    """
    pool = find_children(worker.pid)
    if pool and random.random() < 0.5:
        kill(random.choice(pool))
        return "child", worker
    worker.kill()
    worker.wait()
    return "worker", installation.worker(wait=False)
