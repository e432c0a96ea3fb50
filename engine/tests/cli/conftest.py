"""The commands, on an SQLite database of the test's own, and jobs of two queues."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from two_queues import app


@pytest.fixture(scope="session")
def project_app():
    """Return an app with a second queue."""
    return app


@pytest.fixture
def job_environment(tmp_path):
    return {"JOBS_KEEP_FAILED": "P3D"}


@pytest.fixture
def run(job_app):
    """Return what runs a command and returns its result.

    `code` is the exit code that it asserts, or None for any.
    """

    def run(command, *words, code=0):
        result = CliRunner().invoke(command, words, obj=SimpleNamespace(app=job_app))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert code in (result.exit_code, None), result.output
        return result

    return run
