"""dramatiq on Redis."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

broker = RedisBroker(url=os.environ["BROKER_URL"])
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int) -> None:
    for index in range(number):
        noop.send(index)


def remaining() -> int:
    return int(broker.client.hlen("dramatiq:default.msgs"))


WORKER = ["-m", "dramatiq", "benchmarks.peers.dramatiq_app", "--processes", "2", "--threads", "1"]
