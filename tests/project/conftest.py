"""A healthy installation of the project."""

from uuid import uuid4

import pytest
from health import make_healthy
from nightshift.database import Base
from sqlalchemy import delete, insert

from tests.conftest import ROOT


@pytest.fixture
def record_good_sync():
    """Return a function that records a good sync, where the project has a table for its runs."""
    record = Base.metadata.tables.get("sync_run")

    def write(app):
        at = app.runtime.now()
        if record is not None:
            with app.runtime.unit_of_work() as session:
                session.execute(delete(record))
                session.execute(insert(record).values(id=uuid4(), started_at=at, finished_at=at))

    return write


@pytest.fixture
def healthy(job_app, record_good_sync, tmp_path, monkeypatch):
    """Return the app of an installation that has nothing to say."""
    monkeypatch.chdir(ROOT)
    # A sync that succeeded has made the folder that the web server reads.
    (tmp_path / "feeds").mkdir()
    app = make_healthy(job_app)
    record_good_sync(app)
    return app
