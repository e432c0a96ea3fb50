"""The ledger's own tests, and a worker's, through a PgBouncer that pools transactions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import POSTGRES_URL, pooled

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "what",
    [
        ["jobs", "test_runtime.py", "-k", "postgres"],
        ["worker/test_jobs.py", "worker/test_keeper.py", "-k", "servers"],
    ],
)
def test_tests_pass_behind_a_pooler(what):
    with pooled(POSTGRES_URL):  # skips the test where it is not installed
        pass
    *modules, dash_k, which = what
    paths = [str(TESTS / module) for module in modules]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", dash_k, which]
    environment = {**os.environ, "TEST_POOLER": "true"}
    ran = subprocess.run(
        [*command, "-m", "not faults", *paths],
        env=environment,
        cwd=TESTS.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
