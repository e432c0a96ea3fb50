"""rq, which forks for every job."""

import os
import sys

from redis import Redis
from rq import Queue

queue = Queue("bench", connection=Redis.from_url(os.environ["BROKER_URL"]))


def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int, job: str = "noop") -> None:
    queue.enqueue_many(
        [Queue.prepare_data(noop, (index,), result_ttl=0) for index in range(number)]
    )


LEFT = [["LLEN", "rq:queue:bench"], ["ZCARD", "rq:wip:bench"]]
WORKER = [
    *(sys.executable, "-m", "rq.cli", "worker", "--burst", "--quiet"),
    *("--url", os.environ["BROKER_URL"], "bench"),
]
PROCESSES = 2
