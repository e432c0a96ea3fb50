"""What becomes of jobs, on real workers."""

import itertools
import time
from datetime import timedelta

import probe_app as probe
import pytest
from nightshift.jobs import enqueue, enqueue_many
from nightshift.jobs.models import Job, JobState
from probing import count_effects, put, put_changed
from sqlalchemy import select


def test_job_runs_once_and_keeps_its_result(working):
    job_id = put(working.runtime, probe.Leave(number=7))
    job = working.ended(job_id)
    assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 1, 7)
    assert count_effects(working.runtime, job_id) == 1
    assert job.created_at <= job.started_at <= job.finished_at


def test_rolled_back_job_never_was(working):
    before = count_effects(working.runtime)

    def refused():
        with working.runtime.unit_of_work() as session:
            nonlocal job_id
            job_id = enqueue(session, probe.Leave(), now=working.runtime.now())
            raise RuntimeError("no")

    job_id = None
    with pytest.raises(RuntimeError):
        refused()
    working.ended(put(working.runtime, probe.Leave()))
    assert count_effects(working.runtime) == before + 1
    assert count_effects(working.runtime, job_id) == 0


def test_second_message_is_a_no_op(working):
    job_id = put(working.runtime, probe.Leave())
    working.ended(job_id)
    for _ in range(3):
        working.app.send_task("probe.leave", kwargs={}, task_id=str(job_id), queue="default")
    working.ended(put(working.runtime, probe.Leave()))
    time.sleep(0.5)
    assert count_effects(working.runtime, job_id) == 1


def test_transient_error_is_tried_again_and_its_effect_rolled_back(working):
    job_id = put(working.runtime, probe.Fail(until_attempt=3))
    job = working.ended(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 3)
    assert count_effects(working.runtime, job_id) == 1
    assert [(error["attempt"], error["type"], error["message"]) for error in job.errors] == [
        (1, "TransientError", "as asked"),
        (2, "TransientError", "as asked"),
    ]
    assert "raise (PermanentError" in job.errors[0]["traceback"]


def test_attempts_end(working):
    job = working.ended(put(working.runtime, probe.Fail()))
    assert (job.state, job.attempt, len(job.errors)) == (JobState.FAILED, 3, 3)


def test_permanent_error_ends_at_once(working):
    job = working.ended(put(working.runtime, probe.Fail(permanent=True)))
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
    job_id = put(working.runtime, probe.Answer(what=what))
    job = working.ended(job_id)
    assert (job.state, job.result, job.attempt) == (state, result, 1)
    assert count_effects(working.runtime, job_id) == effects


def test_job_never_starts_before_its_time(working):
    run_at = working.runtime.now() + timedelta(seconds=1.5)
    job = working.ended(put(working.runtime, probe.Leave(), run_at=run_at))
    assert run_at <= job.started_at


def test_killed_child_costs_an_attempt_and_poison_ends(working):
    once = put(working.runtime, probe.Die(attempts=1))
    poison = put(working.runtime, probe.Die())
    job = working.ended(once)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert count_effects(working.runtime, once) == 1
    job = working.ended(poison)
    assert (job.state, job.attempt, job.errors[-1]["type"]) == (JobState.FAILED, 3, "WorkerLost")


def test_time_limit_is_enforced(working):
    job = working.ended(put(working.runtime, probe.TooLong()))
    assert (job.state, job.attempt, job.errors[-1]["type"]) == (JobState.FAILED, 2, "WorkerLost")


@pytest.mark.parametrize(
    ("children", "failing", "state"), [(0, 0, "succeeded"), (7, 0, "succeeded"), (7, 2, "failed")]
)
def test_batch_runs_its_follow_up_once_and_then_ends(working, children, failing, state):
    parent_id = put(working.runtime, probe.Parent(children=children, failing=failing))
    parent = working.ended(parent_id)
    assert parent.state == state
    assert (parent.children, parent.children_open, parent.children_failed) == (
        children + 1,
        0,
        failing,
    )
    with working.runtime.read_only() as session:
        kinds = session.execute(
            select(Job.kind, Job.finished_at).where(Job.parent_id == parent_id)
        ).all()
    follow_ups = [row for row in kinds if row.kind == "probe.counted"]
    assert len(follow_ups) == 1
    assert all(row.finished_at <= follow_ups[0].finished_at for row in kinds)


def test_limited_kind_runs_one_at_a_time(working):
    with working.runtime.unit_of_work() as session:
        ids = enqueue_many(
            session, [probe.Limited(number=n) for n in range(5)], now=working.runtime.now()
        )
    rows = sorted((working.ended(job_id) for job_id in ids), key=lambda row: row.started_at)
    assert all(
        earlier.finished_at <= later.started_at for earlier, later in itertools.pairwise(rows)
    )
    assert {row.attempt for row in rows} == {1}


def test_rated_kind_keeps_its_rate(working):
    with working.runtime.unit_of_work() as session:
        ids = enqueue_many(
            session, [probe.Rated(number=n) for n in range(6)], now=working.runtime.now()
        )
    starts = sorted(working.ended(job_id).started_at for job_id in ids)
    assert all(
        later - earlier >= timedelta(seconds=4.9)
        for earlier, later in zip(starts, starts[3:], strict=False)
    )


def test_progress_and_log_are_seen_while_it_runs(working, tmp_path):
    going_on = tmp_path / "going on"
    going_on.touch()
    job_id = put(working.runtime, probe.Steps(seconds=100, marker=str(going_on)))
    working.until(lambda: (working.job(job_id).progress_done or 0) > 5)
    assert working.job(job_id).state == JobState.RUNNING
    going_on.unlink()
    assert working.ended(job_id).progress_total == 1000


def test_plain_task_runs_as_ever(working, tmp_path):
    working.app.send_task("probe.plain", args=[str(tmp_path / "plain")], queue="default")
    assert (
        working.until(lambda: (tmp_path / "plain").exists() and (tmp_path / "plain").read_text())
        == "ran"
    )


def test_row_whose_arguments_are_no_longer_valid_is_discarded(working):
    job_id = put_changed(working.runtime, args={"number": "seven", "new": True})
    job = working.ended(job_id)
    assert job.state == JobState.DISCARDED
    assert count_effects(working.runtime, job_id) == 0
    assert job.result.startswith(
        "its arguments are no longer valid: number: Input should be a valid integer"
    )


def test_debounced_calls_make_one_run_with_the_last_arguments(working):
    later = timedelta(seconds=1)
    with working.runtime.unit_of_work() as session:
        now = working.runtime.now()
        first, *others = (
            enqueue(session, probe.Refresh(number=n), now=now, debounce=later) for n in range(1, 6)
        )
    job = working.ended(first)
    assert (set(others), job.result) == ({first}, 5)
    assert count_effects(working.runtime, first) == 1
    assert put(working.runtime, probe.Refresh(number=6), debounce=later) != first
