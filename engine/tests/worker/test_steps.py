"""What a worker does beside its work: how it starts, stops, and replaces its keeper."""

import os
import signal
import time
from datetime import timedelta

import probe_app as probe
import psutil
import pytest
from fault_processes import find_children, find_keepers, is_running, kill
from installations import QUICK, any_installation
from nightshift.jobs import enqueue_many
from nightshift.jobs.models import JobState
from probing import put
from sqlalchemy import text


def start_worker(installation):
    """Return a worker that has run a job: it handles signals by now."""
    worker = installation.worker()
    installation.ended(put(installation.runtime, probe.Leave()))
    return worker


def test_idle_worker_ends_cleanly_and_its_keeper_after_it(quick):
    worker = start_worker(quick)
    [keeper] = find_keepers(worker.pid)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(100) == 0
    quick.until(lambda: not quick.workers())
    quick.until(lambda: not is_running(keeper))


def test_ctrl_c_ends_a_worker_as_sigterm_does(quick):
    worker = start_worker(quick)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(100) == 1  # Celery's own exit code for Ctrl-C
    assert "worker ended" in quick.logs()
    quick.until(lambda: not quick.workers())


def test_stopping_worker_finishes_its_job(quick, tmp_path):
    worker = quick.worker()
    job_id = put(quick.runtime, probe.Sleep(seconds=3, marker=str(tmp_path / "marker")))
    quick.until((tmp_path / "marker").exists)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(100) == 0
    assert (quick.job(job_id).state, quick.job(job_id).attempt) == (JobState.SUCCEEDED, 1)


def test_killed_keeper_is_replaced(quick):
    worker = quick.worker()
    keepers = find_keepers(worker.pid)
    assert len(keepers) == 1
    kill(keepers[0])
    quick.until(lambda: set(find_keepers(worker.pid)) - set(keepers))
    # Only a keeper sends what is due later.
    job_id = put(quick.runtime, probe.Leave(), delay=timedelta(seconds=1))
    assert quick.ended(job_id).state == JobState.SUCCEEDED


def rename_table(installation, old, new):
    with installation.runtime.unit_of_work() as session:
        session.execute(text(f"alter table {old} rename to {new}"))


def test_word_does_not_die_with_the_keeper_that_could_not_record_it(quick, tmp_path):
    worker, marker = quick.worker(), tmp_path / "marker"
    job_id = put(quick.runtime, probe.Sleep(seconds=100, marker=str(marker)))
    quick.until(lambda: marker.exists() and marker.read_text())
    [keeper] = find_keepers(worker.pid)
    rename_table(quick, "job", "away")
    quick.app.control.revoke(str(job_id), terminate=True)
    quick.until(lambda: "the worker's words failed" in quick.logs())
    kill(keeper)
    quick.until(lambda: set(find_keepers(worker.pid)) - {keeper})
    rename_table(quick, "away", "job")
    assert quick.until(lambda: quick.job(job_id).state == JobState.CANCELLED)


def test_keeper_that_hangs_is_replaced(quick):
    worker = quick.worker()
    time.sleep(2)  # a keeper that has given no sign yet has a minute to start
    [hanging] = find_keepers(worker.pid)
    os.kill(hanging, signal.SIGSTOP)
    quick.until(lambda: set(find_keepers(worker.pid)) - {hanging})
    quick.until(lambda: not is_running(hanging))
    job_id = put(quick.runtime, probe.Leave(), delay=timedelta(seconds=1))
    assert quick.ended(job_id).state == JobState.SUCCEEDED


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["servers", "embedded"])
def test_keeper_that_dies_during_a_warm_shutdown_is_replaced(kind, tmp_path):
    """Otherwise the other worker's keeper releases the job, and it runs twice."""
    # Time for a new keeper to start on a busy machine.
    settings = {**QUICK, "worker_silent_after": "PT14S"}
    with any_installation(kind, "probe_app", tmp_path, **settings) as installation:
        workers = {worker.pid: worker for worker in (installation.worker(), installation.worker())}
        marker = tmp_path / "marker"
        job_id = put(installation.runtime, probe.Sleep(seconds=25, marker=str(marker)))
        installation.until(lambda: marker.exists() and marker.read_text())
        worker = workers[psutil.Process(int(marker.read_text())).ppid()]
        worker.send_signal(signal.SIGTERM)
        installation.until(lambda: "worker stops" in installation.logs())
        [keeper] = find_keepers(worker.pid)
        kill(keeper)
        installation.until(lambda: set(find_keepers(worker.pid)) - {keeper})
        job = installation.ended(job_id)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
        assert worker.wait(100) == 0


def test_idle_child_that_is_killed_takes_nothing_with_it(quick):
    """A pool whose children share a queue hangs for ever when the waiting one is killed."""
    # A worker whose children are killed before it stands gives up; its supervisor starts it again.
    worker = start_worker(quick)
    for round_number in range(4):
        # The jobs of the round before may have ended while one child alone was there again.
        quick.until(lambda: len(find_children(worker.pid)) == 2)
        for child in find_children(worker.pid):
            kill(child)
        with quick.runtime.unit_of_work() as session:
            now = quick.runtime.now()
            ids = enqueue_many(session, [probe.Leave(number=n) for n in range(5)], now=now)
        states = [quick.ended(job_id).state for job_id in ids]
        assert states == [JobState.SUCCEEDED] * 5, round_number


@pytest.fixture
def embedded(tmp_path):
    """Yield an installation for what has nothing to do with databases and brokers."""
    with any_installation("embedded", "probe_app", tmp_path, **QUICK) as installation:
        yield installation


def test_health_check_finds_the_sign_of_life(embedded, tmp_path):
    embedded.worker(HEARTBEAT_FILE=str(tmp_path / "alive"))
    embedded.until((tmp_path / "alive").exists)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_pool_that_is_not_supported_is_refused_at_start(embedded, pool):
    worker = embedded.start("worker", "--pool", pool)
    assert worker.wait(100) == 1
    log = embedded.logs()
    assert "is not supported: start the worker with --pool prefork" in log
    assert "Traceback" not in log


def test_other_name_of_prefork_is_accepted(embedded):
    embedded.worker("--pool", "processes")
