"""procrastinate: on Postgres alone."""

import os
import sys

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

DSN = os.environ["DATABASE_URL"].replace("+psycopg", "")
app = App(connector=PsycopgConnector(conninfo=DSN))


@app.task(name="noop")
def noop(number: int) -> None:
    """Do nothing."""


def enqueue(number: int, job: str = "noop") -> None:
    with (
        app.replace_connector(SyncPsycopgConnector(conninfo=DSN)) as synchronous,
        synchronous.open(),
    ):
        synchronous.schema_manager.apply_schema()
        synchronous.tasks[job].batch_defer(*({"number": index} for index in range(number)))


LEFT = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
WORKER = [
    *(sys.executable, "-m", "procrastinate", "--app=benchmarks.peers.procrastinate_app.app"),
    *("--log-level=warning", "worker", "--concurrency=4"),
]
PROCESSES = 2
