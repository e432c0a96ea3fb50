"""Thousands of jobs while everything that they depend on is killed at random, beside the same on bare Celery."""

import os
import random
import subprocess
import sys
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.jobs import enqueue_many
from tests.faults.conftest import children, kill, kill_something
from tests.faults.servers import Postgres, Redis
from tests.worker import probe
from tests.worker.conftest import ROOT, any_installation, installed

QUICK = {"heartbeat_interval": "PT1S", "worker_silent_after": "PT6S", "relay_interval": "PT0.2S", "resend_after": "PT3S"}
JOBS = 10_000
MILLISECONDS = 4


def test_nothing_is_lost_or_doubled(tmp_path):
    postgres, broker = Postgres(), Redis(tmp_path)
    bare_environment = {**os.environ, "DATABASE_URL": postgres.url, "BROKER_URL": broker.url}
    try:
        with installed(tmp_path, postgres.url, broker.url, **QUICK) as installation:
            with installation.boot.unit_of_work() as session:
                session.execute(text("create table bare_effect (job_id varchar(36), attempt integer, at double precision)"))
            bare_worker = [sys.executable, "-m", "celery", "-A", "tests.worker.bare", "worker", "-c", "2", "-n", "bare@test"]
            installation.start("beat")
            installation.start("beat")
            worker = installation.worker()

            def start_bare():
                with (tmp_path / "bare.log").open("ab") as log:
                    return subprocess.Popen(bare_worker, cwd=ROOT, env=bare_environment, stdout=log, stderr=log)

            bare = start_bare()
            with installation.boot.unit_of_work() as session:
                enqueue_many(
                    session, [probe.Leave(number=n, milliseconds=MILLISECONDS) for n in range(JOBS)], now=installation.boot.now()
                )
            send = (
                "from tests.worker.bare import leave\n"
                f"with leave.app.producer_or_acquire() as p:\n  for n in range({JOBS}): leave.apply_async([{MILLISECONDS}], producer=p)"
            )
            subprocess.run([sys.executable, "-c", send], cwd=ROOT, env=bare_environment, check=True)
            happened = dict.fromkeys(["child killed", "worker killed", "redis flushed", "redis restarted", "postgres restarted"], 0)
            began = time.monotonic()
            while time.monotonic() - began < 600:
                time.sleep(random.uniform(1, 4))
                what = random.choices(list(happened), [8, 4, 1, 1, 1])[0]
                happened[what] += 1
                if what == "redis flushed":
                    broker.flush()
                elif what == "redis restarted":
                    broker.stop()
                    time.sleep(random.uniform(0, 2))
                    broker.start()
                elif what == "postgres restarted":
                    postgres.stop(random.choice(["fast", "immediate"]))
                    time.sleep(random.uniform(0, 2))
                    postgres.start()
                elif what == "worker killed":
                    worker.kill()
                    worker.wait()
                    worker = installation.worker(wait=False)
                    bare.kill()
                    bare.wait()
                    bare = start_bare()
                else:
                    for pool in (children(worker.pid), children(bare.pid)):
                        if pool:
                            kill(random.choice(pool))
                try:
                    left = installation.open_jobs()
                except DBAPIError:
                    continue
                if left == 0 and min(happened.values()) > 0:
                    break
            installation.until(lambda: installation.open_jobs() == 0, seconds=240)
            time.sleep(20)  # What bare Celery still has, it may still do.
            bare.terminate()
            bare.wait()
            with installation.boot.read_only() as session:
                count = "select count(distinct job_id), count(*) from {}"
                ours, all_ours = session.execute(text(count.format("effect"))).one()
                theirs, all_theirs = session.execute(text(count.format("bare_effect"))).one()
                states = session.execute(text("select state, count(*) from job where kind = 'probe.leave' group by state")).all()
            print(f"\n{happened} within {time.monotonic() - began:.0f} s")
            print(f"{'':16}{'jobs':>8}{'done':>8}{'lost':>8}{'doubled':>8}")
            print(f"{'nightshift':16}{JOBS:>8}{ours:>8}{JOBS - ours:>8}{all_ours - ours:>8}")
            print(f"{'bare celery':16}{JOBS:>8}{theirs:>8}{JOBS - theirs:>8}{all_theirs - theirs:>8}")
            assert (ours, all_ours) == (JOBS, JOBS)
            assert [tuple(row) for row in states] == [("succeeded", JOBS)]
    finally:
        broker.stop()
        postgres.remove()


def test_embedded_default_loses_and_doubles_nothing(tmp_path):
    jobs = 500
    with any_installation("embedded", tmp_path, **QUICK) as installation:
        worker = installation.worker()
        with installation.boot.unit_of_work() as session:
            enqueue_many(session, [probe.Leave(number=n, milliseconds=30) for n in range(jobs)], now=installation.boot.now())
        killed = {"child": 0, "worker": 0}
        while installation.open_jobs() > 0 and sum(killed.values()) < 12:
            time.sleep(random.uniform(0.5, 2.5))
            what, worker = kill_something(installation, worker)
            killed[what] += 1
        installation.until(lambda: installation.open_jobs() == 0, seconds=240)
        with installation.boot.read_only() as session:
            done, effects = session.execute(text("select count(distinct job_id), count(*) from effect")).one()
        print(f"\nembedded: {jobs} jobs, killed {killed}: {jobs - done} lost, {effects - done} doubled")
        assert (done, effects) == (jobs, jobs)


@pytest.mark.parametrize("kind", ["servers"])
def test_jobs_due_later_outlive_a_short_visibility_timeout(tmp_path, kind):
    """An hour, compressed: the broker would deliver an ETA again every five seconds."""
    from datetime import timedelta

    with any_installation(kind, tmp_path, **QUICK, visibility_timeout="PT5S") as installation:
        run_at = installation.boot.now() + timedelta(seconds=30)
        with installation.boot.unit_of_work() as session:
            enqueue_many(session, [probe.Leave(number=n) for n in range(1000)], now=installation.boot.now(), run_at=run_at)
        installation.worker()
        installation.until(lambda: installation.open_jobs() == 0, seconds=120)
        with installation.boot.read_only() as session:
            done, effects, first = session.execute(text("select count(distinct job_id), count(*), min(at) from effect")).one()
        late = first - run_at.timestamp()
        print(
            f"\n1,000 jobs due in 30 s, visibility timeout 5 s: {done} done, {effects - done} doubled, the first {late:.2f} s after"
        )
        assert (done, effects) == (1000, 1000)
        assert first >= run_at.timestamp()
