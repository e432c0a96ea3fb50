"""What becomes of jobs, on real workers."""

import itertools
import time
from datetime import timedelta

import pytest

from project.celery import app
from services.jobs import enqueue, enqueue_many
from services.jobs.models import JobState
from tests.worker import probe
from tests.worker.conftest import Installation

pytestmark = pytest.mark.worker


def put(installation: Installation, args, **options):
    with installation.boot.unit_of_work() as session:
        return enqueue(session, args, now=installation.boot.now(), **options)


def test_job_runs_once_and_keeps_its_result(working):
    job_id = put(working, probe.Leave(number=7))
    job = working.ended(job_id)
    assert (job.state, job.attempt, job.result, working.effects(job_id)) == (JobState.SUCCEEDED, 1, 7, 1)
    assert job.created_at <= job.started_at <= job.finished_at


def test_rolled_back_job_never_was(working):
    before = working.effects()

    def refused():
        with working.boot.unit_of_work() as session:
            nonlocal job_id
            job_id = enqueue(session, probe.Leave(), now=working.boot.now())
            raise RuntimeError("no")

    job_id = None
    with pytest.raises(RuntimeError):
        refused()
    working.ended(put(working, probe.Leave()))
    assert working.effects() == before + 1
    assert working.effects(job_id) == 0


def test_second_message_is_a_no_op(working):
    job_id = put(working, probe.Leave())
    working.ended(job_id)
    for _ in range(3):
        app.send_task("probe.leave", kwargs={}, task_id=str(job_id), queue="default")
    working.ended(put(working, probe.Leave()))
    time.sleep(0.5)
    assert working.effects(job_id) == 1


def test_transient_error_is_tried_again_and_its_effect_rolled_back(working):
    job_id = put(working, probe.Fail(until_attempt=3))
    job = working.ended(job_id)
    assert (job.state, job.attempt, working.effects(job_id)) == (JobState.SUCCEEDED, 3, 1)
    assert [(error["attempt"], error["type"], error["message"]) for error in job.errors] == [
        (1, "TransientError", "as asked"),
        (2, "TransientError", "as asked"),
    ]
    assert "raise (PermanentError" in job.errors[0]["traceback"]


def test_attempts_end(working):
    job = working.ended(put(working, probe.Fail()))
    assert (job.state, job.attempt, len(job.errors)) == (JobState.FAILED, 3, 3)


def test_permanent_error_ends_at_once(working):
    job = working.ended(put(working, probe.Fail(permanent=True)))
    assert (job.state, job.attempt) == (JobState.FAILED, 1)


@pytest.mark.parametrize(
    ("what", "state", "result", "effects"),
    [
        ("discard", JobState.DISCARDED, "no use", 1),
        ("cancel", JobState.CANCELLED, "not wanted", 1),
        ("snooze", JobState.SUCCEEDED, "awake", 3),
    ],
)
def test_answers(working, what, state, result, effects):
    job_id = put(working, probe.Answer(what=what))
    job = working.ended(job_id)
    assert (job.state, job.result, job.attempt, working.effects(job_id)) == (state, result, 1, effects)


def test_job_never_starts_before_its_time(working):
    run_at = working.boot.now() + timedelta(seconds=1.5)
    job = working.ended(put(working, probe.Leave(), run_at=run_at))
    assert run_at <= job.started_at < run_at + timedelta(seconds=3)


def test_killed_child_costs_an_attempt_and_poison_ends(working):
    once = put(working, probe.Die(attempts=1))
    poison = put(working, probe.Die())
    job = working.ended(once, seconds=30)
    assert (job.state, job.attempt, working.effects(once)) == (JobState.SUCCEEDED, 2, 1)
    job = working.ended(poison, seconds=60)
    assert (job.state, job.attempt, job.errors[-1]["type"]) == (JobState.FAILED, 3, "WorkerLost")


def test_time_limit_is_enforced(working):
    job = working.ended(put(working, probe.TooLong()), seconds=60)
    assert (job.state, job.attempt, job.errors[-1]["type"]) == (JobState.FAILED, 2, "WorkerLost")


@pytest.mark.parametrize(("children", "failing", "state"), [(0, 0, "succeeded"), (7, 0, "succeeded"), (7, 2, "failed")])
def test_batch_runs_its_follow_up_once_and_then_ends(working, children, failing, state):
    parent_id = put(working, probe.Parent(children=children, failing=failing))
    parent = working.ended(parent_id)
    assert parent.state == state
    assert (parent.children, parent.children_open, parent.children_failed) == (children + 1, 0, failing)
    with working.boot.read_only() as session:
        from sqlalchemy import select

        from services.jobs.models import Job

        kinds = session.execute(select(Job.kind, Job.finished_at).where(Job.parent_id == parent_id)).all()
    follow_ups = [row for row in kinds if row.kind == "probe.counted"]
    assert len(follow_ups) == 1
    assert all(row.finished_at <= follow_ups[0].finished_at for row in kinds)


def test_limited_kind_runs_one_at_a_time(working):
    with working.boot.unit_of_work() as session:
        ids = enqueue_many(session, [probe.Limited(number=n) for n in range(5)], now=working.boot.now())
    rows = sorted((working.ended(job_id) for job_id in ids), key=lambda row: row.started_at)
    assert all(earlier.finished_at <= later.started_at for earlier, later in itertools.pairwise(rows))
    assert {row.attempt for row in rows} == {1}


def test_rated_kind_keeps_its_rate(working):
    with working.boot.unit_of_work() as session:
        ids = enqueue_many(session, [probe.Rated(number=n) for n in range(6)], now=working.boot.now())
    starts = sorted(working.ended(job_id, seconds=40).started_at for job_id in ids)
    assert all(later - earlier >= timedelta(seconds=4.9) for earlier, later in zip(starts, starts[3:], strict=False))


def test_progress_and_log_are_seen_while_it_runs(working):
    job_id = put(working, probe.Steps(seconds=4))
    working.until(lambda: (working.job(job_id).progress_done or 0) > 5)
    assert working.job(job_id).state == JobState.RUNNING
    assert working.ended(job_id).progress_total == 1000


def test_plain_task_runs_as_ever(working, tmp_path):
    app.send_task("probe.plain", args=[str(tmp_path / "plain")], queue="default")
    assert working.until(lambda: (tmp_path / "plain").exists() and (tmp_path / "plain").read_text()) == "ran"


def test_row_whose_arguments_are_no_longer_valid_is_discarded(working):
    from sqlalchemy import update

    from services.jobs.models import Job

    run_at = working.boot.now() + timedelta(seconds=1)
    job_id = put(working, probe.Leave(), run_at=run_at)
    with working.boot.unit_of_work() as session:
        session.execute(update(Job).where(Job.id == job_id).values(args={"number": "seven", "new": True}))
    job = working.ended(job_id)
    assert (job.state, working.effects(job_id)) == (JobState.DISCARDED, 0)
    assert job.result.startswith("its arguments are no longer valid: number: Input should be a valid integer")


def test_job_of_an_unknown_kind_is_discarded_in_the_end(working):
    from sqlalchemy import update

    from services.jobs.models import Job

    job_id = put(working, probe.Leave(), run_at=working.boot.now() + timedelta(seconds=1))
    with working.boot.unit_of_work() as session:
        session.execute(update(Job).where(Job.id == job_id).values(kind="probe.removed", max_attempts=1))
    job = working.ended(job_id)
    assert (job.state, job.errors[-1]["message"]) == (JobState.DISCARDED, "no task is called 'probe.removed'")


def test_debounced_calls_make_one_run_with_the_last_arguments(working):
    first = put(working, probe.Refresh(number=1), debounce=timedelta(seconds=1))
    again = [put(working, probe.Refresh(number=n), debounce=timedelta(seconds=1)) for n in range(2, 6)]
    job = working.ended(first)
    assert (set(again), job.result, working.effects(first)) == ({first}, 5, 1)
    assert put(working, probe.Refresh(number=6), debounce=timedelta(seconds=1)) != first
