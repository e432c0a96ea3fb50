"""What the ledger says of itself in numbers."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from job_rows import beat
from nightshift.jobs import rescue, statistics
from nightshift.jobs.models import Job, JobState, PausedQueue
from sqlalchemy import event


def add(session, state, *, kind="a", queue="default", due=0.0, waited=None, ran=None, **values):
    """Write a job that was due so many seconds ago, then waited and ran."""
    run_at = datetime.now(UTC) - timedelta(seconds=due)
    started_at = None if waited is None else run_at + timedelta(seconds=waited)
    finished_at = None if ran is None or started_at is None else started_at + timedelta(seconds=ran)
    row = {
        "id": uuid4(),
        "kind": kind,
        "queue": queue,
        "state": state,
        "priority": 5,
        "args": {},
        "max_attempts": 1,
        "time_limit": 60,
    }
    times = {
        "created_at": run_at,
        "run_at": run_at,
        "started_at": started_at,
        "finished_at": finished_at,
    }
    session.add(Job(**row, **times, **values))
    session.flush()


def test_jobs_are_counted_by_kind_queue_and_state(session):
    add(session, JobState.QUEUED)
    add(session, JobState.QUEUED)
    add(session, JobState.HELD, queue="side")
    add(session, JobState.FAILED, kind="b", due=10, waited=1, ran=1)
    assert statistics.count_jobs(session) == {
        ("a", "default", "queued"): 2,
        ("a", "side", "held"): 1,
        ("b", "default", "failed"): 1,
    }


def test_timings_are_those_of_jobs_that_ended_lately(session):
    add(session, JobState.SUCCEEDED, due=100, waited=0.25, ran=2)
    add(session, JobState.FAILED, due=100, waited=30, ran=0.75)
    add(session, JobState.SUCCEEDED, kind="b", due=400, waited=0, ran=100)
    add(session, JobState.SUCCEEDED, due=900, waited=1, ran=1)  # too long ago
    add(session, JobState.RUNNING, due=100, waited=1)
    found = statistics.read_timings(session, over=timedelta(minutes=10))
    wait, run = found["a"]
    assert (wait.count, wait.total) == (2, pytest.approx(30.25, abs=0.01))
    assert (run.count, run.total) == (2, pytest.approx(2.75, abs=0.01))
    assert wait.at_most == (0, 1, 1, 1, 1, 2, 2, 2, 2)
    assert run.at_most == (0, 0, 1, 2, 2, 2, 2, 2, 2)
    assert (found["b"][1].count, found["b"][1].total) == (1, pytest.approx(100, abs=0.01))
    assert sorted(found) == ["a", "b"]


def test_job_that_never_started_has_no_timing(session):
    add(session, JobState.CANCELLED)
    assert statistics.read_timings(session, over=timedelta(minutes=10)) == {}


def test_retry_that_was_cancelled_has_not_waited_less_than_nothing(session):
    add(session, JobState.CANCELLED, due=-3600, waited=-3700, ran=50)
    wait, run = statistics.read_timings(session, over=timedelta(minutes=10))["a"]
    assert (wait.count, wait.total, wait.at_most[0], run.total) == (
        1,
        0,
        1,
        pytest.approx(50, abs=0.01),
    )


def test_oldest_due_looks_at_sent_unsent_and_not_yet_queued(session):
    now = datetime.now(UTC)
    add(session, JobState.QUEUED, due=50)
    add(session, JobState.QUEUED, due=90, sent_at=now)
    add(session, JobState.SCHEDULED, queue="side", due=30)
    add(session, JobState.SCHEDULED, queue="side", due=-300)
    add(session, JobState.HELD, queue="third", due=500)
    ages = {
        queue: age.total_seconds() for queue, age in statistics.read_oldest_due(session).items()
    }
    assert ages == {"default": pytest.approx(90, abs=5), "side": pytest.approx(30, abs=5)}


def test_workers_are_counted_at_each_of_their_queues(session):
    beat(session, name="one", queues="default,side", pid=1)
    beat(session, name="two", queues="side", pid=2)
    gone = uuid4()
    beat(session, gone, name="gone", queues="side", pid=3)
    rescue.mark_stopped(session, gone)
    assert statistics.count_workers(session, silent_after=timedelta(seconds=30)) == {
        "default": 1,
        "side": 2,
    }


def test_stuck_jobs_are_those_beyond_their_own_limit(session):
    add(session, JobState.RUNNING, due=100, waited=0)  # its limit is 60 s
    add(session, JobState.RUNNING, kind="b", due=50, waited=0)
    assert statistics.count_stuck(session, slack=timedelta(seconds=10)) == {"a": 1}


def test_failed_and_paused(session):
    add(session, JobState.FAILED, kind="b", due=100, waited=0, ran=1)
    add(session, JobState.FAILED, due=100, waited=0, ran=1)
    add(session, JobState.SUCCEEDED, due=100, waited=0, ran=1)
    add(session, JobState.FAILED, due=7200, waited=0, ran=1)
    since = datetime(2026, 11, 21, 12, tzinfo=UTC)
    session.add(PausedQueue(queue="side", paused_at=since))
    session.flush()
    assert statistics.count_failed(session, over=timedelta(hours=1)) == {"a": 1, "b": 1}
    assert statistics.find_paused_queues(session) == {"side": since}


def test_unsendable_jobs_are_those_held_with_an_error(session):
    add(session, JobState.HELD, errors=[{"type": "Unsendable"}])
    add(session, JobState.HELD, errors=[{"type": "Unsendable"}])
    add(session, JobState.HELD)
    add(session, JobState.QUEUED, kind="b", errors=[{"type": "RuntimeError"}])
    assert statistics.count_unsendable(session) == {"a": 2}


def test_statements_do_not_grow_with_the_ledger(session):
    def statements():
        seen = []
        listen = (
            session.connection().engine,
            "before_cursor_execute",
            lambda *args: seen.append(args[2]),
        )
        event.listen(*listen)
        for ask in (
            statistics.count_jobs,
            statistics.read_oldest_due,
            statistics.find_paused_queues,
        ):
            ask(session)
        statistics.read_timings(session, over=timedelta(days=1))
        event.remove(*listen)
        return len(seen)

    before = statements()
    for number in range(30):
        add(session, JobState.QUEUED, kind=f"kind.{number}", queue=f"queue.{number}")
    assert statements() == before == 4
