"""`celery -A project doctor`."""

import json
import os
from pathlib import Path

import pytest
from forking import run_forked
from health import ALEMBIC, make_healthy
from nightshift.cli.doctor import doctor
from nightshift.jobs.models import PausedQueue
from sqlalchemy import text

TESTS = Path(__file__).parent.parent


@pytest.fixture
def healthy(job_app, tmp_path, monkeypatch):
    """Return the app of an installation in which nothing is wrong, the machine included."""
    (tmp_path / "alembic.ini").write_text(ALEMBIC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "admin:one of our own")
    return make_healthy(job_app)


def read(result):
    answer = json.loads(result.stdout)
    return answer["status"], {one["check"]: one for one in answer["checks"]}


def test_healthy_installation_has_exit_code_0(healthy, run):
    status, checks = read(run(doctor, "--json"))

    assert {one["status"] for one in checks.values()} == {"ok"}
    assert status == "ok"


def test_warning_has_exit_code_1(healthy, run):
    with healthy.runtime.unit_of_work() as session:
        session.add(PausedQueue(queue="post", paused_at=healthy.runtime.now()))

    status, checks = read(run(doctor, "--json", code=1))

    assert (status, checks["paused queues"]["status"]) == ("warn", "warn")


def test_failure_has_exit_code_2_and_says_what_to_do(healthy, run):
    with healthy.runtime.unit_of_work() as session:
        session.execute(text("delete from worker"))

    assert "celery -A project worker" in run(doctor, code=2).stdout


def test_check_has_its_status_finding_and_remedy(healthy, run):
    with healthy.runtime.unit_of_work() as session:
        session.execute(text("delete from worker"))

    _, checks = read(run(doctor, "--json", code=2))

    assert checks["workers"] == {
        "check": "workers",
        "status": "fail",
        "detail": "default: 0, post: 0",
        "remedy": "`celery -A project worker`, or `make dev`",
    }


def test_command_is_one_of_celerys(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "DATABASE_URL": f"sqlite:///{tmp_path}/none.db",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
    }
    words = ["-A", "probe_app", "doctor", "--json"]

    ran = run_forked("celery", *words, environment=environment)

    assert (ran.returncode, json.loads(ran.stdout)["status"]) == (2, "fail"), ran.stderr
