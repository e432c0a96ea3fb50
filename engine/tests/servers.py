"""Servers for tests: used wherever they are reachable, and skipped loudly where they are not.

In CI a missing Postgres or Redis is a failure. Another address is given by the variable.
"""

import fcntl
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
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


_ports: list[IO[str]] = []


def free_port() -> int:
    """Return a port of loopback that nothing listens at, and that nothing else takes meanwhile.

    It is below those that the system gives to connections, and no other process of the tests is
    given it as long as this one lives.
    """
    folder = Path(tempfile.gettempdir()) / "nightshift-tests-ports"
    folder.mkdir(exist_ok=True)
    while True:
        port = random.randrange(20_000, 30_000)
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
        else:
            _ports.append(lock)
            return port


def wait_for(port: int) -> None:
    """Wait until something listens at a port of loopback."""
    give_up = time.monotonic() + 100
    while not reachable(f"tcp://127.0.0.1:{port}"):
        if time.monotonic() > give_up:
            pytest.fail(f"nothing listens on port {port}")
        time.sleep(0.05)


def require(url: str, name: str) -> None:
    """Skip the test where a server is not reachable; in CI its absence is a failure."""
    if not reachable(url):
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not reachable at {url}, and CI must not skip it")
        variable = f"TEST_{name.upper()}_URL"
        pytest.skip(
            f"{name.upper()} IS NOT REACHABLE at {url}: start it, or name another in {variable}"
        )


POOLER_SETTINGS = """
[databases]
{database} = host={host} port={postgres_port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = transaction
default_pool_size = 3
max_client_conn = 500
auth_type = any
{more}
logfile = {folder}/log
"""


@contextmanager
def pooled(database_url: str, more: str = "") -> Iterator[str]:
    """Yield the URL of a Postgres database behind a PgBouncer in transaction mode.

    `more` are other lines of its settings.

    It is an extra: where it is not installed its tests are skipped, loudly.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("PGBOUNCER IS NOT INSTALLED: apt-get install pgbouncer")
    url, port = make_url(database_url), free_port()
    folder = Path(tempfile.mkdtemp(prefix="nightshift-pgbouncer-"))
    settings = POOLER_SETTINGS.format(
        database=url.database,
        host=url.host,
        postgres_port=url.port or 5432,
        user=url.username or "postgres",
        port=port,
        folder=folder,
        more=more,
    )
    (folder / "pgbouncer.ini").write_text(settings)
    # It refuses to be run by root.
    user = {"user": "postgres"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")
    process = subprocess.Popen(
        [program, "--quiet", str(folder / "pgbouncer.ini")],
        **user,  # type: ignore[call-overload]
    )
    try:
        wait_for(port)
        yield url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@contextmanager
def postgres_database() -> Iterator[str]:
    """Yield the URL of an empty Postgres database that lives as long as the context.

    With TEST_POOLER=true it is behind a PgBouncer.
    """
    with _own_database() as url:
        if os.environ.get("TEST_POOLER") == "true":
            with pooled(url) as through:
                yield through
        else:
            yield url


@contextmanager
def _own_database() -> Iterator[str]:
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
