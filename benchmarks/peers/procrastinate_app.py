"""procrastinate: the peer with the same promises, on Postgres alone."""

import os

import psycopg
from procrastinate import App, PsycopgConnector

DSN = os.environ["DATABASE_URL"].replace("+psycopg", "")
app = App(connector=PsycopgConnector(conninfo=DSN))


@app.task(name="noop")
def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int) -> None:
    with psycopg.connect(DSN) as connection:
        fresh = connection.execute("select to_regclass('procrastinate_jobs') is null").fetchone()[0]
    from procrastinate import SyncPsycopgConnector

    with (
        app.replace_connector(SyncPsycopgConnector(conninfo=DSN)) as synchronous,
        synchronous.open(),
    ):
        if fresh:
            synchronous.schema_manager.apply_schema()
        synchronous.tasks["noop"].batch_defer(*({"number": index} for index in range(number)))


def remaining() -> int:
    with psycopg.connect(DSN) as connection:
        return connection.execute(
            "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
        ).fetchone()[0]


# One event loop a process; two processes, as the others have.
WORKER = [
    "-m",
    "procrastinate",
    "--app=benchmarks.peers.procrastinate_app.app",
    "worker",
    "--concurrency=4",
]
PROCESSES = 2
