"""A healthy installation of the probe's app."""

import pytest
from health import ALEMBIC, make_healthy


@pytest.fixture
def engine_folder(tmp_path, monkeypatch):
    """Make the current folder that of a project with the engine's migrations alone."""
    (tmp_path / "alembic.ini").write_text(ALEMBIC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def healthy(job_app, engine_folder):
    """Return the app of an installation that has nothing to say."""
    return make_healthy(job_app)
