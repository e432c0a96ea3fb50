"""`make demo`, in a copy of this repository."""

import os
import re
import subprocess
import sys

import pytest
from forking import run_forked
from spreading import STARTING

from tests.conftest import ROOT
from tests.copies import copy_repository


def run_there(folder):
    """Run the demo in a folder, as a person does; return its exit code and what it said."""
    path = f"{folder}{os.pathsep}{STARTING}"
    ran = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.timeout(420)
def test_second_demo_finds_nothing_to_do_and_lists_no_old_mails(tmp_path):
    copy_repository(tmp_path)

    first, second = run_there(tmp_path), run_there(tmp_path)

    assert (first[0], second[0]) == (0, 0), first[1] + second[1]
    # A refresh by the worker may be before the sync.
    complete = re.search(r"sync complete: (\d+) built, (\d+) unchanged, 0 failed", first[1])
    assert complete is not None, first[1]
    assert sum(map(int, complete.groups())) == 32
    assert "sync complete: 0 built, 32 unchanged, 0 failed, 0 removed" in second[1]
    named = re.findall(r"^  (var/mail/\w+\.eml)  ", first[1], re.MULTILINE)
    assert sorted(named) == sorted(
        str(file.relative_to(tmp_path)) for file in (tmp_path / "var/mail").glob("*.eml")
    )
    assert (len(named), ".eml" in second[1]) == (2, False)


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a module on an installation in the test's folder."""
    installation = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/demo.db",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
        "MAIL_URL": f"folder://{tmp_path}/mail",
        "FEED_STORE": f"{tmp_path}/feeds",
    }

    def call(module, *words, **settings):
        environment = os.environ | installation | settings
        ran = run_forked(module, *words, environment=environment, folder=ROOT)
        return ran.returncode, ran.stdout + ran.stderr

    return call


@pytest.mark.parametrize(
    "settings",
    [
        {
            "ENVIRONMENT": "production",
            "POSTGRES_PASSWORD": "a secret of our own",
            "FLOWER_BASIC_AUTH": "admin:a secret of our own",
            "LINK_SECRET": "a secret of our own",
        },
        {"MAIL_URL": "smtp://127.0.0.1:1?tls=none"},
    ],
    ids=["production", "mail server"],
)
def test_demo_ends_where_it_could_do_harm(run, tmp_path, settings):
    code, said = run("examples.demo", **settings)

    assert (code, "it needs ENVIRONMENT=development and MAIL_URL=folder://" in said) == (1, True)
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_demo_does_not_touch_another_school(run):
    run("alembic", "upgrade", "heads")
    user = ("anna@shop.example", "--first", "Anna", "--last", "Muster", "--role", "teacher")
    run("celery", "-A", "project", "school", "user", "add", *user)

    code, said = run("examples.demo")

    assert (code, "holds another school, of 1 users" in said) == (1, True), said
