"""An installation on each kind of database, whose jobs the test runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nightshift.celery.app import App
from nightshift.runtime import Runtime
from sqlalchemy import Engine

from tests.conftest import COMPOSITION
from tests.services.calendars.conftest import Calendars, empty


@pytest.fixture
def installed(engine: Engine, tmp_path: Path) -> Iterator[Calendars]:
    """Yield an installation without a school."""
    app = App(
        "project.celery",
        COMPOSITION,
        _env_file=None,
        database_url=engine.url.render_as_string(hide_password=False),
        broker_url=f"filesystem://{tmp_path / 'broker'}",
        feed_store=str(tmp_path / "feeds"),
        school_name="Kantonsschule",
        feed_days_past="10000",
        feed_days_ahead="10000",
    )
    app.runtime.publisher = None
    calendars = Calendars(app)
    try:
        yield calendars
    finally:
        empty(calendars)
        app.runtime.close()


@pytest.fixture
def runtime(installed: Calendars) -> Runtime:
    """Return the installation's runtime."""
    return installed.runtime
