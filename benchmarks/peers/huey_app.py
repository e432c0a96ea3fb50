"""huey on Redis."""

import os
import sys

from huey import RedisHuey

huey = RedisHuey("bench", url=os.environ["BROKER_URL"], results=False)


@huey.task()
def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int, job: str = "noop") -> None:
    for index in range(number):
        noop(index)


LEFT = [["LLEN", "huey.redis.bench"]]
WORKER = [
    *(sys.executable, "-m", "huey.bin.huey_consumer", f"{__name__}.huey"),
    *("-k", "process", "-w", "2", "-q"),
]
