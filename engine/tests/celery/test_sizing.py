"""How many processes a worker has by itself."""

from types import SimpleNamespace

import psutil
import pytest
from nightshift.celery import sizing

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cores", "memory", "processes"),
    [(2, 2 * GIB, 2), (32, 2 * GIB, 9), (8, 256 << 20, 1), (1, 64 * GIB, 1), (4, GIB, 4)],
)
def test_processes_fit_cores_and_memory(cores, memory, processes):
    assert sizing.count_processes(cores, memory) == processes


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "2000"}, 2000),
        ("0::/a/b\n", {"a/b/memory.max": "500", "a/memory.max": "2000"}, 500),
        ("9:memory:/a\n3:cpu:/b\n", {"memory/a/memory.limit_in_bytes": "700"}, 700),
        ("9:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/../outside\n", {}, None),
        ("", {}, None),
    ],
)
def test_limit_is_that_of_the_cgroup_or_of_the_machine(tmp_path, own, files, limit):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    found = sizing.find_memory_limit(tmp_path / "cgroup", tmp_path / "own")

    assert found == (limit or psutil.virtual_memory().total)


def test_number_that_was_named_stays():
    worker = SimpleNamespace(concurrency=40)
    sizing.size_worker(worker)

    assert worker.concurrency == 40
