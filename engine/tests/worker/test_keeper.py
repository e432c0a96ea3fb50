"""What a keeper does for jobs whose worker, or whose message, is gone."""

import signal

import probe_app as probe
from fault_processes import find_keepers, kill
from nightshift.celery.publisher import Publisher
from nightshift.jobs import enqueue_many, relay
from nightshift.jobs.models import JobState
from probing import count_effects, put


def test_jobs_of_a_killed_worker_run_elsewhere(quick, tmp_path):
    first = quick.worker()
    job_id = put(quick.runtime, probe.Sleep(seconds=5, marker=str(tmp_path / "marker")))
    quick.until((tmp_path / "marker").exists)
    first.kill()
    first.wait()
    quick.worker()
    job = quick.ended(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert count_effects(quick.runtime, job_id) == 1


def test_jobs_of_a_lost_machine_run_elsewhere(quick, tmp_path):
    """Worker and keeper die together, so only another keeper can notice."""
    first = quick.worker()
    job_id = put(quick.runtime, probe.Sleep(seconds=5, marker=str(tmp_path / "marker")))
    quick.until((tmp_path / "marker").exists)
    keepers = find_keepers(first.pid)
    assert len(keepers) == 1
    # It is started again at once: the worker must not find out.
    first.send_signal(signal.SIGSTOP)
    kill(keepers[0])
    first.kill()
    first.wait()
    quick.worker()
    job = quick.ended(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert count_effects(quick.runtime, job_id) == 1
    assert job.errors[0]["message"] == "its worker gave no sign of life for 5 s"


def send_all(installation):
    """Send the messages of all jobs that are due, as a keeper does."""
    runtime = installation.runtime
    publisher = Publisher(installation.app, patience=60)
    with runtime.unit_of_work() as session:
        options = {"kinds": runtime.kinds, "queues": ["default"], "buffer": 1000}
        messages = relay.mark_due_sent(session, **options)
    publisher.publish(runtime, messages)
    publisher.close()


def test_messages_that_the_broker_lost_are_sent_again(quick):
    # Not by the caller, who leaves some to the relay on a busy machine.
    quick.runtime.publisher = None
    with quick.runtime.unit_of_work() as session:
        now = quick.runtime.now()
        ids = enqueue_many(session, [probe.Leave(number=n) for n in range(20)], now=now)
    send_all(quick)
    with quick.app.connection_for_write() as connection:
        assert connection.default_channel.queue_purge("default")
    quick.worker()
    for job_id in ids:
        assert quick.ended(job_id).state == JobState.SUCCEEDED
    assert count_effects(quick.runtime) == 20
