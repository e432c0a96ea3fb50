"""`jobs` and `schedule`, on an SQLite database of the test's own. No broker is needed: what is enqueued here is left in the ledger."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock
from uuid import UUID

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update

from project.bootstrap import bootstrap
from project.cli.jobs import jobs
from project.cli.schedule import schedule
from services.calendars.jobs import SyncCalendars
from services.database import Base
from services.jobs import enqueue
from services.jobs.jobs import PruneJobs
from services.jobs.models import Job, JobLog, JobState

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def environment(tmp_path):
    return {
        "DATABASE_URL": f"sqlite:///{tmp_path}/nightshift.db",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
        "FEED_STORE": f"{tmp_path}/feeds",
        "JOBS_KEEP_FAILED": "P3D",
    }


@pytest.fixture
def boot(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bootstrap.cache_clear()
    Base.metadata.create_all(bootstrap().engine)
    yield bootstrap()
    bootstrap().disconnect()
    bootstrap.cache_clear()


def run(*arguments, command=jobs, code=0):
    result = CliRunner().invoke(command, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def read(*arguments, command=jobs):
    return json.loads(run(*arguments, "--json", command=command).stdout)


def put(boot, args=None, **columns) -> UUID:
    with boot.read_only() as session, session.begin():
        # A transaction without `unit_of_work`, so that nothing is sent.
        job_id = enqueue(session, args or PruneJobs(), now=datetime.now(UTC))
        if columns:
            session.execute(update(Job).where(Job.id == job_id).values(columns))
    return job_id


def state(boot, job_id):
    with boot.read_only() as session:
        return session.execute(select(Job.state).where(Job.id == job_id)).scalar_one()


def failed(days=0):
    finished = datetime.now(UTC) - timedelta(days=days)
    errors = [{"attempt": 1, "at": finished.isoformat(), "type": "Boom", "message": "[red] no", "traceback": "Traceback [/]"}]
    return {"state": JobState.FAILED, "finished_at": finished, "unique_key": None, "errors": errors}


def test_list_filters_and_shows_what_matters(boot):
    job_id, other = put(boot, **failed()), put(boot, SyncCalendars())
    assert {row["id"] for row in read("list")} == {str(job_id), str(other)}
    assert [row["id"] for row in read("list", "--queue", "calendars")] == [str(other)]
    assert [row["id"] for row in read("list", "--state", "failed", "--kind", "jobs.prune")] == [str(job_id)]
    assert len(read("list", "--limit", "1")) == 1
    table = run("list").stdout
    assert job_id.hex[:8] in table
    assert "Boom: [red] no" in table


def test_show_by_the_first_digits(boot):
    parent = put(boot, SyncCalendars())
    job_id = put(boot, **failed(), parent_id=parent, progress_done=3, progress_total=4)
    with boot.read_only() as session, session.begin():
        session.add(JobLog(job_id=job_id, attempt=1, at=datetime.now(UTC), line="a [line]"))
    shown = read("show", str(job_id)[:12])
    assert (shown["id"], shown["progress_done"], shown["log"][0]["line"]) == (str(job_id), 3, "a [line]")
    assert (shown["parent"]["id"], shown["errors"][0]["type"]) == (str(parent), "Boom")
    page = run("show", str(job_id)).stdout
    for part in ("Boom: [red] no", "Traceback [/]", "a [line]", parent.hex[:8]):
        assert part in page
    assert "1 failed" in run("show", str(parent)).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "ffff"], "no job's id begins with ffff"),
        (["show", "xyz"], "'xyz' is no job's id"),
        (["cancel", "ffff"], "no job's id begins with ffff"),
        (["list", "--kind", "jobs.prnue"], "there is no kind 'jobs.prnue'"),
        (["pause", "mial"], "there is no queue 'mial'; there are: default, calendars, mail"),
        (["resume", "mial"], "there is no queue 'mial'"),
        (["clear", "--queue", "mial"], "there is no queue 'mial'"),
        (["retry-failed", "jobs.prnue"], "there is no kind 'jobs.prnue'"),
        (["work-off", "--queue", "mial"], "there is no queue 'mial'"),
    ],
)
def test_what_does_not_exist_is_named(boot, arguments, message):
    assert message in run(*arguments, code=1).stderr


def test_cancel_hold_release_and_retry(boot):
    job_id = put(boot)
    for command, then in (("hold", "held"), ("release", "queued"), ("cancel", "cancelled"), ("retry", "scheduled")):
        run(command, str(job_id))
        assert state(boot, job_id) == then


def test_one_refusal_does_not_stop_the_others(boot):
    ended, waiting = put(boot, **failed()), put(boot)
    result = run("cancel", str(ended), str(waiting), code=1)
    assert result.stderr == f"job {ended} is failed: not cancelled\n"
    assert result.stdout == f"{waiting} cancelled\n"


def test_retry_onto_a_taken_key_names_its_holder(boot):
    ended, holder = put(boot, **failed()), put(boot)
    assert f"job {holder} has its unique key" in run("retry", str(ended), code=1).stderr
    assert run("retry-failed", "jobs.prune").stdout == "0 jobs scheduled\n"
    run("cancel", str(holder))
    assert run("retry-failed", "jobs.prune").stdout == "1 jobs scheduled\n"


def test_pause_and_resume(boot):
    assert run("pause", "mail").stdout == "mail is paused\n"
    assert run("pause", "mail").stdout == "mail was paused already\n"
    assert [queue["queue"] for queue in read("stats")["queues"] if queue["paused_at"]] == ["mail"]
    assert run("resume", "mail").stdout == "mail is resumed\n"
    assert run("resume", "mail").stdout == "mail was not paused\n"


def test_clear(boot):
    job_id, other = put(boot), put(boot, SyncCalendars())
    assert run("clear", "--queue", "default").stdout == "1 jobs cancelled\n"
    assert (state(boot, job_id), state(boot, other)) == ("cancelled", "queued")
    assert "--queue or --kind" in run("clear", code=2).stderr


def test_prune_deletes_by_the_settings(boot):
    old, young = put(boot, **failed(days=4)), put(boot, **failed(days=2))
    assert run("prune").stdout == "1 jobs deleted\n"
    assert [row["id"] for row in read("list")] == [str(young)]
    assert old != young


def test_work_off_runs_what_is_due_and_nothing_else(boot):
    unknown = put(boot, kind="gone.with_its_code", unique_key=None)
    later = put(boot, unique_key=None, state=JobState.SCHEDULED, run_at=datetime.now(UTC) + timedelta(hours=1))
    due = put(boot)
    run("pause", "calendars")
    paused = put(boot, SyncCalendars(), unique_key=None)
    result = run("work-off", code=1)
    assert (state(boot, due), state(boot, later), state(boot, paused)) == ("succeeded", "scheduled", "queued")
    assert str(unknown) in result.stderr
    assert run("work-off", "--queue", "mail").stdout == ""


def test_work_off_that_is_interrupted_gives_its_job_back(boot, monkeypatch):
    due = put(boot)
    with monkeypatch.context() as patch:
        patch.setattr("services.jobs.care.prune_all", Mock(side_effect=KeyboardInterrupt))
        run("work-off", code=1)
    assert state(boot, due) == "scheduled"
    run("work-off")
    assert state(boot, due) == "succeeded"


def test_half_a_character_is_shown_as_something_else(boot):
    errors = [{**failed()["errors"][0], "message": "no \udcff"}]
    job_id = put(boot, **{**failed(), "errors": errors})
    assert "Boom: no ?" in run("list").stdout
    assert "Boom: no ?" in run("show", str(job_id)).stdout
    assert read("list")[0]["errors"][0]["message"] == "no ?"


def test_stats_as_table(boot):
    put(boot)
    out = run("stats").stdout
    assert "jobs.prune" in out
    assert "oldest_due_seconds" in out


def test_schedule_shows_last_and_next(boot):
    rows = {row["entry"]: row for row in read(command=schedule)}
    assert rows["jobs.prune"]["when"] == "17 3 * * *"
    assert datetime.fromisoformat(rows["jobs.prune"]["next_run"]) > datetime.now(UTC)
    assert (rows["jobs.prune"]["last_run"], rows["jobs.prune"]["last_success"]) == (None, None)
    put(boot)
    run("work-off")
    row = next(row for row in read(command=schedule) if row["entry"] == "jobs.prune")
    assert (row["last_state"], row["last_run"] <= row["last_success"]) == ("succeeded", True)
    result = run(command=schedule)
    assert "calendars.sync" in result.stdout
    assert "celery -A project beat" in result.stderr


def test_as_a_command_of_celery(boot, environment):
    put(boot)
    command = [sys.executable, "-m", "celery", "-A", "project", "jobs", "stats", "--json", "--watch"]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(2)
        assert (process.wait(10), process.stderr.read()) == (0, b"")
    assert [line["counts"][0]["kind"] for line in lines] == ["jobs.prune", "jobs.prune"]
