"""What every test may use. Servers are used wherever they are reachable; where they are not, the tests that need them say so loudly."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

import services.calendars.models
import services.jobs.models
import services.mail.models
import services.school.models  # noqa: F401 - imported so that their tables are known
from project.bootstrap import make_engine
from project.settings import Settings
from services.database import Session

# Where CI and a developer's machine have their servers; another address is given by the variable.
POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
RABBITMQ_URL = os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")
REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/0")

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ZONE = ZoneInfo("Europe/Zurich")

# `make test` gives every test the defaults, whatever the developer's own `.env` or environment say.
for _name in Settings.model_fields:
    os.environ.pop(_name.upper(), None)
Settings.model_config["env_file"] = None
# Whoever imports the app without an installation of its own gets a broker that is nobody else's.
os.environ["BROKER_URL"] = f"filesystem://{tempfile.mkdtemp(prefix='nightshift-test-')}"


def reachable(url: str) -> bool:
    """Say whether something listens at a URL's host and port."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1).close()
    except OSError:
        return False
    return True


def require(url: str, name: str) -> None:
    """Skip the test where a server is not reachable; in CI its absence is a failure."""
    if not reachable(url):
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not reachable at {url}, and CI must not skip it")
        pytest.skip(f"{name.upper()} IS NOT REACHABLE at {url}: start it, or name another in TEST_{name.upper()}_URL")


def make_settings(**values: object) -> Settings:
    """Return settings that nothing around the test has a say in."""
    return Settings(_env_file=None, **values)  # type: ignore[call-arg, arg-type]


def migrated(url: str) -> str:
    """Bring a database's tables up to date and return its URL. Not by `create_all`: triggers are no part of the models."""
    environment = os.environ | {"DATABASE_URL": url}
    subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, env=environment, check=True, capture_output=True)
    return url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Give the URL of an empty, migrated Postgres database that lives for the test session."""
    require(POSTGRES_URL, "postgres")
    name = f"nightshift_test_{uuid4().hex[:12]}"
    server = create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield migrated(make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False))
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the URL of an empty, migrated SQLite database that lives for the test session."""
    return migrated(f"sqlite:///{tmp_path_factory.mktemp('database')}/test.db")


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Give an engine, as the application makes it, of a database that has all tables: SQLite always, Postgres where it is reachable."""
    url = request.getfixturevalue(f"{request.param}_url")
    engine = make_engine(make_settings(database_url=url)).execution_options(sqlite_begin="IMMEDIATE")
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Give a session whose changes are rolled back after the test."""
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
            yield session
        transaction.rollback()


@pytest.fixture
def example_school() -> Path:
    """Give the folder of the example school."""
    return ROOT / "examples" / "school"
