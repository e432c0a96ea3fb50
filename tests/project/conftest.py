"""A healthy installation of the project."""

from uuid import uuid4

import pytest
from health import make_healthy
from nightshift.database import Base
from sqlalchemy import insert

from tests.conftest import ROOT


@pytest.fixture
def healthy(job_app, tmp_path, monkeypatch):
    """Return the app of an installation that has nothing to say."""
    monkeypatch.chdir(ROOT)
    # A sync that succeeded has made the folder that the web server reads.
    (tmp_path / "feeds").mkdir()
    app, at = make_healthy(job_app), job_app.runtime.now()
    # Where the project has the table, its record says which run was good.
    record = Base.metadata.tables.get("sync_run")
    if record is not None:
        with app.runtime.unit_of_work() as session:
            session.execute(insert(record).values(id=uuid4(), started_at=at, finished_at=at))
    return app
