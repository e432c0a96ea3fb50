"""rq, which forks for every job."""

import os

from redis import Redis
from rq import Queue

queue = Queue("bench", connection=Redis.from_url(os.environ["BROKER_URL"]))


def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int) -> None:
    queue.enqueue_many(
        [Queue.prepare_data(noop, (index,), result_ttl=0) for index in range(number)]
    )


def remaining() -> int:
    return len(queue) + queue.started_job_registry.count


WORKER = [
    "-m",
    "rq.cli",
    "worker",
    "--burst",
    "--quiet",
    "--url",
    os.environ["BROKER_URL"],
    "bench",
]
PROCESSES = 2
