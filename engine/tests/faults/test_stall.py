"""A stall of the database, or of a keeper, with default settings: no healthy job is released."""

import os
import signal
import time

import probe_app as probe
import psutil
from fault_processes import find_keepers
from installations import Installation, installed
from nightshift.jobs.models import JobState
from probing import count_effects, put
from proxies import Proxy
from servers import postgres_database, redis_database

RUN, STALL, STOPPED = 120, 35, 60


def start_jobs(installation: Installation, folder):
    """Return two workers, and the two jobs that they run, one each."""
    options = ("--concurrency=1", "--prefetch-multiplier=1")
    workers = [installation.worker(*options) for _ in range(2)]
    markers = [folder / "first", folder / "second"]
    jobs = [probe.Long(seconds=RUN, marker=str(marker)) for marker in markers]
    ids = [put(installation.runtime, job) for job in jobs]
    installation.until(lambda: all(one.exists() and one.read_text() for one in markers))
    parents = {psutil.Process(int(marker.read_text())).ppid() for marker in markers}
    assert parents == {worker.pid for worker in workers}
    # Every keeper has lived for long enough to judge others.
    time.sleep(installation.runtime.settings.worker_silent_after.total_seconds() + 5)
    return workers, ids


def assert_undisturbed(installation: Installation, ids):
    for job_id in ids:
        job = installation.ended(job_id, seconds=RUN + 60)
        assert (job.state, job.attempt, job.errors) == (JobState.SUCCEEDED, 1, None)
        assert count_effects(installation.runtime, job_id) == 1
    assert "released" not in installation.logs()


def test_silent_database_releases_no_healthy_job(tmp_path):
    with (
        postgres_database() as url,
        redis_database() as broker,
        Proxy(url) as proxy,
        installed("probe_app", tmp_path, proxy.url, broker) as installation,
    ):
        workers, ids = start_jobs(installation, tmp_path)
        proxy.silent = True
        time.sleep(STALL)
        proxy.silent = False
        assert_undisturbed(installation, ids)
        assert [worker.poll() for worker in workers] == [None, None]


def test_keeper_that_is_stopped_releases_no_healthy_job(tmp_path):
    with (
        postgres_database() as url,
        redis_database() as broker,
        installed("probe_app", tmp_path, url, broker) as installation,
    ):
        workers, ids = start_jobs(installation, tmp_path)
        [keeper] = find_keepers(workers[0].pid)
        os.kill(keeper, signal.SIGSTOP)
        time.sleep(STOPPED)
        # The worker has replaced it.
        assert find_keepers(workers[0].pid) != [keeper]
        assert_undisturbed(installation, ids)
