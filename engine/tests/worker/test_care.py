"""What a person may do to jobs, while real workers are at them."""

import time
from datetime import timedelta

import probe_app as probe
from nightshift.database import read_clock
from nightshift.jobs import care, enqueue, enqueue_many
from nightshift.jobs.models import Job, JobLog, JobState
from probing import count_effects, put
from sqlalchemy import func, select


def cancel(installation, *ids):
    with installation.runtime.unit_of_work() as session:
        return care.cancel(session, ids)


def count(installation, *which):
    with installation.runtime.read_only() as session:
        return session.execute(select(func.count()).where(*which)).scalar_one()


def test_cancelled_running_job_ends_and_its_later_writes_are_refused(working):
    job_id = put(working.runtime, probe.Steps(seconds=30))
    working.until(lambda: working.job(job_id).progress_done)
    assert cancel(working, job_id) == [job_id]
    job = working.job(job_id)
    lines = count(working, JobLog.job_id == job_id)
    working.until(
        lambda: f"job {job_id} was cancelled or given to another worker" in working.logs()
    )
    time.sleep(1.5)  # longer than a body keeps its progress to itself
    after = working.job(job_id)
    assert (after.state, after.progress_done, after.finished_at) == (
        JobState.CANCELLED,
        job.progress_done,
        job.finished_at,
    )
    assert count(working, JobLog.job_id == job_id) == lines
    assert (after.attempt, after.errors) == (1, None)


def test_cancelled_job_whose_body_never_asks_leaves_no_effect(working, tmp_path):
    job_id = put(working.runtime, probe.Sleep(seconds=2, marker=str(tmp_path / "marker")))
    working.until((tmp_path / "marker").exists)
    cancel(working, job_id)
    time.sleep(3)
    assert working.job(job_id).state == JobState.CANCELLED
    assert count_effects(working.runtime, job_id) == 0


def test_cancelled_job_runs_when_it_is_retried(working):
    job_id = put(working.runtime, probe.Leave(number=3), delay=timedelta(hours=1))
    cancel(working, job_id)
    with working.runtime.unit_of_work() as session:
        care.retry(session, [job_id], kinds=working.runtime.kinds, now=working.runtime.now())
    job = working.ended(job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, 3)
    assert count_effects(working.runtime, job_id) == 1


def test_failed_job_has_all_its_attempts_again(working):
    job_id = put(working.runtime, probe.Fail())
    working.ended(job_id)
    with working.runtime.unit_of_work() as session:
        kinds = working.runtime.kinds
        now = read_clock(session)
        assert care.retry_failed(session, "probe.fail", kinds=kinds, now=now) == (1, None)
    job = working.ended(job_id)
    assert (job.state, job.attempt, [error["attempt"] for error in job.errors]) == (
        JobState.FAILED,
        3,
        [1, 2, 3, 1, 2, 3],
    )


def test_held_job_waits_for_its_release(working):
    with working.runtime.unit_of_work() as session:
        soon = {"now": working.runtime.now(), "delay": timedelta(seconds=0.5)}
        job_id = enqueue(session, probe.Leave(), **soon)
        assert care.hold(session, [job_id]) == [job_id]
    time.sleep(1.5)
    assert working.job(job_id).state == JobState.HELD
    with working.runtime.unit_of_work() as session:
        assert care.release(session, [job_id]) == [job_id]
    assert working.ended(job_id).state == JobState.SUCCEEDED


def test_paused_queue_waits_until_it_is_resumed(working):
    with working.runtime.unit_of_work() as session:
        assert care.pause(session, "default", now=working.runtime.now())
    with working.runtime.unit_of_work() as session:
        ids = enqueue_many(
            session, [probe.Leave(number=n) for n in range(10)], now=working.runtime.now()
        )
    time.sleep(1.5)
    assert {working.job(job_id).state for job_id in ids} == {JobState.QUEUED}
    with working.runtime.unit_of_work() as session:
        assert care.resume(session, "default")
    assert {working.ended(job_id).state for job_id in ids} == {JobState.SUCCEEDED}
    assert [count_effects(working.runtime, job_id) for job_id in ids] == [1] * 10


def test_cancelled_batch_takes_its_children_with_it_and_runs_no_follow_up(working):
    parent_id = put(working.runtime, probe.Parent(children=20, milliseconds=1500))
    working.until(lambda: working.job(parent_id).state == JobState.WAITING)
    cancelled = cancel(working, parent_id)
    parent = working.ended(parent_id)
    ended_before = count(
        working,
        Job.parent_id == parent_id,
        Job.state == JobState.SUCCEEDED,
        Job.kind == "probe.leave",
    )
    assert (parent.state, parent.children_open, parent.children_failed) == (
        JobState.CANCELLED,
        0,
        len(cancelled) - 1,
    )
    assert ended_before + len(cancelled) - 1 == parent.children
    time.sleep(1)
    assert count(working, Job.parent_id == parent_id, Job.finished_at.is_(None)) == 0
    assert (
        count(
            working,
            Job.parent_id == parent_id,
            Job.kind == "probe.counted",
            Job.state == JobState.SUCCEEDED,
        )
        == 0
    )
