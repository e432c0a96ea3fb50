"""The ledger's own tests, and a worker's, through a PgBouncer that pools transactions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nightshift.celery.app import App
from nightshift.observe.checks import check_pooler
from nightshift.observe.probes import examine
from probe_app import app
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


@pytest.mark.parametrize(
    ("through", "setting", "status", "said"),
    [
        (True, "none", "warn", "a pooler is there, and DATABASE_POOLER is none"),
        (True, "transaction", "ok", "a pooler is there, and DATABASE_POOLER is transaction"),
        (False, "none", "ok", "none is there, and DATABASE_POOLER is none"),
        (False, "transaction", "warn", "none is there, and DATABASE_POOLER is transaction"),
    ],
)
def test_doctor_tells_whether_a_pooler_is_there(through, setting, status, said):
    with pooled(POSTGRES_URL, "ignore_startup_parameters = options") as url:
        runtime = app.composition.runtime(
            database_url=url if through else POSTGRES_URL, database_pooler=setting, _env_file=None
        )
        with runtime.read_only() as session:
            assert check_pooler(runtime, session) == (status, said)
        runtime.close()


def test_pooler_that_the_settings_do_not_name_is_named_with_what_to_do():
    with pooled(POSTGRES_URL) as url:
        made = App("probe_app", app.composition, database_url=url, _env_file=None)
        found = {one.probe: one for one in examine(made.runtime)}["database"]
        made.runtime.close()
    assert found.status == "fail"
    assert "unsupported startup parameter: options" in found.detail
    assert "PgBouncer needs DATABASE_POOLER=transaction" in found.remedy
