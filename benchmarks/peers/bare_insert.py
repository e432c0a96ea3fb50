"""Celery without the ledger, with a row that each task inserts and commits."""

from functools import cache

from nightshift.database import make_engine
from nightshift.settings import Settings
from sqlalchemy import Engine, text

from benchmarks.peers.bare_celery import app, remaining

INSERT = text("insert into bench (number) values (:number)")


@cache
def connect() -> Engine:
    """Return the engine of this process, at its first task: a child has connections of its own."""
    settings = Settings()
    return make_engine(
        settings.database_url, password=settings.postgres_password.get_secret_value()
    )


@app.task(name="insert")
def insert(number: int) -> None:
    """Insert a row in a transaction of its own."""
    with connect().begin() as connection:
        connection.execute(INSERT, {"number": number})


def enqueue(number: int) -> None:
    """Enqueue by a loop of `delay()`, as most people do."""
    for index in range(number):
        insert.delay(index)


__all__ = ["WORKER", "app", "enqueue", "remaining"]

WORKER = ["-m", "celery", "-A", __name__, "worker", "--concurrency=2", "-n", "bare@bench"]
