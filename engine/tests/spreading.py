"""Which tests stay in one process when pytest-xdist spreads them over several."""

import pytest

# Wider than a test, and made again in every process that needs it.
SHARED = {"class", "module", "package"}


def spread(items: list[pytest.Item]) -> None:
    """Keep tests together that share a fixture or RabbitMQ, and put those first that wait most.

    Every other test may run in any process: it shares no more than a database that it leaves as it
    was, and each process has its own.
    """
    for item in items:
        group = _find_group(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
        if group == "rabbitmq":
            # It may wait for a test of another run: RabbitMQ's queues have one name for all.
            item.add_marker(pytest.mark.timeout(600))
    items.sort(key=lambda item: item.get_closest_marker("worker") is None)


def _find_group(item: pytest.Item) -> str | None:
    if item.get_closest_marker("xdist_group"):
        return None  # the test names its own
    names = getattr(item, "fixturenames", ())
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "rabbit" in names or "rabbit" in parameters.values():
        return "rabbitmq"
    found = item._fixtureinfo.name2fixturedefs if names else {}
    shared = [name for name in names if any(one.scope in SHARED for one in found.get(name, ()))]
    if not shared:
        return None
    chosen = [str(parameters[name]) for name in shared if name in parameters]
    return "-".join([item.path.name, *chosen])
