"""Two made projects on one machine, with one Redis, do not meet."""

import re
from contextlib import ExitStack

import pytest
import redis
from ruamel.yaml import YAML
from servers import postgres_database, redis_database

from tests.making import make_environment, make_project

NAMES = ("north-shop", "south-shop")

# Adds a reminder and waits until a worker has mailed it.
REMIND = """
import sys, time
from sqlalchemy import select
from project.celery import app
from services.mail.models import Mail, MailState
from services.reminders import reminders

runtime, name = app.runtime, sys.argv[1]
with runtime.unit_of_work() as session:
    now = runtime.now()
    reminders.add(session, f"anna@{name}.example", f"Greet {name}", due_at=now, now=now)
for _ in range(300):
    with runtime.read_only() as session:
        if session.execute(select(Mail.recipient, Mail.state)).all() == [
            (f"anna@{name}.example", MailState.SENT)
        ]:
            sys.exit(0)
    time.sleep(0.2)
sys.exit("the mail was not sent")
"""


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbours")
    return [make_project(folder / name, school=False, name=name) for name in NAMES]


def read_example(project):
    lines = project.read(".env.example").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def read_ports(project):
    """Return the ports on this machine: of processes, and of containers by default."""
    example = read_example(project)
    web = example["WEB_BIND"].removeprefix("127.0.0.1:")
    assert example["PUBLIC_URL"] == ""
    compose = YAML(typ="safe").load(project.read("docker-compose.yml"))
    published = {
        port
        for service in compose["services"].values()
        for line in service.get("ports", [])
        for port in re.findall(r"_PORT:-(\d+)\}", line)
    }
    assert {web, example["FLOWER_PORT"], example["DESK_BIND"].rpartition(":")[2]} <= published
    assert len(published) == 4
    return published


def test_names_databases_and_ports_differ(neighbours):
    north, south = (read_example(project) for project in neighbours)
    for setting in ("PROJECT_NAME", "DATABASE_URL", "MAIL_FROM", "WEB_BIND"):
        assert north[setting] != south[setting]
    assert not read_ports(neighbours[0]) & read_ports(neighbours[1])
    for project, name in zip(neighbours, NAMES, strict=True):
        assert f"\nname: ${{PROJECT_NAME:-{name}}}\n" in project.read("docker-compose.yml")


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_both_run_at_the_same_time_with_one_redis(neighbours, database, tmp_path):
    with redis_database() as broker, ExitStack() as stack:
        for project in neighbours:
            if not (project.folder / ".venv").exists():
                make_environment(project)
            settings = {"BROKER_URL": broker, "WORKER_CONCURRENCY": "1"}
            if database == "postgres":
                settings["DATABASE_URL"] = stack.enter_context(postgres_database())
            (project.folder / ".env").write_text(
                "".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8"
            )
            log = tmp_path / f"{project.folder.name}.log"
            stack.enter_context(project.running("python", "-m", "project.local", log=log))

        for project, name in zip(neighbours, NAMES, strict=True):
            project.wait_for(tmp_path / f"{name}.log", "Ctrl-C stops everything.", seconds=120)
        for project, name in zip(neighbours, NAMES, strict=True):
            project.run("python", "-c", REMIND, name)
            [mail] = (project.folder / "var/mail").glob("*.eml")
            assert f"To: anna@{name}.example" in mail.read_text(encoding="utf-8")

        shown = [project.run("celery", "-A", "project", "metrics") for project in neighbours]
        with redis.Redis.from_url(broker) as connection:
            keys = {key.decode() for key in connection.keys()} - {"taken"}
    prefixes = {key.partition(":")[0] for key in keys}
    assert prefixes == set(NAMES)
    assert ["\nnorth_shop_jobs{" in text for text in shown] == [True, False]
    assert ["\nsouth_shop_jobs{" in text for text in shown] == [False, True]
    for project in neighbours:
        for mail in (project.folder / "var/mail").glob("*.eml"):
            mail.unlink()
