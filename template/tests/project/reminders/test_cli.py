"""`celery -A project reminders …`, on an installation of the test's own."""

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from nightshift.jobs.models import Job
from sqlalchemy import select

from project.reminders.cli import reminders


@pytest.fixture
def run(job_app):
    """Return a function that runs a command on the test's installation."""

    def call(*words):
        return CliRunner().invoke(reminders, words, obj=SimpleNamespace(app=job_app))

    return call


def test_added_reminder_is_listed(run):
    added = run("add", "anna@shop.example", "Order paper", "--at", "2026-12-01T08:00")

    [row] = json.loads(run("list", "--json").stdout)
    assert row == {
        "id": int(added.stdout),
        "address": "anna@shop.example",
        "text": "Order paper",
        "due_at": "2026-12-01T08:00:00Z",
        "mailed_at": None,
    }


def test_job_waits_until_the_reminder_is_due(run, job_app):
    run("add", "anna@shop.example", "Order paper", "--at", "2126-12-01T08:00")

    with job_app.runtime.read_only() as session:
        job = session.execute(select(Job)).scalar_one()
    assert (job.kind, job.state, job.run_at.year) == ("reminders.send", "scheduled", 2126)


def test_refusal_is_one_line(run):
    refused = run("add", "anna", "Order paper")

    assert refused.exit_code == 2
    assert refused.stderr.startswith("'anna' is not a mail address: ")
    assert refused.stderr.count("\n") == 1
