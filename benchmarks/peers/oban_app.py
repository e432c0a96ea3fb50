"""oban for Python: on Postgres alone, ten jobs at a time (the number in its documentation)."""

import asyncio
import os
import sys

from oban import Oban, job
from oban.schema import install
from psycopg_pool import AsyncConnectionPool

DSN = os.environ["DATABASE_URL"].replace("+psycopg", "")


@job(queue="default")
async def noop(number: int) -> None:
    """Do nothing."""


async def fill(number: int) -> None:
    async with AsyncConnectionPool(DSN, open=False) as pool:
        await install(pool)
        await Oban(pool=pool).enqueue_many(noop.new(index) for index in range(number))


def enqueue(number: int, job: str = "noop") -> None:
    asyncio.run(fill(number))


LEFT = "select count(*) from oban_jobs where state in ('available', 'executing')"
WORKER = [
    *(sys.executable, "-m", "oban", "start", "--dsn", DSN),
    *("--queues", "default:10", "--log-level", "warning"),
]
PROCESSES = 2
