"""The helpers that a template's user gets, used as a user would."""

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from project.celery import app
from project.celeryconfig import configuration
from project.task import job
from project.testing import _configured, assert_enqueued, run_due
from services.calendars.jobs import SyncCalendars
from services.database import Session
from services.errors import PermanentError
from services.jobs import JobArgs, Outcome, Run, Snooze, enqueue, enqueue_many
from services.jobs.models import Job, JobState, PausedQueue, Worker
from tests.conftest import make_settings

ROOT = Path(__file__).parent.parent.parent


class Add(JobArgs, kind="probe.add"):
    left: int
    right: int = 0


class Spread(JobArgs, kind="probe.spread"):
    numbers: tuple[int, ...]


class Refuse(JobArgs, kind="probe.refuse"):
    pass


class Nobody(JobArgs, kind="probe.nobody"):
    pass


class Restless(JobArgs, kind="probe.restless"):
    pass


@job(Add)
def add(session: Session, args: Add, run: Run) -> Outcome:
    return args.left + args.right


@job(Spread)
def spread(session: Session, args: Spread, run: Run) -> None:
    run.spawn(session, [Add(left=number) for number in args.numbers])


@job(Refuse)
def refuse(session: Session, args: Refuse, run: Run) -> None:
    raise PermanentError("not today")


@job(Restless)
def restless(session: Session, args: Restless, run: Run) -> Outcome:
    return Snooze(timedelta())


def put(boot, args, **options):
    with boot.unit_of_work() as session:
        return enqueue(session, args, now=boot.now(), **options)


def test_assert_enqueued_passes_for_what_is_there(job_boot):
    put(job_boot, Add(left=1))
    put(job_boot, Add(left=2, right=3), delay=timedelta(days=1))
    with job_boot.read_only() as session:
        assert_enqueued(session, Add, left=1)
        assert_enqueued(session, Add, left=2, right=3)
        assert_enqueued(session, Add, count=2)
        assert_enqueued(session, SyncCalendars, count=0)


def test_assert_enqueued_says_what_is_there_instead(job_boot):
    with job_boot.unit_of_work() as session:
        enqueue(session, Spread(numbers=(1, 2)), now=job_boot.now())
        due = session.execute(select(Job.run_at)).scalar_one()
        with pytest.raises(AssertionError) as failure:
            assert_enqueued(session, Add, left=1)
    assert str(failure.value) == (
        "expected 1 of probe.add(left=1), found 0; enqueued are:\n"
        f"  probe.spread(numbers=[1, 2]), queued, due {due:%Y-%m-%d %H:%M:%S} UTC"
    )


def test_assert_enqueued_refuses_a_field_that_does_not_exist(job_boot):
    with job_boot.read_only() as session, pytest.raises(TypeError, match="Add has no field middle"):
        assert_enqueued(session, Add, middle=1)


def test_run_due_runs_what_is_due_and_what_that_makes_due(job_boot):
    parent = put(job_boot, Spread(numbers=(1, 2)))
    refused = put(job_boot, Refuse())
    later = put(job_boot, Add(left=9), delay=timedelta(hours=1))
    rows = run_due(job_boot)
    assert [(row.kind, row.state) for row in rows] == [
        ("probe.spread", JobState.SUCCEEDED),
        ("probe.refuse", JobState.FAILED),
        ("probe.add", JobState.SUCCEEDED),
        ("probe.add", JobState.SUCCEEDED),
    ]
    assert [row.id for row in rows[:2]] == [parent, refused]
    assert later not in [row.id for row in rows]
    assert rows[1].errors[0]["message"] == "not today"
    assert run_due(job_boot) == []


def test_run_due_leaves_a_paused_queue_alone(job_boot):
    put(job_boot, Add(left=1))
    with job_boot.unit_of_work() as session:
        session.add(PausedQueue(queue="default", paused_at=job_boot.now()))
    assert run_due(job_boot) == []


def test_run_due_says_when_no_task_runs_a_kind(job_boot):
    put(job_boot, Nobody())
    with pytest.raises(LookupError, match=r"no task runs 'probe\.nobody'"):
        run_due(job_boot)


def test_job_worker_runs_jobs_and_stops_cleanly(job_worker):
    with job_worker.boot.unit_of_work() as session:
        ids = enqueue_many(session, [Add(left=number, right=1) for number in range(3)], now=job_worker.boot.now())
    later = put(job_worker.boot, Add(left=5), delay=timedelta(seconds=0.5))
    assert [job_worker.ended(job_id).result for job_id in ids] == [1, 2, 3]
    # Only a keeper sends what was not due when it was enqueued.
    assert job_worker.ended(later).result == 5
    with job_worker.boot.read_only() as session:
        assert session.execute(select(Worker.pid)).scalar_one() == os.getpid()


def test_job_worker_says_how_far_a_job_came(job_worker):
    held = put(job_worker.boot, Add(left=1), delay=timedelta(hours=1))
    with pytest.raises(TimeoutError, match=r"probe\.add is still scheduled after 0\.1 s, attempt 0"):
        job_worker.ended(held, seconds=0.1)


def test_run_due_stops_where_there_is_no_end(job_boot):
    put(job_boot, Restless())
    with pytest.raises(RuntimeError, match=r"5 runs, and jobs are still due; the last was probe\.restless"):
        run_due(job_boot, at_most=5)


def test_configuration_is_given_back(tmp_path):
    before = app.conf.broker_transport_options
    elsewhere = configuration(make_settings(broker_url=f"filesystem://{tmp_path}/elsewhere"))
    with _configured(elsewhere):
        assert app.conf.broker_transport_options["data_folder_in"] == f"{tmp_path}/elsewhere/messages"
    assert app.conf.broker_transport_options == before


def test_examples_of_the_documentation_run(tmp_path):
    """docs/testing.md, as a user would copy it."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == ["tests/conftest.py", "tests/test_calendars.py", "tests/test_worker.py"]
    for name, code in blocks:
        (tmp_path / Path(name).name).write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
        "-c",
        tmp_path / "pytest.ini",
        tmp_path,
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, "4 passed" in ran.stdout) == (0, True), ran.stdout + ran.stderr
