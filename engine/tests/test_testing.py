"""The helpers that a template's user gets, used as a user would."""

import os
from datetime import timedelta

import probe_app
import pytest
from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.errors import PermanentError
from nightshift.jobs import JobArgs, Outcome, Run, Snooze, enqueue, enqueue_many
from nightshift.jobs.models import Job, JobState, PausedQueue, Worker
from nightshift.testing import assert_enqueued, run_due
from probe_app import Leave
from probing import put
from sqlalchemy import select


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


OURS = Component(name="test", kinds=(Add, Spread, Refuse, Nobody, Restless))


@pytest.fixture(scope="module")
def project_app():
    """Return the probe's app with the kinds of this module."""
    composition = Composition([*probe_app.app.composition.components, OURS])
    return App("probe_app", composition, _env_file=None)


def test_assert_enqueued_passes_for_what_is_there(job_app):
    put(job_app.runtime, Add(left=1))
    put(job_app.runtime, Add(left=2, right=3), delay=timedelta(days=1))
    with job_app.runtime.read_only() as session:
        assert_enqueued(session, Add, left=1)
        assert_enqueued(session, Add, left=2, right=3)
        assert_enqueued(session, Add, count=2)
        assert_enqueued(session, Leave, count=0)


def test_assert_enqueued_says_what_is_there_instead(job_app):
    with job_app.runtime.unit_of_work() as session:
        enqueue(session, Spread(numbers=(1, 2)), now=job_app.runtime.now())
        due = session.execute(select(Job.run_at)).scalar_one()
        with pytest.raises(AssertionError) as failure:
            assert_enqueued(session, Add, left=1)
    assert str(failure.value) == (
        "expected 1 of probe.add(left=1), found 0; enqueued are:\n"
        f"  probe.spread(numbers=[1, 2]), queued, due {due:%Y-%m-%d %H:%M:%S} UTC"
    )


def test_assert_enqueued_refuses_a_field_that_does_not_exist(job_app):
    with (
        job_app.runtime.read_only() as session,
        pytest.raises(TypeError, match="Add has no field middle"),
    ):
        assert_enqueued(session, Add, middle=1)


def test_run_due_runs_what_is_due_and_what_that_makes_due(job_app):
    parent = put(job_app.runtime, Spread(numbers=(1, 2)))
    refused = put(job_app.runtime, Refuse())
    later = put(job_app.runtime, Add(left=9), delay=timedelta(hours=1))
    rows = run_due(job_app)
    assert [(row.kind, row.state) for row in rows] == [
        ("probe.spread", JobState.SUCCEEDED),
        ("probe.refuse", JobState.FAILED),
        ("probe.add", JobState.SUCCEEDED),
        ("probe.add", JobState.SUCCEEDED),
    ]
    assert [row.id for row in rows[:2]] == [parent, refused]
    assert later not in [row.id for row in rows]
    assert rows[1].errors[0]["message"] == "not today"
    assert run_due(job_app) == []


def test_run_due_leaves_a_paused_queue_alone(job_app):
    put(job_app.runtime, Add(left=1))
    with job_app.runtime.unit_of_work() as session:
        session.add(PausedQueue(queue="default", paused_at=job_app.runtime.now()))
    assert run_due(job_app) == []


def test_run_due_says_when_no_task_runs_a_kind(job_app):
    put(job_app.runtime, Nobody())
    with pytest.raises(LookupError, match=r"no task runs 'probe\.nobody'"):
        run_due(job_app)


def test_job_worker_runs_jobs_and_stops_cleanly(job_worker):
    with job_worker.app.runtime.unit_of_work() as session:
        ids = enqueue_many(
            session,
            [Add(left=number, right=1) for number in range(3)],
            now=job_worker.app.runtime.now(),
        )
    later = put(job_worker.app.runtime, Add(left=5), delay=timedelta(seconds=0.5))
    assert [job_worker.ended(job_id, seconds=60).result for job_id in ids] == [1, 2, 3]
    # Only a keeper sends what was not due when it was enqueued.
    assert job_worker.ended(later, seconds=60).result == 5
    with job_worker.app.runtime.read_only() as session:
        assert session.execute(select(Worker.pid)).scalar_one() == os.getpid()


def test_job_worker_says_how_far_a_job_came(job_worker):
    held = put(job_worker.app.runtime, Add(left=1), delay=timedelta(hours=1))
    with pytest.raises(
        TimeoutError, match=r"probe\.add is still scheduled after 0\.1 s, attempt 0"
    ):
        job_worker.ended(held, seconds=0.1)


def test_run_due_stops_where_there_is_no_end(job_app):
    put(job_app.runtime, Restless())
    with pytest.raises(
        RuntimeError, match=r"5 runs, and jobs are still due; the last was probe\.restless"
    ):
        run_due(job_app, at_most=5)
