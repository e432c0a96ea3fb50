"""dramatiq on Redis."""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

broker = RedisBroker(url=os.environ["BROKER_URL"])
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int, job: str = "noop") -> None:
    for index in range(number):
        noop.send(index)


LEFT = [["HLEN", "dramatiq:default.msgs"]]
WORKER = [sys.executable, "-m", "dramatiq", __name__, "--processes", "2", "--threads", "1"]
