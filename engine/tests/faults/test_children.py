"""Pool processes that live for a few jobs only."""

import time

import probe_app as probe
import pytest
from installations import QUICK, any_installation
from nightshift.jobs import enqueue_many
from probing import count_effects


@pytest.mark.parametrize("kind", ["servers", "embedded"])
def test_short_lived_children_never_hang(tmp_path, kind):
    jobs = 10_000 if kind == "servers" else 1_000
    settings = {**QUICK, "resend_after": "PT2S"}
    with any_installation(kind, "probe_app", tmp_path, **settings) as installation:
        runtime = installation.runtime
        installation.worker("--max-tasks-per-child=5")
        leaving = [probe.Leave(number=number) for number in range(jobs)]
        with runtime.unit_of_work() as session:
            enqueue_many(session, leaving, now=runtime.now())
        began = time.monotonic()
        installation.until(lambda: installation.open_jobs() == 0, seconds=1200)
        seconds = time.monotonic() - began
        print(f"\n{kind}: {jobs} jobs with max_tasks_per_child=5 in {seconds:.0f} s")
        assert count_effects(runtime) == jobs
