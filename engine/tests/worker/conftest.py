"""Installations of the probe's app, each with real workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from installations import QUICK, Installation, any_installation


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.worker)


@pytest.fixture(params=["embedded", "servers"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """Yield an installation of each kind, with default settings and no worker."""
    with any_installation(request.param, "probe_app", tmp_path) as installation:
        yield installation


# RabbitMQ in `make faults` only: two minutes more.
@pytest.fixture(params=["embedded", "servers", pytest.param("rabbit", marks=pytest.mark.faults)])
def quick(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """Yield an installation of each kind that notices soon, and has no worker."""
    options = {**QUICK, "resend_after": "PT2S"}
    with any_installation(request.param, "probe_app", tmp_path, **options) as installation:
        yield installation


@pytest.fixture(scope="module", params=["embedded", "servers", "rabbit"])
def working(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Yield an installation of each kind with one worker, shared by the tests of a module."""
    folder = tmp_path_factory.mktemp(request.param)
    with any_installation(request.param, "probe_app", folder, **QUICK) as installation:
        installation.worker()
        yield installation
