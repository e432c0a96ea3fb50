"""A healthy installation of the project."""

from uuid import uuid4

import pytest
from health import make_healthy

from services.calendars.models import SyncRun
from tests.conftest import ROOT


@pytest.fixture
def healthy(job_app, tmp_path, monkeypatch):
    """Return the app of an installation that has nothing to say."""
    monkeypatch.chdir(ROOT)
    # A sync that succeeded has made the folder that the web server reads.
    (tmp_path / "feeds").mkdir()
    at = job_app.runtime.now()
    with job_app.runtime.unit_of_work() as session:
        session.add(SyncRun(id=uuid4(), started_at=at, finished_at=at))
    return make_healthy(job_app)
