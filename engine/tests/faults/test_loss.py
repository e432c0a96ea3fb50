"""Thousands of jobs while what they depend on is killed at random, beside bare Celery."""

import os
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import probe_app as probe
import pytest
from fault_processes import find_children, kill, kill_something
from fault_servers import Postgres, Rabbit, Redis
from installations import QUICK, any_installation, installed
from nightshift.jobs import enqueue_many
from nightshift.jobs.models import Job
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

SETTINGS = {**QUICK, "worker_silent_after": "PT6S", "resend_after": "PT3S"}
JOBS = 10_000
MILLISECONDS = 4
HERE = Path(__file__).parent.parent


class Bare:
    """The same jobs on bare Celery, on the same servers."""

    def __init__(self, folder, database_url, broker_url):
        self._log = folder / "bare.log"
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "DATABASE_URL": database_url,
            "BROKER_URL": broker_url,
        }

    def send(self, jobs):
        program = f"import bare_app; bare_app.send({jobs}, {MILLISECONDS})"
        subprocess.run([sys.executable, "-c", program], env=self._environment, check=True)

    def start(self):
        command = [sys.executable, "-m", "celery", "-A", "bare_app", "worker"]
        command += ["-c", "2", "-n", "bare@test"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait()


def put_many(installation, jobs, **options):
    with installation.runtime.unit_of_work() as session:
        enqueue_many(session, jobs, now=installation.runtime.now(), **options)


def count_both(installation, table):
    """Return how many jobs have an effect, and how many effects there are."""
    counted = text(f"select count(distinct job_id), count(*) from {table}")
    with installation.runtime.read_only() as session:
        return tuple(session.execute(counted).one())


def count_states(installation):
    states = select(Job.state, func.count()).where(Job.kind == "probe.leave")
    with installation.runtime.read_only() as session:
        return [tuple(row) for row in session.execute(states.group_by(Job.state))]


@pytest.mark.parametrize("server", [Redis, Rabbit])
def test_nothing_is_lost_or_doubled(tmp_path, server):
    postgres, broker = Postgres(), server(tmp_path)
    bare = Bare(tmp_path, postgres.url, broker.url)
    try:
        with installed("probe_app", tmp_path, postgres.url, broker.url, **SETTINGS) as installation:
            columns = "job_id varchar(36), attempt integer, at double precision"
            with installation.runtime.unit_of_work() as session:
                session.execute(text(f"create table bare_effect ({columns})"))
            installation.start("beat")
            installation.start("beat")
            worker = installation.worker()
            bare.start()
            jobs = [probe.Leave(number=n, milliseconds=MILLISECONDS) for n in range(JOBS)]
            put_many(installation, jobs)
            bare.send(JOBS)
            happened = {
                "child killed": 0,
                "worker killed": 0,
                "broker flushed": 0,
                "broker restarted": 0,
                "postgres restarted": 0,
            }
            began = time.monotonic()
            while time.monotonic() - began < 600:
                time.sleep(random.uniform(1, 4))
                what = random.choices(list(happened), [8, 4, 1, 1, 1])[0]
                happened[what] += 1
                if what == "broker flushed":
                    broker.flush()
                elif what == "broker restarted":
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
                    bare.start()
                else:
                    for pool in (find_children(worker.pid), find_children(bare.process.pid)):
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
            bare.stop()
            ours, all_ours = count_both(installation, "effect")
            theirs, all_theirs = count_both(installation, "bare_effect")
            print(f"\n{happened} within {time.monotonic() - began:.0f} s")
            print(f"{'':16}{'jobs':>8}{'done':>8}{'lost':>8}{'doubled':>8}")
            print(f"{'nightshift':16}{JOBS:>8}{ours:>8}{JOBS - ours:>8}{all_ours - ours:>8}")
            lost, doubled = JOBS - theirs, all_theirs - theirs
            print(f"{'bare celery':16}{JOBS:>8}{theirs:>8}{lost:>8}{doubled:>8}")
            assert (ours, all_ours) == (JOBS, JOBS)
            assert theirs > 0, "bare Celery did not run: nothing is compared"
            assert count_states(installation) == [("succeeded", JOBS)]
    finally:
        broker.stop()
        postgres.remove()


def test_embedded_default_loses_and_doubles_nothing(tmp_path):
    jobs = 500
    with any_installation("embedded", "probe_app", tmp_path, **SETTINGS) as installation:
        worker = installation.worker()
        put_many(installation, [probe.Leave(number=n, milliseconds=30) for n in range(jobs)])
        killed = {"child": 0, "worker": 0}
        while installation.open_jobs() > 0 and sum(killed.values()) < 12:
            time.sleep(random.uniform(0.5, 2.5))
            what, worker = kill_something(installation, worker)
            killed[what] += 1
        installation.until(lambda: installation.open_jobs() == 0, seconds=240)
        done, effects = count_both(installation, "effect")
        print(f"\n{jobs} jobs, killed {killed}: {jobs - done} lost, {effects - done} doubled")
        assert (done, effects) == (jobs, jobs)


@pytest.mark.parametrize("kind", ["servers"])
def test_jobs_due_later_outlive_a_short_visibility_timeout(tmp_path, kind):
    """An hour, compressed: the broker would deliver an ETA again every five seconds."""
    options = {**SETTINGS, "visibility_timeout": "PT5S"}
    with any_installation(kind, "probe_app", tmp_path, **options) as installation:
        run_at = installation.runtime.now() + timedelta(seconds=30)
        put_many(installation, [probe.Leave(number=n) for n in range(1000)], run_at=run_at)
        installation.worker()
        installation.until(lambda: installation.open_jobs() == 0, seconds=120)
        done, effects = count_both(installation, "effect")
        with installation.runtime.read_only() as session:
            first = session.execute(select(func.min(probe.Effect.at))).scalar_one()
        late = first - run_at.timestamp()
        print(
            f"\n1,000 jobs due in 30 s, visibility timeout 5 s: {done} done,"
            f" {effects - done} doubled, the first {late:.2f} s after"
        )
        assert (done, effects) == (1000, 1000)
        assert first >= run_at.timestamp()
