"""Celery without the ledger: the same broker, pool, prefetch and late acknowledgement."""

import os

from celery import Celery
from nightshift.celery.configuration import build_configuration
from nightshift.component import Composition
from nightshift.settings import Settings

app = Celery("bare")
app.conf.update(build_configuration(Settings(), Composition(())))


@app.task(name="noop")
def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int) -> None:
    """Enqueue by a loop of `delay()`, as most people do."""
    for index in range(number):
        noop.delay(index)


def remaining() -> int:
    import redis

    with redis.Redis.from_url(os.environ["BROKER_URL"]) as client:
        return int(client.llen("nightshift:default")) + int(client.hlen("nightshift:unacked"))


WORKER = [
    "-m",
    "celery",
    "-A",
    "benchmarks.peers.bare_celery",
    "worker",
    "--concurrency=2",
    "-n",
    "bare@bench",
]
