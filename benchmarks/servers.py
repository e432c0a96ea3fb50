"""A database and a broker for one benchmark, and real workers on them."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import redis
from nightshift.runtime import Runtime
from sqlalchemy import create_engine, make_url, text

POSTGRES_URL = os.environ.get(
    "TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)
REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/8")
ROOT = Path(__file__).parent.parent


@contextmanager
def installation(**settings: str) -> Iterator[dict[str, str]]:
    """Yield the environment of a fresh, migrated installation on Postgres and Redis.

    All of it is removed afterwards.
    """
    name = f"nightshift_bench_{uuid4().hex[:8]}"
    server = create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    broker = redis.Redis.from_url(REDIS_URL)
    broker.flushdb()
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as folder:
        url = make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
        environment = {
            "DATABASE_URL": url,
            "BROKER_URL": REDIS_URL,
            "FEED_STORE": f"{folder}/feeds",
            "LOG_LEVEL": "WARNING",
        }
        os.environ.update(environment | settings)
        try:
            subprocess.run(
                [sys.executable, "-m", "alembic", "upgrade", "heads"],
                check=True,
                cwd=ROOT,
                capture_output=True,
            )
            yield environment
        finally:
            broker.flushdb()
            with server.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
            server.dispose()


def make_runtime() -> Runtime:
    """Return the project's runtime on the installation that the environment names."""
    # An app reads the environment when it is made, which must not be before `installation`.
    from project.celery import app

    return app.runtime


def free_port() -> int:
    """Return a port that no program listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def worker(app: str = "project") -> Iterator[subprocess.Popen[bytes]]:
    """Yield a running worker with two processes."""
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "--concurrency=2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(4)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
