"""What workers do when the broker is away, silent, full or refusing, and when it comes back."""

import signal
import subprocess
import time
from contextlib import contextmanager
from uuid import uuid4

import probe_app as probe
import pytest
import redis
from fault_servers import Redis, program
from installations import QUICK, installed, rabbitmq
from kombu import Connection, Queue
from nightshift.jobs import enqueue_many
from nightshift.jobs.models import JobState
from probing import count_effects, put
from proxies import proxy
from servers import RABBITMQ_URL, free_port, postgres_database
from two_queues import Post

OPTIONS = {**QUICK, "resend_after": "PT2S"}

# Longer than the longest call, and than RabbitMQ's heartbeat takes to notice.
OUTAGE = 25


class OwnRedis(Redis):
    """A Redis of the test's own, and what may befall it."""

    def ask(self, *command):
        with redis.Redis(port=self.port) as client:
            client.execute_command(*command)

    def harm(self, how):
        match how:
            case "stopped":
                self.process.send_signal(signal.SIGSTOP)
            case "killed":
                self.stop()
            case "replica":
                # Of a server that is not there: it keeps what it has.
                self.ask("REPLICAOF", "127.0.0.1", free_port())
            case "full":
                self.ask("CONFIG", "SET", "maxmemory", "1")

    def heal(self, how):
        match how:
            case "stopped":
                self.process.send_signal(signal.SIGCONT)
            case "killed":
                self.start()
            case "replica":
                self.ask("REPLICAOF", "NO", "ONE")
            case "full":
                self.ask("CONFIG", "SET", "maxmemory", "0")


@contextmanager
def own_redis(folder):
    server = OwnRedis(folder)
    try:
        yield server
    finally:
        server.stop()


def put_many(installation, number):
    with installation.runtime.unit_of_work() as session:
        jobs = [probe.Leave(number=n) for n in range(number)]
        return enqueue_many(session, jobs, now=installation.runtime.now())


def read_log(installation):
    return (installation.folder / "worker-0.log").read_text(errors="replace")


CAUSES = {
    "stopped": "Timeout reading from socket",
    "killed": "the broker is away",
    "replica": "read only replica",
    "full": "command not allowed when used memory",
}
SLOW = ("stopped", "replica", "full")


@pytest.mark.parametrize(
    "how", ["killed", *(pytest.param(how, marks=pytest.mark.faults) for how in SLOW)]
)
def test_harmed_redis_ends_no_worker_and_loses_no_job(tmp_path, how):
    with (
        own_redis(tmp_path) as server,
        postgres_database() as url,
        installed("probe_app", tmp_path, url, server.url, **OPTIONS) as installation,
    ):
        worker = installation.worker()
        under_way = put(installation.runtime, probe.Leave(milliseconds=4000))
        installation.until(lambda: installation.job(under_way).state == JobState.RUNNING)
        server.harm(how)
        ids = [under_way, *put_many(installation, 5)]
        installation.until(lambda: CAUSES[how] in read_log(installation))
        time.sleep(5)  # the keeper looks several times, and the worker tries again
        server.heal(how)
        ids += put_many(installation, 5)
        installation.until(lambda: installation.open_jobs() == 0)
        jobs = [installation.job(job_id) for job_id in ids]
        assert [(job.state, job.attempt) for job in jobs] == [(JobState.SUCCEEDED, 1)] * 11
        assert count_effects(installation.runtime) == 11
        assert worker.poll() is None


@pytest.mark.timeout(600)  # it may wait for another process, as spreading.py says
@pytest.mark.parametrize("how", [pytest.param("silent", marks=pytest.mark.faults), "cut"])
def test_lost_rabbitmq_ends_no_worker_and_loses_no_job(tmp_path, how):
    with (
        rabbitmq(probe.app.composition.queues),
        proxy(5672) as between,
        postgres_database() as url,
        installed(
            "probe_app",
            tmp_path,
            url,
            RABBITMQ_URL.replace(":5672", f":{between.port}"),
            **OPTIONS,
        ) as installation,
    ):
        worker = installation.worker()
        installation.ended(put(installation.runtime, probe.Leave()))
        if how == "silent":
            between.silent = True
            put_many(installation, 5)
            time.sleep(OUTAGE)
            between.silent = False
            # What was swallowed is missing from both streams.
            between.cut()
        else:
            for _ in range(5):
                put_many(installation, 1)
                between.cut()
                time.sleep(0.5)
        put_many(installation, 5)
        installation.until(lambda: installation.open_jobs() == 0)
        assert count_effects(installation.runtime) == 11
        assert worker.poll() is None


@pytest.mark.faults  # half a minute: until the queue is tried again
def test_refused_queue_stops_no_other_from_being_consumed(tmp_path):
    with (
        rabbitmq(["default", "post"]) as broker,
        Connection(broker) as connection,
        postgres_database() as url,
    ):
        Queue("post", durable=True)(connection.default_channel).declare()
        with installed("two_queues", tmp_path, url, RABBITMQ_URL, **OPTIONS) as installation:
            worker = installation.worker()
            job_id = put(installation.runtime, probe.Leave())
            assert installation.ended(job_id).state == JobState.SUCCEEDED
            said = "queue post is not consumed, the broker refuses it: Queue.declare: (406)"
            assert said in read_log(installation)
            # It is consumed once it is right, without a restart of the worker.
            connection.channel().queue_delete("post")
            job_id = put(installation.runtime, Post())
            assert installation.ended(job_id).state == JobState.SUCCEEDED
            assert worker.poll() is None


def control(*command):
    arguments = [program("rabbitmqctl"), "--quiet", *command]
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)


@pytest.mark.faults
def test_rabbitmq_that_blocks_publishers_is_named_and_loses_no_job(tmp_path):
    with (
        rabbitmq(["default"]),
        postgres_database() as url,
        installed("probe_app", tmp_path, url, RABBITMQ_URL, **OPTIONS) as installation,
    ):
        worker = installation.worker()
        installation.ended(put(installation.runtime, probe.Leave()))
        control("set_vm_memory_high_watermark", "absolute", "1")
        try:
            put_many(installation, 5)
            cause = "it blocks publishers, because of its memory or disk alarm"
            installation.until(lambda: cause in read_log(installation))
            assert read_log(installation).count(cause) == 1
        finally:
            control("set_vm_memory_high_watermark", "0.4")
        installation.until(lambda: installation.open_jobs() == 0)
        assert count_effects(installation.runtime) == 6
        assert worker.poll() is None


@contextmanager
def rabbitmq_user(readable):
    """Yield the URL for a user that may declare and write every queue, and read some."""
    name = f"nightshift-{uuid4().hex[:8]}"
    control("add_user", name, "hush")
    try:
        control("set_permissions", "-p", "/", name, ".*", ".*", readable)
        yield RABBITMQ_URL.replace("guest:guest", f"{name}:hush")
    finally:
        control("delete_user", name)


@pytest.mark.faults
def test_queue_that_may_not_be_read_stops_no_other_from_being_consumed(tmp_path):
    with (
        rabbitmq(["default", "post"]),
        rabbitmq_user(readable="^(?!post$).*") as broker,
        postgres_database() as url,
        installed("two_queues", tmp_path, url, broker, **OPTIONS) as installation,
    ):
        worker = installation.worker()
        for _ in range(3):
            job_id = put(installation.runtime, probe.Leave())
            assert installation.ended(job_id).state == JobState.SUCCEEDED
        assert "queue post is not consumed, the broker refuses it: " in read_log(installation)
        assert worker.poll() is None


def test_jobs_run_when_the_broker_is_back(tmp_path):
    port = free_port()
    server = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    server += ["--save", "", "--dir", str(tmp_path)]
    options = {**QUICK, "resend_after": "PT2S"}
    with (
        postgres_database() as url,
        installed(
            "probe_app", tmp_path, url, f"redis://127.0.0.1:{port}/0", **options
        ) as installation,
    ):
        job_id = put(installation.runtime, probe.Leave())
        worker = installation.worker()
        broker = subprocess.Popen(server, stdout=subprocess.DEVNULL)
        try:
            assert installation.ended(job_id).state == JobState.SUCCEEDED
            # And once more, with every process connected when it goes, one at work, the other idle.
            under_way = put(installation.runtime, probe.Leave(milliseconds=4000))
            installation.until(lambda: installation.job(under_way).state == JobState.RUNNING)
            broker.kill()
            broker.wait()
            job_id = put(installation.runtime, probe.Leave())
            broker = subprocess.Popen(server, stdout=subprocess.DEVNULL)
            for ended in (installation.ended(under_way), installation.ended(job_id)):
                assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
            # What was under way could not be acknowledged: not then, and not when it ended.
            installation.ended(put(installation.runtime, probe.Leave()))
            assert worker.poll() is None
        finally:
            installation.stop()
            broker.kill()
            broker.wait()


def test_junk_among_the_unacknowledged_messages_stops_no_worker(tmp_path):
    with (
        own_redis(tmp_path) as server,
        postgres_database() as url,
        installed("probe_app", tmp_path, url, server.url, **OPTIONS) as installation,
    ):
        server.ask("HSET", "nightshift:unacked", "junk", "[" * 100_000)
        server.ask("ZADD", "nightshift:unacked_index", "0", "junk")
        worker = installation.worker()
        job_id = put(installation.runtime, probe.Leave())
        assert installation.ended(job_id).state == JobState.SUCCEEDED
        assert worker.poll() is None
        installation.until(lambda: "was dropped" in read_log(installation))
