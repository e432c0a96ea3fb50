"""The engine's own probes of the broker."""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import pytest
import redis
from health import findings
from kombu import Queue
from nightshift.celery.app import App
from nightshift.component import Component, Composition
from nightshift.jobs import JobArgs
from nightshift.ledger import ledger
from servers import RABBITMQ_URL, free_port, reachable, require


class Long(JobArgs, kind="checks.long", time_limit=timedelta(minutes=10)):
    pass


@pytest.fixture
def app_on(tmp_path):
    """Return what makes an app on a broker; its database is not there."""

    def make(broker_url, *components, **values):
        return App(
            "probe_app",
            Composition([ledger, *components]),
            _env_file=None,
            database_url=f"sqlite:///{tmp_path}/none.db",
            broker_url=broker_url,
            **values,
        )

    return make


@contextmanager
def running_redis(folder, *options):
    """Start a Redis with these options and yield its port."""
    if shutil.which("redis-server") is None:
        pytest.skip("REDIS-SERVER IS NOT INSTALLED: its settings cannot be tried")
    port = free_port()
    place = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(["redis-server", *place, *options], stdout=subprocess.DEVNULL)
    try:
        while not reachable(f"redis://127.0.0.1:{port}/0"):
            time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--appendonly", "yes"], "ok", "appendonly on, noeviction"),
        (["--appendonly", "no"], "warn", "appendonly off, noeviction"),
        (
            ["--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"],
            "fail",
            "appendonly on, allkeys-lru",
        ),
    ],
    ids=["good", "no AOF", "evicts"],
)
def test_redis_that_would_lose_messages_is_noticed(app_on, tmp_path, options, status, said):
    with running_redis(tmp_path, *options) as port:
        found = findings(app_on(f"redis://127.0.0.1:{port}/0"))
        with redis.Redis(port=port) as client:
            left_behind = client.dbsize()

    broker = found["broker"]
    assert (broker.status, broker.detail.partition(", ")[2]) == (status, said)
    assert left_behind == 0
    assert found["visibility timeout"].status == "ok"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), "it is a replica, which takes no messages"),
        (("CONFIG", "SET", "maxmemory", "1"), "it is full"),
    ],
    ids=["replica", "full"],
)
def test_redis_that_takes_no_messages_fails(app_on, tmp_path, command, said):
    with running_redis(tmp_path, "--appendonly", "yes") as port:
        with redis.Redis(port=port) as client:
            client.execute_command(*command)
        found = findings(app_on(f"redis://127.0.0.1:{port}/0"))["broker"]

    assert (found.status, said in found.detail) == ("fail", True)


def test_redis_that_is_away_is_noticed(app_on):
    found = findings(app_on(f"redis://127.0.0.1:{free_port()}/0"))["broker"]

    assert (found.status, "refused" in found.detail) == ("fail", True)


@pytest.mark.parametrize(("minutes", "status"), [(10, "warn"), (11, "warn"), (12, "ok")])
def test_visibility_timeout_below_the_longest_job_is_noticed(app_on, minutes, status):
    app = app_on(
        f"redis://127.0.0.1:{free_port()}/0",
        Component(name="long", kinds=(Long,)),
        visibility_timeout=timedelta(minutes=minutes),
    )

    found = findings(app)["visibility timeout"]

    assert (found.status, found.detail) == (
        status,
        f"0:{minutes}:00; the longest job and its wait may take 0:11:00",
    )


@pytest.fixture
def files(app_on, tmp_path):
    """Return an app on the embedded broker in the test's folder."""
    return app_on(f"filesystem://{tmp_path}/broker")


def test_writable_folder_without_old_files_is_no_trouble(files):
    found = findings(files)["broker"]

    assert (found.status, found.detail) == ("ok", "writable, 0 files older than an hour")


@pytest.mark.parametrize("folder", ["messages", "processed"])
def test_leftover_files_of_the_broker_are_noticed(files, tmp_path, folder):
    left = tmp_path / "broker" / folder / "left.msg"
    left.touch()
    os.utime(left, (time.time() - 7200,) * 2)

    found = findings(files)["broker"]

    assert (found.status, found.detail) == ("warn", "writable, 1 files older than an hour")


@pytest.mark.skipif(
    os.geteuid() == 0, reason="ROOT WRITES ANYWHERE: run the tests as another user to see this"
)
def test_folder_that_is_not_writable_fails(files, tmp_path):
    folder = tmp_path / "broker" / "messages"
    folder.chmod(0o500)

    found = findings(files)["broker"]

    assert (found.status, found.detail) == ("fail", f"not writable: {folder}")


def test_rabbitmq_queues_are_looked_at_and_not_made(app_on):
    require(RABBITMQ_URL, "rabbitmq")
    app = app_on(RABBITMQ_URL)
    quorum, classic, missing = (
        f"doctor-{kind}-{uuid4().hex[:8]}" for kind in ("quorum", "classic", "missing")
    )
    wanted = {"x-queue-type": "quorum"}
    queues = [
        Queue(name, routing_key=name, queue_arguments=wanted) for name in (quorum, classic, missing)
    ]
    app.conf.task_queues = queues
    with app.connection_for_write() as connection:
        queues[0](connection.default_channel).queue_declare()
        Queue(classic)(connection.default_channel).queue_declare()
        try:
            found = findings(app)["broker"]
            with pytest.raises(connection.channel_errors, match="NOT_FOUND"):
                connection.channel().queue_declare(missing, passive=True)
        finally:
            channel = connection.channel()
            channel.queue_delete(quorum)
            channel.queue_delete(classic)

    assert found.status == "warn"
    assert quorum not in found.detail
    assert f"{classic}: " in found.detail
    assert f"{missing}: " in found.detail
