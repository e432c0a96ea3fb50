"""pgqueuer: on Postgres alone, ten jobs a fetch (its default)."""

import os
import sys

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.adapters.cli.cli import asyncio_run
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

DSN = os.environ["DATABASE_URL"].replace("+psycopg", "")


async def work() -> None:
    """Run a worker as `pgq run` does, which cannot start in 1.6.0: its log level is a text."""
    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(DSN)))

    @pgq.entrypoint("noop")
    async def noop(job: Job) -> None:
        """Do nothing."""

    await pgq.run()


async def fill(number: int, job: str) -> None:
    connection = await asyncpg.connect(DSN)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    payloads = [b"%d" % index for index in range(number)]
    await queries.enqueue([job] * number, payloads, [0] * number)
    await connection.close()


def enqueue(number: int, job: str = "noop") -> None:
    asyncio_run(fill(number, job))


LEFT = "select count(*) from pgqueuer where status in ('queued', 'picked')"
WORKER = [
    *(sys.executable, "-c"),
    f"from {__name__} import *; asyncio_run(work())",
]
PROCESSES = 2
