"""What helps pytest-xdist, which spreads the files of tests over several processes."""

import pytest


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
