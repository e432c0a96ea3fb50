"""A made project is green at once: its checks, its tests, its demo.

The one without the school is tried in each run, the other in the long ones.
"""

import re
from contextlib import ExitStack
from email import message_from_bytes

import pytest
from servers import postgres_database, redis_database

from tests.making import make_environment, make_project

# Adds a reminder and waits until a worker has mailed it.
REMIND = """
import sys, time
from sqlalchemy import select
from project.celery import app
from services.mail.models import Mail, MailState
from services.reminders import reminders

runtime = app.runtime
with runtime.unit_of_work() as session:
    now = runtime.now()
    reminders.add(session, "anna@example.com", "Order paper", due_at=now, now=now)
for _ in range(300):
    with runtime.read_only() as session:
        if session.scalars(select(Mail.state)).all() == [MailState.SENT]:
            sys.exit(0)
    time.sleep(0.2)
sys.exit("the mail was not sent")
"""


def test_nothing_is_left_to_commit(made):
    assert made.run("git", "status", "--porcelain") == ""


@pytest.mark.timeout(600)
def test_checks_are_green(made):
    made.run("make", "check")


@pytest.mark.timeout(1800)
def test_tests_are_green(made):
    made.run("make", "test")


@pytest.mark.timeout(300)
def test_demo_ends_in_mails(made):
    shown = made.run("make", "demo")

    mails = list((made.folder / "var/demo/mail").glob("*.eml"))
    assert len(mails) == 2
    for mail in mails:
        assert message_from_bytes(mail.read_bytes())["To"] in re.sub(r"\s+", " ", shown)


def test_tables_are_those_of_the_migrations(made, tmp_path):
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"}

    made.run("alembic", "upgrade", "heads", **database)

    made.run("alembic", "check", **database)


def test_edited_engine_is_named(made):
    kept = made.read("engine/nightshift/errors.py")
    try:
        (made.folder / "engine/nightshift/errors.py").write_text(kept + "\n", encoding="utf-8")
        (made.folder / "engine/nightshift/more.py").touch()

        refused = made.try_to_run("python", "engine/check.py")
    finally:
        (made.folder / "engine/nightshift/errors.py").write_text(kept, encoding="utf-8")
        (made.folder / "engine/nightshift/more.py").unlink()
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "engine/nightshift/errors.py was edited",
        "engine/nightshift/more.py was added",
        "engine/ comes from the template, and is not for editing: docs/updating.md",
    ]


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_two_projects_share_a_machine_a_redis_and_a_postgres(tmp_path):
    with ExitStack() as stack:
        broker = stack.enter_context(redis_database())
        found = []
        for name in ("shop", "other-shop"):
            project = make_project(tmp_path / name, school=False, name=name)
            make_environment(project)
            database = stack.enter_context(postgres_database())
            own = {
                "DATABASE_URL": database,
                "BROKER_URL": broker,
                "MAIL_URL": f"folder://{tmp_path}/{name}-mail",
            }
            project.run("alembic", "upgrade", "heads", **own)
            worker = ["celery", "-A", "project", "worker", "--concurrency=1"]
            log = tmp_path / f"{name}.log"
            stack.enter_context(project.running(*worker, log=log, **own))
            found.append((project, own))
        for project, own in found:
            project.run("python", "-c", REMIND, **own)
        shown = [project.run("celery", "-A", "project", "metrics", **own) for project, own in found]
    mails = [len(list((tmp_path / f"{name}-mail").glob("*.eml"))) for name in ("shop", "other-shop")]
    assert mails == [1, 1]
    assert "\nshop_jobs{" in shown[0]
    assert "\nother_shop_jobs{" in shown[1]
