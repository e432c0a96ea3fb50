"""Thousands of jobs through proxies that cut connections, some right after a claim or a commit."""

import random
import re
import time
from contextlib import ExitStack

import probe_app as probe
import pytest
from installations import QUICK, installed, rabbitmq
from nightshift.jobs import enqueue_many
from nightshift.jobs.models import Job
from probing import count_effects
from proxies import Proxy
from servers import postgres_database, redis_database
from sqlalchemy import select

JOBS = 3_000
SETTINGS = {**QUICK, "worker_silent_after": "PT12S", "resend_after": "PT3S"}
STARTED = re.compile(r"job started, attempt (\d+) .* job=([0-9a-f-]+)")


def cut_some(counts: dict[bytes, int], share: float):
    """Return what ends a connection in place of some answers to a commit or an update."""

    def answered(data: bytes) -> bool:
        for tag in counts:
            if tag in data and random.random() < share:
                counts[tag] += 1
                return True
        return False

    return answered


def read_starts(installation):
    """Return how many attempts of each job have started, as the workers' logs say."""
    starts: dict[str, set[int]] = {}
    for path in installation.folder.glob("*.log"):
        for attempt, job_id in STARTED.findall(path.read_text(errors="replace")):
            starts.setdefault(job_id, set()).add(int(attempt))
    return {job_id: len(attempts) for job_id, attempts in starts.items()}


@pytest.mark.parametrize("broker", ["redis", "rabbit"])
def test_cut_connections_lose_and_double_nothing(tmp_path, broker):
    counts = {b"COMMIT\0": 0, b"UPDATE 1\0": 0}
    with ExitStack() as stack:
        enter = stack.enter_context
        url = enter(postgres_database())
        queues = probe.app.composition.queues
        broker_url = enter(redis_database() if broker == "redis" else rabbitmq(queues))
        database, messages = enter(Proxy(url)), enter(Proxy(broker_url))
        own = ("probe_app", tmp_path, database.url, messages.url)
        installation = enter(installed(*own, **SETTINGS))
        workers = [installation.worker(), installation.worker()]
        with installation.runtime.unit_of_work() as session:
            jobs = [probe.Leave(number=number, milliseconds=4) for number in range(JOBS)]
            enqueue_many(session, jobs, now=installation.runtime.now())
        # From here on this process has a way of its own: it counts.
        database.answered = cut_some(counts, 0.01)
        began, cuts = time.monotonic(), 0
        while time.monotonic() - began < 60:
            time.sleep(random.uniform(0.5, 2))
            cuts += database.cut(0.2) + messages.cut(0.3)
        database.answered = lambda _answer: False
        installation.until(lambda: installation.open_jobs() == 0, seconds=400)
        with installation.runtime.read_only() as session:
            rows = session.execute(select(Job.id, Job.attempt, Job.state)).all()
        starts = read_starts(installation)
        charged = {row.id for row in rows if row.attempt != starts.get(str(row.id))}
        print(
            f"\n{broker}: {JOBS} jobs, {cuts} connections cut, {counts} answers lost:"
            f" {count_effects(installation.runtime)} effects, {len(charged)} jobs charged wrongly"
        )
        assert {row.state for row in rows} == {"succeeded"}
        assert count_effects(installation.runtime) == JOBS
        assert charged == set()
        assert [worker.poll() for worker in workers] == [None, None]
