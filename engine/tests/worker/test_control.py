"""Remote control, revoked jobs and kinds that no worker knows, with a worker that goes on."""

import time
from datetime import timedelta

import probe_app as probe
import pytest
from fault_processes import is_running
from nightshift.jobs import care
from nightshift.jobs.models import JobState
from probing import put, put_changed


@pytest.mark.parametrize(
    ("command", "queue"),
    [("cancel_consumer", []), ("add_consumer", []), ("add_consumer", "no queue of ours")],
)
def test_wrong_remote_control_ends_no_worker(working, command, queue):
    arguments = {"queue": queue, "exchange_type": "nonsense"}
    if command == "cancel_consumer":
        arguments = {"queue": queue}
    working.app.control.broadcast(command, arguments=arguments)
    time.sleep(1)
    assert working.ended(put(working.runtime, probe.Leave())).state == JobState.SUCCEEDED
    assert [worker.poll() for worker in working.processes] == [None]


def test_job_of_an_unknown_kind_is_discarded_in_the_end(working):
    day_ago = (working.runtime.now() - timedelta(days=2)).isoformat()
    error = {"attempt": 0, "at": day_ago, "type": "UnknownJob", "message": "", "traceback": ""}
    job = working.ended(put_changed(working.runtime, kind="probe.removed", errors=[error]))
    assert (job.state, job.errors[-1]["message"]) == (
        JobState.DISCARDED,
        "no worker has known the kind 'probe.removed' for 1 day, 0:00:00",
    )


def test_job_of_an_unknown_kind_waits_for_a_newer_worker(working):
    job_id = put_changed(working.runtime, kind="probe.newer")
    job = working.until(lambda: (row := working.job(job_id)).errors and row)
    assert (job.state, job.attempt) == (JobState.SCHEDULED, 0)
    assert job.run_at > working.runtime.now()


def test_job_that_is_revoked_before_it_starts_is_cancelled(working):
    job_id = put(working.runtime, probe.Leave(), delay=timedelta(hours=1))
    working.app.control.revoke(str(job_id))
    job = working.ended(job_id)
    assert (job.state, job.attempt) == (JobState.CANCELLED, 0)


def test_running_job_that_is_revoked_and_terminated_is_cancelled(working, tmp_path):
    job_id = put(working.runtime, probe.Sleep(seconds=100, marker=str(tmp_path / "marker")))
    working.until((tmp_path / "marker").exists)
    working.app.control.revoke(str(job_id), terminate=True)
    assert working.ended(job_id).state == JobState.CANCELLED
    # The worker has a process for the next job.
    assert working.ended(put(working.runtime, probe.Leave())).state == JobState.SUCCEEDED


def test_body_that_catches_its_end_does_not_keep_its_process(working, tmp_path):
    """In such a process every later failure would be taken for the end of the process."""
    marker = tmp_path / "marker"
    job_id = put(working.runtime, probe.Stubborn(marker=str(marker)))
    working.until(lambda: marker.exists() and marker.read_text())
    working.app.control.revoke(str(job_id), terminate=True)
    working.until(lambda: not is_running(int(marker.read_text())))
    # What the body wrote may have been faster than the cancellation.
    assert working.ended(job_id).state in (JobState.CANCELLED, JobState.SUCCEEDED)
    failing = [put(working.runtime, probe.Fail(permanent=True)) for _ in range(6)]
    jobs = [working.ended(one) for one in failing]
    assert [(job.state, job.errors[-1]["type"]) for job in jobs] == [
        (JobState.FAILED, "PermanentError")
    ] * 6


def test_job_that_was_revoked_may_be_retried_whichever_worker_gets_it(working):
    working.worker()
    job_id = put(working.runtime, probe.Leave(), delay=timedelta(seconds=60))
    working.app.control.revoke(str(job_id))
    assert working.ended(job_id).state == JobState.CANCELLED  # before its message is sent
    with working.runtime.unit_of_work() as session:
        kinds, now = working.runtime.kinds, working.runtime.now()
        assert care.retry(session, [job_id], kinds=kinds, now=now) == [job_id]
    working.until(lambda: working.job(job_id).state == JobState.SUCCEEDED)
