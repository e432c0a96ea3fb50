"""`make demo`, in a copy of this repository."""

import os
import re
import subprocess
import sys

import pytest

from project.settings import NAME
from tests.copies import copy_repository


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a module there, and returns its exit code and what it said."""
    copy_repository(tmp_path)

    def call(*command, **settings):
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), **settings}
        ran = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        return ran.returncode, ran.stdout + ran.stderr

    return call


@pytest.mark.timeout(240)
def test_second_demo_finds_nothing_to_do_and_lists_no_old_mails(run, tmp_path):
    first, second = run("examples.demo"), run("examples.demo")

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


@pytest.mark.parametrize(
    "settings",
    [
        {
            "ENVIRONMENT": "production",
            "POSTGRES_PASSWORD": "ours",
            "FLOWER_BASIC_AUTH": "admin:ours",
            "LINK_SECRET": "ours",
        },
        {"MAIL_URL": "smtp://127.0.0.1:1?tls=none"},
    ],
    ids=["production", "mail server"],
)
def test_demo_ends_where_it_could_do_harm(run, tmp_path, settings):
    code, said = run("examples.demo", **settings)

    assert (code, "it needs ENVIRONMENT=development and MAIL_URL=folder://" in said) == (1, True)
    assert "Traceback" not in said
    assert not (tmp_path / f"var/{NAME}.db").exists()


def test_demo_does_not_touch_another_school(run):
    run("alembic", "upgrade", "heads")
    user = ("anna@shop.example", "--first", "Anna", "--last", "Muster", "--role", "teacher")
    run("celery", "-A", "project", "school", "user", "add", *user)

    code, said = run("examples.demo")

    assert (code, "holds another school, of 1 users" in said) == (1, True), said
