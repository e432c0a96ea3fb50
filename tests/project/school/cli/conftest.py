"""`celery -A project school`, in the test's process."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from project.school.cli import school


@pytest.fixture
def run(job_app):
    """Return a function that runs a command and returns its exit code and output."""

    def call(*words, given=None):
        context = SimpleNamespace(app=job_app)
        result = CliRunner().invoke(school, words, input=given, obj=context)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return call
