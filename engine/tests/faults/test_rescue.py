"""How soon a job runs again after its process died, with default settings."""

import signal
import time

import probe_app as probe
import pytest
from fault_processes import find_keepers, kill
from installations import any_installation
from nightshift.jobs.models import JobState
from probing import count_effects, put


@pytest.mark.parametrize("kind", ["embedded", "servers"])
@pytest.mark.parametrize(("what", "limit"), [("child", 30), ("worker", 60), ("machine", 60)])
def test_job_runs_again_soon(tmp_path, kind, what, limit):
    marker = tmp_path / "marker"
    with any_installation(kind, "probe_app", tmp_path) as installation:
        worker = installation.worker()
        job_id = put(installation.runtime, probe.Sleep(seconds=4, marker=str(marker)))
        installation.until(marker.exists)
        child = marker.read_text()
        marker.unlink()
        if what == "child":
            kill(int(child))
        else:
            if what == "machine":
                # The keeper too, before the worker replaces it: only another keeper can notice.
                worker.send_signal(signal.SIGSTOP)
                [keeper] = find_keepers(worker.pid)
                kill(keeper)
            worker.kill()
            worker.wait()
            installation.worker(wait=False)
        killed = time.monotonic()
        installation.until(marker.exists, seconds=limit)
        seconds = time.monotonic() - killed
        print(f"\n{kind}: {what} killed, its job runs again {seconds:.1f} s later")
        job = installation.ended(job_id, seconds=30)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
        assert count_effects(installation.runtime, job_id) == 1
