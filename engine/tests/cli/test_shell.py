"""The prompt of `make shell`, with standard input from a file."""

import io

import pytest
from nightshift.cli.shell import open_shell
from nightshift.jobs.models import Job
from sqlalchemy import select

ENQUEUE = """
from two_queues import Post
job_id = enqueue(session, Post(), now=runtime.now())
"""


@pytest.fixture
def prompt(job_app, monkeypatch, capsys):
    """Return what types lines at the prompt, and returns what it wrote and the jobs then."""

    def prompt(lines):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        open_shell(job_app)
        with job_app.runtime.read_only() as session:
            return capsys.readouterr(), session.scalars(select(Job.kind)).all()

    return prompt


def test_banner_says_what_is_there_and_names_the_database(prompt, tmp_path):
    shown, _ = prompt("")

    names = [line.split()[0] for line in shown.err.splitlines() if line[:1].isalpha()]
    assert names == ["session", "enqueue", "runtime", "app"]
    assert f"sqlite:///{tmp_path}/nightshift.db" in shown.err


def test_what_is_committed_is_kept(prompt):
    assert prompt(f"{ENQUEUE}session.commit()\n")[1] == ["post.send"]


def test_what_is_not_committed_is_dropped(prompt):
    assert prompt(ENQUEUE)[1] == []


def test_kind_that_no_component_declares_is_refused(prompt):
    other = 'Post.__class__("Other", Post.__bases__, {"__module__": ""}, kind="other")'
    shown, jobs = prompt(
        f"from two_queues import Post\nenqueue(session, {other}(), now=runtime.now())\n"
    )

    assert "InvalidInput: no component declares the kind 'other'" in shown.err
    assert jobs == []
