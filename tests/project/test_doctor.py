import json
import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from kombu import Queue
from sqlalchemy import text, update
from sqlalchemy.exc import SQLAlchemyError

from project.celery import app
from project.celeryconfig import QUEUES, configuration
from project.cli.doctor import doctor
from project.doctor import CHECKS, Observer, examine
from project.schedule import entries
from project.testing import _configured
from services.calendars.models import Feed
from services.database import Base
from services.jobs import rescue, schedule
from services.jobs.models import Job, JobState, PausedQueue, ScheduleEntry
from tests.conftest import make_settings, reachable, require

ROOT = Path(__file__).parent.parent.parent
RABBITMQ_URL = os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")

# What the machine that runs the tests decides, not the installation.
OF_THE_MACHINE = {"PID 1", "Flower"}


def found(settings):
    return {one["check"]: one for one in examine(settings)}


def statuses(settings):
    return {name: one["status"] for name, one in found(settings).items() if name not in OF_THE_MACHINE}


def ended(kind, state, at):
    times = {"created_at": at, "run_at": at, "started_at": at, "finished_at": at}
    return Job(id=uuid4(), kind=kind, queue="default", priority=5, state=state, args={}, max_attempts=1, time_limit=60, **times)


def make_healthy(boot):
    """Stamp the migrations, register the schedule, let every recurring job have succeeded, and have a worker for every queue."""
    with boot.unit_of_work() as session:
        script = ScriptDirectory(str(ROOT / "migrations"))
        MigrationContext.configure(session.connection()).stamp(script, "head")
        rescue.heartbeat(session, uuid4(), name="one", queues=",".join(QUEUES), pid=1)
        session.add_all([ended(entry.job.policy.kind, JobState.SUCCEEDED, boot.now()) for entry in entries(boot.settings)])
        session.flush()
        schedule.register(session, entries(boot.settings), now=boot.now())


@pytest.fixture
def healthy(job_boot):
    make_healthy(job_boot)
    return job_boot


def test_healthy_installation_has_nothing_to_say(healthy):
    assert set(statuses(healthy.settings).values()) == {"ok"}


def test_every_check_has_a_name_of_its_own_and_a_remedy():
    names = [(check.name, check.broker) for check in CHECKS]
    assert len(set(names)) == len(names)
    assert [check.name for check in CHECKS if not check.remedy] == ["grace period"]


def long_ago(session):
    """The last slots were started, and nothing of it has succeeded for years."""
    for entry in entries(make_settings()):
        slot = next(entry.before(datetime.now().astimezone()))
        session.execute(update(ScheduleEntry).where(ScheduleEntry.entry == entry.name).values(last_fire_at=slot))
    session.execute(update(Job).values(finished_at=datetime.fromisoformat("2020-01-01T00:00Z")))


TROUBLES = {
    "workers": (lambda session: session.execute(text("delete from worker")), "fail"),
    "beat": (lambda session: session.execute(text("delete from schedule")), "fail"),
    "migrations": (lambda session: session.execute(text("update alembic_version set version_num = '0000'")), "fail"),
    "recurring jobs": (long_ago, "warn"),
    "failed in a day": (lambda session: session.add(ended("a", JobState.FAILED, datetime.now().astimezone())), "warn"),
    "failed feeds": (
        lambda session: session.add(Feed(kind="user", owner_id=1, token="t" * 32, error="the disk is full")),
        "warn",
    ),
    "paused queues": (lambda session: session.add(PausedQueue(queue="mail", paused_at=datetime.now().astimezone())), "warn"),
    "stuck jobs": (
        lambda session: session.add(ended("a", JobState.RUNNING, datetime.now().astimezone() - timedelta(minutes=9))),
        "fail",
    ),
    "overdue jobs": (
        lambda session: session.add(ended("a", JobState.QUEUED, datetime.now().astimezone() - timedelta(minutes=9))),
        "warn",
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_in_the_ledger_is_found_and_touches_no_other_check(healthy, name):
    trouble, status = TROUBLES[name]
    with healthy.unit_of_work() as session:
        trouble(session)
    everything = found(healthy.settings)
    assert (everything[name]["status"], bool(everything[name]["remedy"])) == (status, True)
    assert {other for other, one in everything.items() if one["status"] != "ok"} - OF_THE_MACHINE == {name}


def test_beat_is_missed_when_a_slot_has_passed(healthy):
    with healthy.unit_of_work() as session:
        session.execute(update(ScheduleEntry).values(last_fire_at=healthy.now() - timedelta(days=2)))
    assert statuses(healthy.settings)["beat"] == "fail"


def test_recurring_job_that_was_never_due_need_not_have_succeeded(healthy):
    with healthy.unit_of_work() as session:
        session.execute(text("delete from job"))
    one = found(healthy.settings)["recurring jobs"]
    assert (one["status"], "last good run never" in one["detail"]) == ("ok", True)


def test_paused_queue_is_not_overdue_too(healthy):
    with healthy.unit_of_work() as session:
        TROUBLES["overdue jobs"][0](session)
        session.add(PausedQueue(queue="default", paused_at=healthy.now()))
    assert statuses(healthy.settings)["overdue jobs"] == "ok"


def test_exception_in_one_check_is_its_failure(healthy):
    with healthy.unit_of_work() as session:
        session.execute(text("drop table paused_queue"))
    everything = found(healthy.settings)
    assert everything["paused queues"]["status"] == "fail"
    assert "no such table: paused_queue" in everything["paused queues"]["detail"]
    assert everything["workers"]["status"] == "ok"


def test_database_that_is_not_there_is_not_made(tmp_path):
    settings = make_settings(database_url=f"sqlite:///{tmp_path}/none/nightshift.db", feed_store=tmp_path / "feeds")
    everything = statuses(settings)
    assert everything["database"] == "fail"
    assert {everything[check.name] for check in CHECKS if check.ledger} == {"skip"}
    assert list(tmp_path.iterdir()) == []


def test_embedded_database_outside_of_wal_is_noticed(tmp_path):
    path = tmp_path / "nightshift.db"
    import sqlite3

    sqlite3.connect(path).execute("create table one (two)").connection.close()
    assert statuses(make_settings(database_url=f"sqlite:///{path}"))["database"] == "warn"


def test_leftover_files_of_the_broker_are_noticed(healthy, tmp_path):
    left = tmp_path / "broker" / "processed" / "left.msg"
    left.touch()
    os.utime(left, (time.time() - 7200,) * 2)
    assert "1 files older" in found(healthy.settings)["broker"]["detail"]
    assert statuses(healthy.settings)["broker"] == "warn"


@pytest.mark.skipif(os.geteuid() == 0, reason="ROOT WRITES ANYWHERE: run the tests as somebody else to see this")
def test_feed_store_that_is_not_writable_fails(healthy, tmp_path):
    (tmp_path / "feeds").mkdir(mode=0o500)
    assert statuses(healthy.settings)["feed store"] == "fail"


@pytest.mark.parametrize(
    ("login", "status"),
    [("", "warn"), ("admin:change-me", "warn"), ("admin:one of our own", "ok")],
    ids=["none", "placeholder", "own"],
)
def test_flower_without_a_login(healthy, monkeypatch, login, status):
    monkeypatch.setenv("FLOWER_BASIC_AUTH", login)
    assert found(healthy.settings)["Flower"]["status"] == status


def test_connections_cannot_write(engine):
    url = engine.url.render_as_string(hide_password=False)
    boot = Observer(make_settings(database_url=url))
    with pytest.raises(SQLAlchemyError, match=r"read-?only"), boot.read_only() as session:
        session.execute(text("delete from worker"))
    with pytest.raises(SQLAlchemyError, match=r"read-?only"), boot.at_once() as connection:
        connection.execute(text("delete from worker"))
    boot.disconnect()


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_no_secret_is_shown():
    port = closed_port()
    settings = make_settings(
        environment="production",
        database_url=f"postgresql+psycopg://user:p%40ss-word@127.0.0.1:{port}/p@ss-word",
        broker_url=f"redis://:br0ker-secret@127.0.0.1:{port}/0",
        flower_basic_auth="admin:flower-secret",
        postgres_password="pg-secret",
        link_secret="link-secret",
    )
    with _configured(configuration(settings)):
        everything = found(settings)
    assert (everything["database"]["status"], everything["broker"]["status"]) == ("fail", "fail")
    said = json.dumps(everything)
    assert not [
        secret
        for secret in ("p@ss-word", "p%40ss-word", "br0ker-secret", "flower-secret", "pg-secret", "link-secret")
        if secret in said
    ]


def test_postgres_installation(postgres_url, tmp_path):
    settings = make_settings(database_url=postgres_url, broker_url=f"filesystem://{tmp_path}/broker", feed_store=tmp_path / "feeds")
    from project.bootstrap import Bootstrap

    boot = Bootstrap(settings)
    Base.metadata.create_all(boot.engine)
    with _configured(configuration(settings)):
        make_healthy(boot)
        everything = found(settings)
    with boot.unit_of_work() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    boot.disconnect()
    assert {name for name, one in everything.items() if one["status"] != "ok"} <= OF_THE_MACHINE
    assert everything["database"]["detail"].startswith("postgresql ")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--appendonly", "yes"], "ok", "appendonly on, noeviction"),
        (["--appendonly", "no"], "warn", "appendonly off, noeviction"),
        (["--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"], "fail", "appendonly on, allkeys-lru"),
    ],
    ids=["good", "no AOF", "evicts"],
)
def test_redis_that_would_lose_messages_is_noticed(healthy, tmp_path, options, status, said):
    if shutil.which("redis-server") is None:
        pytest.skip("REDIS-SERVER IS NOT INSTALLED: its settings cannot be tried")
    port = closed_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path), *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        while not reachable(url):
            time.sleep(0.02)
        settings = healthy.settings.model_copy(update={"broker_url": url})
        with _configured(configuration(settings)):
            everything = found(settings)
        with redis.Redis(port=port) as client:
            assert client.dbsize() == 0
    finally:
        server.terminate()
        server.wait()
    assert (everything["broker"]["status"], everything["broker"]["detail"].partition(", ")[2]) == (status, said)
    assert everything["visibility timeout"]["status"] == "ok"


def test_visibility_timeout_below_the_longest_job_is_noticed(healthy):
    settings = healthy.settings.model_copy(
        update={"broker_url": f"redis://127.0.0.1:{closed_port()}/0", "visibility_timeout": timedelta(minutes=10)}
    )
    with _configured(configuration(settings)):
        one = found(settings)["visibility timeout"]
    assert (one["status"], one["detail"]) == ("warn", "0:10:00; the longest job and its wait may take 0:11:00")


def test_rabbitmq_queues_are_looked_at_and_not_made(healthy):
    require(RABBITMQ_URL, "rabbitmq")
    settings = healthy.settings.model_copy(update={"broker_url": RABBITMQ_URL})
    quorum, classic, missing = (f"doctor-{kind}-{uuid4().hex[:8]}" for kind in ("quorum", "classic", "missing"))
    wanted = {"x-queue-type": "quorum"}
    queues = [Queue(name, routing_key=name, queue_arguments=wanted) for name in (quorum, classic, missing)]
    with _configured({**configuration(settings), "task_queues": queues}), app.connection_for_write() as connection:
        queues[0](connection.default_channel).queue_declare()
        Queue(classic)(connection.default_channel).queue_declare()
        try:
            one = found(settings)["broker"]
            with pytest.raises(connection.channel_errors, match="NOT_FOUND"):
                connection.channel().queue_declare(missing, passive=True)
        finally:
            channel = connection.channel()
            channel.queue_delete(quorum)
            channel.queue_delete(classic)
    assert one["status"] == "warn"
    assert quorum not in one["detail"]
    assert f"{classic}: " in one["detail"]
    assert f"{missing}: " in one["detail"]


def test_command_ends_with_the_worst(healthy, monkeypatch):
    ran = CliRunner().invoke(doctor, ["--json"])
    answer = json.loads(ran.stdout)
    worst = {one["status"] for one in answer["checks"]}
    assert (ran.exit_code, answer["status"]) == ((1, "warn") if "warn" in worst else (0, "ok"))
    with healthy.unit_of_work() as session:
        session.execute(text("delete from worker"))
    ran = CliRunner().invoke(doctor)
    assert ran.exit_code == 2
    assert "celery -A project worker" in ran.stdout


def test_command_is_one_of_celerys(tmp_path):
    environment = {**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path}/none.db", "BROKER_URL": f"filesystem://{tmp_path}/broker"}
    command = [sys.executable, "-m", "celery", "-A", "project", "doctor", "--json"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, json.loads(ran.stdout)["status"]) == (2, "fail"), ran.stderr
