"""What makes the tests fast: in several processes, by pytest-xdist, and with quick starts."""

import os
import runpy
from pathlib import Path

import pytest

STARTING = Path(__file__).parent / "starting"


def start_quickly() -> None:
    """Let this process, and all that the tests start, seldom look for garbage."""
    paths = [str(STARTING), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    runpy.run_path(str(STARTING / "sitecustomize.py"))


def begin_with_waiting(items: list[pytest.Item]) -> None:
    """Put the files first that wait most: they take longest, and leave the cores to others.

    A test with RabbitMQ has time to wait for one in another process: its queues have one name for
    all.
    """
    items.sort(key=lambda item: item.get_closest_marker("worker") is None)
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "rabbit" in parameters.values():
            item.add_marker(pytest.mark.timeout(600))
