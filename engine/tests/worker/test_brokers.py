"""What workers do when the broker comes back."""

import subprocess

import probe_app as probe
from fault_servers import free_port, program
from installations import QUICK, installed
from nightshift.jobs.models import JobState
from probing import put
from servers import postgres_database


def test_jobs_run_when_the_broker_is_back(tmp_path):
    port = free_port()
    server = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    server += ["--save", "", "--dir", str(tmp_path)]
    options = {**QUICK, "resend_after": "PT2S"}
    with (
        postgres_database() as url,
        installed(
            "probe_app", tmp_path, url, f"redis://127.0.0.1:{port}/0", **options
        ) as installation,
    ):
        job_id = put(installation.runtime, probe.Leave())
        worker = installation.worker()
        broker = subprocess.Popen(server, stdout=subprocess.DEVNULL)
        try:
            assert installation.ended(job_id, seconds=90).state == JobState.SUCCEEDED
            # And once more, with every process connected when it goes, one at work, the other idle.
            under_way = put(installation.runtime, probe.Leave(milliseconds=4000))
            installation.until(lambda: installation.job(under_way).state == JobState.RUNNING)
            broker.kill()
            broker.wait()
            job_id = put(installation.runtime, probe.Leave())
            broker = subprocess.Popen(server, stdout=subprocess.DEVNULL)
            for ended in (installation.ended(under_way), installation.ended(job_id, seconds=90)):
                assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
            # What was under way could not be acknowledged: not then, and not when it ended.
            installation.ended(put(installation.runtime, probe.Leave()), seconds=90)
            assert worker.poll() is None
        finally:
            installation.stop()
            broker.kill()
            broker.wait()
