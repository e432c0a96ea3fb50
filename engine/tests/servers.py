"""Servers for tests: used wherever they are reachable, and skipped loudly where they are not.

In CI a missing Postgres or Redis is a failure. Another address is given by the variable.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
from sqlalchemy import create_engine, make_url, text

POSTGRES_URL = os.environ.get(
    "TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)
RABBITMQ_URL = os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")
REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


def reachable(url: str) -> bool:
    """Return whether something listens at a URL's host and port."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port of loopback that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def require(url: str, name: str) -> None:
    """Skip the test where a server is not reachable; in CI its absence is a failure."""
    if not reachable(url):
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not reachable at {url}, and CI must not skip it")
        variable = f"TEST_{name.upper()}_URL"
        pytest.skip(
            f"{name.upper()} IS NOT REACHABLE at {url}: start it, or name another in {variable}"
        )


@contextmanager
def postgres_database() -> Iterator[str]:
    """Yield the URL of an empty Postgres database that lives as long as the context."""
    require(POSTGRES_URL, "postgres")
    name = f"nightshift_test_{uuid4().hex[:12]}"
    server = create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()


@contextmanager
def redis_database() -> Iterator[str]:
    """Yield the URL of an empty Redis database that no other run of the tests uses."""
    require(REDIS_URL, "redis")
    for number in range(15, 0, -1):
        url = f"{REDIS_URL.rpartition('/')[0]}/{number}"
        with redis.Redis.from_url(url) as broker:
            if broker.dbsize() == 0 and broker.set("taken", os.getpid(), nx=True, ex=3600):
                try:
                    yield url
                finally:
                    broker.flushdb()
                return
    pytest.fail("no Redis database is empty: flush those that tests which were killed have left")
