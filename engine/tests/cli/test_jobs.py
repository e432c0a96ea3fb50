"""`celery -A project jobs …`. No broker is needed: what is enqueued here stays in the ledger."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nightshift.cli.jobs import jobs
from nightshift.component import Duty
from nightshift.jobs import enqueue
from nightshift.jobs.jobs import PruneJobs
from nightshift.jobs.models import Job, JobLog, JobState
from sqlalchemy import select, update
from two_queues import Interrupt, Post

TESTS = Path(__file__).parent.parent


@pytest.fixture
def put(job_app):
    """Return what writes a job, with columns of the test's choice, and returns its id."""

    def put(args=None, **columns):
        # A transaction without `unit_of_work`, so that nothing is sent.
        with job_app.runtime.read_only() as session, session.begin():
            job_id = enqueue(session, args or PruneJobs(), now=datetime.now(UTC))
            if columns:
                session.execute(update(Job).where(Job.id == job_id).values(columns))
        return job_id

    return put


@pytest.fixture
def state(job_app):
    """Return what reads a job's state."""

    def state(job_id):
        with job_app.runtime.read_only() as session:
            return session.execute(select(Job.state).where(Job.id == job_id)).scalar_one()

    return state


@pytest.fixture
def read(run):
    """Return what runs a command with --json and returns what it says."""

    def read(*words):
        return json.loads(run(jobs, *words, "--json").stdout)

    return read


def failed(days=0):
    finished = datetime.now(UTC) - timedelta(days=days)
    errors = [
        {
            "attempt": 1,
            "at": finished.isoformat(),
            "type": "Boom",
            "message": "[red] no",
            "traceback": "Traceback [/]",
        }
    ]
    return {"state": JobState.FAILED, "finished_at": finished, "unique_key": None, "errors": errors}


def test_list_filters_and_shows_what_matters(run, read, put):
    job_id, other = put(**failed()), put(Post())

    assert {row["id"] for row in read("list")} == {str(job_id), str(other)}
    assert [row["id"] for row in read("list", "--queue", "post")] == [str(other)]
    assert [row["id"] for row in read("list", "--state", "failed", "--kind", "jobs.prune")] == [
        str(job_id)
    ]
    assert len(read("list", "--limit", "1")) == 1
    table = run(jobs, "list").stdout
    assert job_id.hex[:8] in table
    assert "Boom: [red] no" in table


def test_show_by_the_first_digits(job_app, run, read, put):
    parent = put(Post(), children=1, started_at=datetime(2020, 1, 1, tzinfo=UTC))
    job_id = put(**failed(), parent_id=parent, progress_done=3, progress_total=4)
    with job_app.runtime.read_only() as session, session.begin():
        session.add(JobLog(job_id=job_id, attempt=1, at=datetime.now(UTC), line="a [line]"))

    shown = read("show", str(job_id)[:12])
    assert (shown["id"], shown["progress_done"], shown["log"][0]["line"]) == (
        str(job_id),
        3,
        "a [line]",
    )
    assert (shown["parent"]["id"], shown["errors"][0]["type"]) == (str(parent), "Boom")
    page = run(jobs, "show", str(job_id)).stdout
    for part in ("Boom: [red] no", "Traceback [/]", "a [line]", parent.hex[:8]):
        assert part in page
    assert "1 failed" in run(jobs, "show", str(parent)).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "ffff"], "no job's id begins with ffff"),
        (["cancel", "ffff"], "no job's id begins with ffff"),
        (["list", "--kind", "jobs.prnue"], "there is no kind 'jobs.prnue'"),
        (["pause", "psot"], "there is no queue 'psot'; there are: default, post"),
        (["resume", "psot"], "there is no queue 'psot'"),
        (["clear", "--queue", "psot"], "there is no queue 'psot'"),
        (["retry-failed", "jobs.prnue"], "there is no kind 'jobs.prnue'"),
        (["work-off", "--queue", "psot"], "there is no queue 'psot'"),
    ],
)
def test_what_does_not_exist_is_named(run, words, message):
    assert message in run(jobs, *words, code=1).stderr


def test_what_cannot_be_an_id_is_said(run):
    assert "'xyz' is not the id of any job" in run(jobs, "show", "xyz", code=2).stderr


def test_queue_that_only_the_ledger_knows_may_be_named(run, put, state):
    job_id = put(queue="gone")

    assert run(jobs, "clear", "--queue", "gone").stdout == "1 jobs cancelled\n"
    assert state(job_id) == "cancelled"


def test_cancel_hold_release_and_retry(run, put, state):
    job_id = put()

    for command, then in (
        ("hold", "held"),
        ("release", "queued"),
        ("cancel", "cancelled"),
        ("retry", "scheduled"),
    ):
        run(jobs, command, str(job_id))
        assert state(job_id) == then


def test_one_refusal_does_not_stop_the_others(run, put):
    ended, waiting = put(**failed()), put()

    result = run(jobs, "cancel", str(ended), str(waiting), code=1)

    assert result.stderr == f"job {ended} is failed: not cancelled\n"
    assert result.stdout == f"{waiting} cancelled\n"


def test_retry_onto_a_taken_key_names_its_holder(run, put):
    ended, holder = put(**failed()), put()

    assert f"job {holder} has its unique key" in run(jobs, "retry", str(ended), code=1).stderr
    assert run(jobs, "retry-failed", "jobs.prune").stdout == "0 jobs scheduled\n"
    run(jobs, "cancel", str(holder))
    assert run(jobs, "retry-failed", "jobs.prune").stdout == "1 jobs scheduled\n"


def test_pause_and_resume(run, read):
    assert run(jobs, "pause", "post").stdout == "post is paused\n"
    assert run(jobs, "pause", "post").stdout == "post was paused already\n"
    assert [queue["queue"] for queue in read("stats")["queues"] if queue["paused_at"]] == ["post"]
    assert run(jobs, "resume", "post").stdout == "post is resumed\n"
    assert run(jobs, "resume", "post").stdout == "post was not paused\n"


def test_clear(run, put, state):
    job_id, other = put(), put(Post())

    assert run(jobs, "clear", "--queue", "default").stdout == "1 jobs cancelled\n"
    assert (state(job_id), state(other)) == ("cancelled", "queued")
    assert "--queue or --kind" in run(jobs, "clear", code=2).stderr


def test_prune_deletes_by_the_settings(run, read, put):
    old, young = put(**failed(days=4)), put(**failed(days=2))

    assert run(jobs, "prune").stdout == "1 jobs deleted\n"
    assert [row["id"] for row in read("list")] == [str(young)]
    assert old != young


def test_work_off_runs_what_is_due_and_nothing_else(run, put, state):
    unknown = put(kind="gone.with_its_code", unique_key=None)
    later = put(
        unique_key=None, state=JobState.SCHEDULED, run_at=datetime.now(UTC) + timedelta(hours=1)
    )
    due = put()
    run(jobs, "pause", "post")
    paused = put(Post(), unique_key=None)

    result = run(jobs, "work-off", code=1)

    assert (state(due), state(later), state(paused)) == ("succeeded", "scheduled", "queued")
    assert str(unknown) in result.stderr
    assert run(jobs, "work-off", "--queue", "post").stdout == ""


def test_work_off_that_is_interrupted_gives_its_job_back(run, put, state):
    due = put(Interrupt())

    run(jobs, "work-off", code=1)
    assert state(due) == "scheduled"

    run(jobs, "work-off")
    assert state(due) == "succeeded"


def test_half_a_character_is_shown_as_something_else(run, read, put):
    errors = [{**failed()["errors"][0], "message": "no \udcff"}]
    job_id = put(**{**failed(), "errors": errors})

    assert "Boom: no ?" in run(jobs, "list").stdout
    assert "Boom: no ?" in run(jobs, "show", str(job_id)).stdout
    assert read("list")[0]["errors"][0]["message"] == "no ?"


def test_stats_as_table(run, put):
    put()

    out = run(jobs, "stats").stdout

    assert "jobs.prune" in out
    assert "oldest due seconds" in out


def test_as_a_command_of_celery(put):
    put()
    words = ["jobs", "stats", "--json", "--watch"]
    command = [sys.executable, "-m", "celery", "-A", "two_queues", *words]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}

    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(2)
        assert (process.wait(100), process.stderr.read()) == (0, b"")

    assert [line["counts"][0]["kind"] for line in lines] == ["jobs.prune", "jobs.prune"]


def test_reader_that_goes_away_ends_a_command_quietly(put):
    for _ in range(20):
        put(Post())
    command = [sys.executable, "-m", "celery", "-A", "two_queues", "jobs", "list", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}

    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_work_off_performs_the_duties_and_runs_what_they_enqueue(run, job_app, monkeypatch):
    made = []

    def enqueue_once(runtime):
        if not made:
            with runtime.unit_of_work() as session:
                delay = timedelta(seconds=1)
                made.append(enqueue(session, PruneJobs(), now=datetime.now(UTC), delay=delay))

    monkeypatch.setattr(job_app.composition, "duties", [Duty("once", enqueue_once)])

    assert f"{run(jobs, 'work-off').stdout}".startswith(f"{made[0]}  jobs.prune  succeeded")


def test_duty_that_fails_stops_no_job_and_is_named(run, job_app, put, state, monkeypatch):
    def broken(_runtime):
        raise RuntimeError("out of order")

    monkeypatch.setattr(job_app.composition, "duties", [Duty("broken", broken)])
    due = put()

    assert "broken: out of order" in run(jobs, "work-off", code=1).stderr
    assert state(due) == "succeeded"
