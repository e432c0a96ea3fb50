"""Installations of the project with real workers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from installations import Installation

from tests import installing

Install = Callable[..., AbstractContextManager[Installation]]


@pytest.fixture(scope="session")
def install() -> Install:
    """Return a function that makes an installation: `with install(kind, folder, **settings)`."""
    return installing.install


@pytest.fixture(params=["embedded", "servers"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """Yield a fresh installation of each kind."""
    with installing.install(request.param, tmp_path) as installation:
        yield installation


@pytest.fixture(scope="module", params=["embedded", "servers", "rabbit"])
def working(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Yield an installation of each kind with one worker, shared by the tests of a module."""
    folder = tmp_path_factory.mktemp(request.param)
    with installing.install(request.param, folder) as installation:
        installation.worker()
        yield installation
