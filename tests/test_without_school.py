"""Leaving the school out: a list of paths and lines, and what is left is a project.

It migrates, runs a job, sends a mail and passes its own tests, on SQLite and on Postgres.
"""

import os
import subprocess
import sysconfig
import tomllib
from contextlib import contextmanager
from email import message_from_bytes
from pathlib import Path
from shutil import rmtree

import pytest
from servers import postgres_database, redis_database

from tests.copies import copy_repository, make_environment

PARTS = tomllib.loads((Path(__file__).parent / "school_parts.toml").read_text(encoding="utf-8"))

# Enqueues a mail from a plain SQLAlchemy session, and waits until a worker has sent it.
SEND = """
import sys, time
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from project.celery import app
from services.mail import outbox
from services.mail.models import Mail, MailState

now = datetime.now(UTC)
content = EmailMessage()
content["From"], content["Subject"] = "Shop <shop@shop.example>", "It works without a school"
content.set_content("Hello")
message = outbox.Message(
    kind="greeting", dedupe_key="greeting:1", recipient="anna@shop.example",
    content=content, expires_at=now + timedelta(days=1),
)
with Session(app.runtime.engine) as session, session.begin():
    outbox.queue(session, message, now=now)
for _ in range(300):
    with app.runtime.read_only() as session:
        state = session.execute(select(Mail.state)).scalar_one()
    if state == MailState.SENT:
        sys.exit(0)
    time.sleep(0.2)
sys.exit(f"the mail is still {state}")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Give a copy of this repository without the school, with an environment of its own."""
    copy = tmp_path_factory.mktemp("shop") / "shop"
    copy_repository(copy)
    leave_out(copy)
    make_environment(copy)
    drop_unused_translations(copy)
    return copy


def leave_out(copy):
    for name in PARTS["paths"]:
        path = copy / name
        rmtree(path) if path.is_dir() else path.unlink()
    for name, lines in PARTS["lines"].items():
        kept = (copy / name).read_text(encoding="utf-8").splitlines(keepends=True)
        for line in lines:
            at = [index for index, text in enumerate(kept) if text.strip() == line]
            assert len(at) == 1, f"{name}: {line!r} stands there {len(at)} times"
            del kept[at[0]]
        (copy / name).write_text("".join(kept), encoding="utf-8")


def drop_unused_translations(copy):
    """Run `make messages` with the tools of this interpreter, without installing them again."""
    tools = f"BIN={sysconfig.get_path('scripts')}"
    subprocess.run(["make", "--old-file=.venv/.dev", tools, "messages"], cwd=copy, check=True)


def run(copy, *command, **environment):
    """Run a command of the copy's Python and return what it wrote; fail when it fails."""
    own = {"PATH": f"{copy}/.venv/bin:{os.environ['PATH']}", "HOME": str(copy)}
    done = subprocess.run(
        [copy / ".venv/bin/python", "-m", *command],
        cwd=copy,
        env=own | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@contextmanager
def installation(kind, folder):
    mail = {"MAIL_URL": f"folder://{folder}/mail"}
    if kind == "embedded":
        yield mail | {
            "DATABASE_URL": f"sqlite:///{folder}/shop.db",
            "BROKER_URL": f"filesystem://{folder}/broker",
        }
    else:
        with postgres_database() as database, redis_database() as broker:
            yield mail | {"DATABASE_URL": database, "BROKER_URL": broker}


def test_nothing_that_is_left_names_what_was_left_out(project):
    gone = [name.removesuffix(".py").replace("/", ".") for name in PARTS["paths"]]
    left = [path for path in project.rglob("*.py") if ".venv" not in path.parts]
    words = [name for name in gone if name.startswith(("services.", "tasks.", "project."))]
    naming = {
        str(path.relative_to(project)): word
        for path in left
        for word in words
        if word in path.read_text(encoding="utf-8")
    }
    assert naming == {}


@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_what_is_left_migrates_runs_a_job_and_sends_a_mail(project, kind, tmp_path):
    with installation(kind, tmp_path) as environment:
        run(project, "alembic", "upgrade", "heads", **environment)
        run(project, "alembic", "check", **environment)
        environment |= {"PATH": f"{project}/.venv/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
        python = project / ".venv/bin/python"
        command = [python, "-m", "celery", "-A", "project", "worker", "--concurrency=1"]
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
        try:
            subprocess.run([python, "-c", SEND], cwd=project, env=environment, check=True)
        finally:
            worker.terminate()
            worker.wait(30)
        listed = run(project, "celery", "-A", "project", "jobs", "list", "--json", **environment)
    [mail] = (tmp_path / "mail").glob("*.eml")
    assert message_from_bytes(mail.read_bytes())["Subject"] == "It works without a school"
    assert '"kind": "mail.deliver"' in listed


# Three minutes: in `make faults` only, so that `.ci/run` stays below its limit.
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_what_is_left_passes_its_tests(project):
    servers = {name: value for name, value in os.environ.items() if name.startswith("TEST_")}
    tests = ["-q", "-m", "not faults and not oracles", "tests"]
    run(project, "pytest", "-p", "no:cacheprovider", *tests, **servers)
