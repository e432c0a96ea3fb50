"""How many processes a worker has where WORKER_CONCURRENCY is `auto`.

Celery's own `auto` follows the CPU limit. On a machine with many cores and a small memory limit,
the kernel would kill processes, and with them running jobs.
"""

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
from celery.utils.sysinfo import cpu_budget, is_auto_concurrency

logger = logging.getLogger(__name__)

# Bytes of the main process and its keeper, and of a process that builds large feeds: measured 162
# MiB. One that grows to `worker_max_memory_per_child` is replaced.
A_WORKER, A_PROCESS = 150 << 20, 200 << 20

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def size_worker(worker: Any) -> None:
    """Set the number of a worker's processes where its settings say `auto`."""
    if not is_auto_concurrency(worker.concurrency):
        return
    cores, limit = cpu_budget().count, find_memory_limit()
    worker.concurrency = count_processes(cores, limit)
    if worker.concurrency < cores:
        logger.warning(
            "%d processes and not %d: the memory limit is %d MiB, and each may take %d",
            worker.concurrency,
            cores,
            limit >> 20,
            A_PROCESS >> 20,
        )


def count_processes(cores: int, memory: int) -> int:
    """Return how many processes fit both limits; at least one."""
    return max(1, min(cores, (memory - A_WORKER) // A_PROCESS))


def find_memory_limit(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Return the bytes that this process's cgroup, or else the machine, may use."""
    limits = [int(psutil.virtual_memory().total)]
    for file in _limit_files(cgroups, own):
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:  # not in this version, or not seen from inside of a container
            continue
        if text.isdecimal():  # `max` is no limit
            limits.append(int(text))
    return min(limits)


def _limit_files(cgroups: Path, own: Path) -> Iterator[Path]:
    """Yield the files with the limits of this process's cgroup and of those around it."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        folders = [PurePosixPath(path), *PurePosixPath(path).parents]
        if controllers in ("", "memory"):
            name = "memory.max" if controllers == "" else "memory.limit_in_bytes"
            root = cgroups / controllers
            yield from (root / folder.relative_to("/") / name for folder in folders)
