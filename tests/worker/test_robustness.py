"""What happens when something dies, stops or is away."""

import shutil
import signal
import socket
import subprocess
import time

import pytest
from sqlalchemy import text

from services.jobs import enqueue, enqueue_many
from services.jobs.models import JobState
from tests.worker import probe
from tests.worker.conftest import any_installation, installed, postgres_database
from tests.worker.test_jobs import put

pytestmark = pytest.mark.worker

QUICK = {"heartbeat_interval": "PT1S", "worker_silent_after": "PT5S", "relay_interval": "PT0.2S", "resend_after": "PT2S"}


# RabbitMQ in `make faults` only: two minutes more.
@pytest.fixture(params=["embedded", "servers", pytest.param("rabbit", marks=pytest.mark.faults)])
def quick(request, tmp_path):
    with any_installation(request.param, tmp_path, **QUICK) as installation:
        yield installation


def test_idle_worker_ends_cleanly(quick):
    worker = quick.worker()
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    print(f"an idle worker ended {time.monotonic() - began:.1f} s after SIGTERM")
    quick.until(lambda: not quick.workers(), seconds=10)


def test_stopping_worker_finishes_its_job(quick, tmp_path):
    worker = quick.worker()
    job_id = put(quick, probe.Sleep(seconds=3, marker=str(tmp_path / "marker")))
    quick.until((tmp_path / "marker").exists)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert (quick.job(job_id).state, quick.job(job_id).attempt) == (JobState.SUCCEEDED, 1)


def test_jobs_of_a_killed_worker_run_elsewhere(quick, tmp_path):
    first = quick.worker()
    job_id = put(quick, probe.Sleep(seconds=5, marker=str(tmp_path / "marker")))
    quick.until((tmp_path / "marker").exists)
    first.kill()
    first.wait()
    quick.worker()
    job = quick.ended(job_id, seconds=60)
    assert (job.state, job.attempt, quick.effects(job_id)) == (JobState.SUCCEEDED, 2, 1)


def test_jobs_of_a_lost_machine_run_elsewhere(quick, tmp_path):
    """Worker and keeper die together, so that nobody is left who knows."""
    first = quick.worker()
    job_id = put(quick, probe.Sleep(seconds=5, marker=str(tmp_path / "marker")))
    quick.until((tmp_path / "marker").exists)
    keepers = subprocess.run(["pgrep", "-P", str(first.pid), "-f", "project.keeper"], capture_output=True, check=True, text=True)
    for pid in keepers.stdout.split():
        subprocess.run(["kill", "-9", pid], check=True)
    first.kill()
    first.wait()
    quick.worker()
    job = quick.ended(job_id, seconds=60)
    assert (job.state, job.attempt, quick.effects(job_id)) == (JobState.SUCCEEDED, 2, 1)
    assert job.errors[0]["message"] == "its worker gave no sign of life for 5 s"


def test_killed_keeper_is_replaced(quick):
    worker = quick.worker()
    find = ["pgrep", "-P", str(worker.pid), "-f", "project.keeper"]
    keeper = subprocess.run(find, capture_output=True, check=True, text=True).stdout.split()
    subprocess.run(["kill", "-9", *keeper], check=True)
    quick.until(lambda: set(subprocess.run(find, capture_output=True, check=False, text=True).stdout.split()) - set(keeper))
    run_at = quick.boot.now()
    with quick.boot.unit_of_work() as session:
        ids = [enqueue(session, probe.Leave(), now=run_at, delay=probe.timedelta(seconds=1))]
    assert quick.ended(ids[0]).state == JobState.SUCCEEDED


def test_messages_that_the_broker_lost_are_sent_again(quick):
    with quick.boot.unit_of_work() as session:
        ids = enqueue_many(session, [probe.Leave(number=n) for n in range(20)], now=quick.boot.now())
    lose_all_messages(quick)
    quick.worker()
    for job_id in ids:
        assert quick.ended(job_id, seconds=60).state == JobState.SUCCEEDED
    assert quick.effects() == 20


def lose_all_messages(installation):
    from project.celery import app

    with app.connection_for_write() as connection:
        lost = connection.default_channel.queue_purge("default")
    assert lost == 20


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_caller_neither_fails_nor_waits_when_the_broker_is_away(tmp_path, kind):
    port = free_port()
    listener = socket.socket()
    if kind == "silent":
        # It takes connections and answers nothing, like a machine that hangs.
        listener.bind(("127.0.0.1", port))
        listener.listen(1)
    with (
        listener,
        installed(tmp_path, f"sqlite:///{tmp_path}/nightshift.db", f"redis://127.0.0.1:{port}/0", **QUICK) as installation,
    ):
        put(installation, probe.Leave())  # imports what the first call of a process imports
        from project.publisher import publisher

        publisher.cache_clear()
        times = []
        for _ in range(5):
            began = time.monotonic()
            put(installation, probe.Leave())
            times.append(time.monotonic() - began)
        print(f"{kind}: the first commit took {times[0] * 1000:.0f} ms, the next {times[1] * 1000:.0f} ms")
        assert installation.open_jobs() == 6
        with installation.boot.read_only() as session:
            assert session.execute(text("select count(*) from job where sent_at is not null")).scalar_one() == 0


def test_jobs_run_when_the_broker_is_back(tmp_path):
    if shutil.which("redis-server") is None:
        pytest.skip("REDIS-SERVER IS NOT INSTALLED: a broker that comes back cannot be shown")
    port = free_port()
    with postgres_database() as url, installed(tmp_path, url, f"redis://127.0.0.1:{port}/0", **QUICK) as installation:
        job_id = put(installation, probe.Leave())
        worker = installation.worker()
        server = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
        broker = subprocess.Popen(server, stdout=subprocess.DEVNULL)
        try:
            assert installation.ended(job_id, seconds=90).state == JobState.SUCCEEDED
            # And once more, with everybody connected when it goes, one process at work and the other waiting.
            under_way = put(installation, probe.Leave(milliseconds=4000))
            installation.until(lambda: installation.job(under_way).state == JobState.RUNNING)
            broker.kill()
            broker.wait()
            job_id = put(installation, probe.Leave())
            broker = subprocess.Popen(server, stdout=subprocess.DEVNULL)
            for ended in (installation.ended(under_way), installation.ended(job_id, seconds=90)):
                assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
            # What was under way could not be acknowledged: not then, and not when it ended.
            installation.ended(put(installation, probe.Leave()), seconds=90)
            assert worker.poll() is None
        finally:
            installation.stop()
            broker.kill()
            broker.wait()


def test_idle_child_that_is_killed_takes_nothing_with_it(quick):
    """A pool whose children share a queue hangs for ever when the one that waits at it is killed."""
    from tests.faults.conftest import children, kill

    worker = quick.worker()
    # A worker whose children are killed before it stands gives up, and its supervisor starts it again.
    quick.ended(put(quick, probe.Leave()))
    for round_number in range(4):
        for child in children(worker.pid):
            kill(child)
        with quick.boot.unit_of_work() as session:
            ids = enqueue_many(session, [probe.Leave(number=n) for n in range(5)], now=quick.boot.now())
        assert [quick.ended(job_id, seconds=40).state for job_id in ids] == [JobState.SUCCEEDED] * 5, round_number
