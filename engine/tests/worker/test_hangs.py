"""A worker whose main process hangs: it runs on, and does nothing."""

import signal
from datetime import timedelta

import probe_app as probe
import pytest
from installations import QUICK, Installation, any_installation
from nightshift.jobs import care, statistics
from nightshift.jobs.models import JobState
from probing import put

SECRETS = {"postgres_password": "one of our own"}


def hang(installation: Installation, folder):
    """Return a worker that was stopped while it ran a job, the job, and the file it writes to."""
    marker = folder / "marker"
    worker = installation.worker()
    job_id = put(installation.runtime, probe.Sleep(seconds=100, marker=str(marker)))
    installation.until(lambda: marker.exists() and marker.read_text())
    worker.send_signal(signal.SIGSTOP)
    return worker, job_id, marker


def runs_again(installation, job_id, marker, first):
    """Wait until the job runs in another process, and end it."""
    installation.until(lambda: marker.read_text() not in ("", first))
    job = installation.job(job_id)
    with installation.runtime.unit_of_work() as session:
        care.cancel(session, [job_id])
    return job


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["servers", "embedded"])
def test_jobs_of_a_worker_that_hangs_run_elsewhere(kind, tmp_path):
    with any_installation(kind, "probe_app", tmp_path, **QUICK) as installation:
        worker, job_id, marker = hang(installation, tmp_path)
        first = marker.read_text()
        installation.worker()
        job = runs_again(installation, job_id, marker, first)
        assert (job.state, job.attempt) == (JobState.RUNNING, 2)
        assert worker.poll() is None  # in development it is only reported
        with installation.runtime.read_only() as session:
            hung = statistics.find_hung_workers(session, lately=timedelta(hours=1))
        assert len(hung) == 1
        worker.send_signal(signal.SIGCONT)
        installation.until(lambda: len(installation.workers()) == 2)


@pytest.mark.parametrize("kind", ["servers", pytest.param("embedded", marks=pytest.mark.faults)])
def test_worker_that_hangs_is_killed_in_production(kind, tmp_path):
    settings = {**QUICK, **SECRETS, "environment": "production"}
    with any_installation(kind, "probe_app", tmp_path, **settings) as installation:
        worker, job_id, marker = hang(installation, tmp_path)
        first = marker.read_text()
        assert worker.wait(100) == -signal.SIGKILL
        installation.worker()
        assert runs_again(installation, job_id, marker, first).attempt == 2
