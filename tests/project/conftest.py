"""A healthy installation of the project."""

import pytest
from health import make_healthy

from tests.conftest import ROOT


@pytest.fixture
def healthy(job_app, tmp_path, monkeypatch):
    """Return the app of an installation that has nothing to say."""
    monkeypatch.chdir(ROOT)
    # A sync that succeeded has made the folder that the web server reads.
    (tmp_path / "feeds").mkdir()
    return make_healthy(job_app)
