"""huey on Redis."""

import os

from huey import RedisHuey

huey = RedisHuey("bench", url=os.environ["BROKER_URL"], results=False)


@huey.task()
def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int) -> None:
    for index in range(number):
        noop(index)


def remaining() -> int:
    return int(huey.pending_count())


WORKER = [
    "-m",
    "huey.bin.huey_consumer",
    "benchmarks.peers.huey_app.huey",
    "-k",
    "process",
    "-w",
    "2",
    "-q",
]
