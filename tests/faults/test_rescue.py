"""How soon a job runs again after its process died, with default settings."""

import subprocess
import time

import pytest

from services.jobs.models import JobState
from tests.faults.conftest import kill
from tests.worker import probe
from tests.worker.conftest import any_installation
from tests.worker.test_jobs import put


@pytest.mark.parametrize("kind", ["embedded", "servers"])
@pytest.mark.parametrize(("what", "limit"), [("child", 30), ("worker", 60), ("machine", 60)])
def test_job_runs_again_soon(tmp_path, kind, what, limit):
    marker = tmp_path / "marker"
    with any_installation(kind, tmp_path) as installation:
        worker = installation.worker()
        job_id = put(installation, probe.Sleep(seconds=4, marker=str(marker)))
        installation.until(marker.exists)
        child = marker.read_text()
        marker.unlink()
        if what == "child":
            kill(int(child))
        else:
            if what == "machine":
                # The keeper too: then nobody is left who knows, and the others have to see the silence.
                subprocess.run(["pkill", "-9", "-P", str(worker.pid), "-f", "project.keeper"], check=True)
            worker.kill()
            worker.wait()
            installation.worker(wait=False)
        killed = time.monotonic()
        installation.until(marker.exists, seconds=limit)
        print(f"\n{kind}: {what} killed, its job runs again {time.monotonic() - killed:.1f} s later")
        job = installation.ended(job_id, seconds=30)
        assert (job.state, job.attempt, installation.effects(job_id)) == (JobState.SUCCEEDED, 2, 1)
