"""`celery -A project schedule`."""

import json
from datetime import UTC, datetime

import pytest
from nightshift.cli.schedule import schedule
from nightshift.jobs import enqueue
from nightshift.jobs.jobs import PruneJobs
from nightshift.jobs.models import ScheduleEntry
from nightshift.jobs.schedule import pause_entry, register_entries
from nightshift.testing import run_due


@pytest.fixture
def read(run):
    """Return what reads the entries by their names."""

    def read():
        return {row["entry"]: row for row in json.loads(run(schedule, "--json").stdout)}

    return read


def test_entries_of_all_components_are_shown_with_their_rules(read):
    rows = read()

    told = ("kind", "when", "zone", "missed")
    assert {name: [row[column] for column in told] for name, row in rows.items()} == {
        "jobs.prune": ["jobs.prune", "17 3 * * *", "UTC", "latest"],
        "post.send": ["post.send", "every 6:00:00", "UTC", "all within 1 day, 0:00:00"],
    }


def test_entry_that_never_ran_has_only_a_next_run(read):
    row = read()["jobs.prune"]

    assert datetime.fromisoformat(row["next_run"]) > datetime.now(UTC)
    assert (row["last_run"], row["last_state"], row["last_success"]) == (None, None, None)


def test_last_run_and_last_success_are_shown(read, job_app):
    with job_app.runtime.unit_of_work() as session:
        enqueue(session, PruneJobs(), now=job_app.runtime.now())
    run_due(job_app)

    row = read()["jobs.prune"]

    assert (row["last_state"], row["last_run"] <= row["last_success"]) == ("succeeded", True)


def test_paused_entry_says_since_when_and_each_says_in_words_when_it_is_due(read, job_app):
    with job_app.runtime.unit_of_work() as session:
        pause_entry(session, "post.send", now=job_app.runtime.now())

    rows = read()

    assert rows["jobs.prune"]["paused_at"] is None
    assert datetime.fromisoformat(rows["post.send"]["paused_at"]) <= datetime.now(UTC)
    assert rows["jobs.prune"]["in_words"] == "every day at 03:17"
    assert rows["post.send"]["in_words"] == "every 6 hours"


def test_table_names_the_entries(run):
    shown = run(schedule).stdout

    assert "jobs.prune" in shown
    assert "post.send" in shown


def test_missing_beat_is_said(run, job_app):
    assert "celery -A project beat" in run(schedule).stderr

    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        register_entries(session, job_app.composition.schedule(runtime), now=runtime.now())

    assert run(schedule).stderr == ""


def test_entry_of_another_release_is_not_shown(run, read, job_app):
    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        register_entries(session, job_app.composition.schedule(runtime), now=runtime.now())
        session.add(ScheduleEntry(entry="theirs", last_fire_at=runtime.now()))

    assert "theirs" not in read()
    assert run(schedule).stderr == ""
