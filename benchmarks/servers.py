"""A database and a broker for one benchmark, and real workers on them."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import redis
from sqlalchemy import create_engine, make_url, text

POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/8")
ROOT = Path(__file__).parent.parent


@contextmanager
def installation(**settings: str) -> Iterator[dict[str, str]]:
    """Give the environment of a fresh installation on Postgres and Redis, migrated; all of it is gone afterwards."""
    name = f"nightshift_bench_{uuid4().hex[:8]}"
    server = create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    broker = redis.Redis.from_url(REDIS_URL)
    broker.flushdb()
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as folder:
        url = make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
        environment = {"DATABASE_URL": url, "BROKER_URL": REDIS_URL, "FEED_STORE": f"{folder}/feeds", "LOG_LEVEL": "WARNING"}
        os.environ.update(environment | settings)
        try:
            subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], check=True, cwd=ROOT, capture_output=True)
            yield environment
        finally:
            broker.flushdb()
            with server.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
            server.dispose()


@contextmanager
def worker(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Give a running worker with two processes."""
    command = [sys.executable, "-m", "celery", "-A", "project", "worker", "--concurrency=2", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(4)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
