"""Celery without the ledger: the same broker, pool, prefetch and late acknowledgement."""

import sys
from functools import cache

from celery import Celery
from nightshift.celery.configuration import build_configuration
from nightshift.component import Composition
from nightshift.database import make_engine
from nightshift.settings import Settings
from sqlalchemy import Engine, text

app = Celery("bare")
app.conf.update(build_configuration(Settings(), Composition(())))

INSERT = text("insert into bench (number) values (:number)")


@cache
def connect() -> Engine:
    """Return the engine of this process, at its first task: a child has connections of its own."""
    settings = Settings()
    return make_engine(
        settings.database_url, password=settings.postgres_password.get_secret_value()
    )


@app.task(name="noop")
def noop(number: int) -> None:
    """Do nothing."""


@app.task(name="insert")
def insert(number: int) -> None:
    """Insert a row in a transaction of its own."""
    with connect().begin() as connection:
        connection.execute(INSERT, {"number": number})


def enqueue(number: int, job: str = "noop") -> None:
    """Enqueue by a loop of `delay()`, as most people do."""
    for index in range(number):
        app.tasks[job].delay(index)


LEFT = [["LLEN", "nightshift:default"], ["HLEN", "nightshift:unacked"]]
WORKER = [sys.executable, "-m", "celery", "-A", __name__, "worker", "--concurrency=2"]
