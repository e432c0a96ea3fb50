"""What every test of the engine may use: a database of each kind, and the probe's app."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nightshift.database import Session, make_engine
from nightshift.jobs.session import Carried, carry
from nightshift.settings import Settings
from servers import postgres_database
from spreading import begin_with_waiting, start_quickly
from sqlalchemy import Engine

# Tests get the defaults, whatever the developer's own `.env` or environment say.
for _name in Settings.model_fields:
    os.environ.pop(_name.upper(), None)
Settings.model_config["env_file"] = None
if os.environ.get("TEST_POOLER") == "true":
    os.environ["DATABASE_POOLER"] = "transaction"
# An app that is imported without an installation of its own gets a broker that is only its own.
os.environ["BROKER_URL"] = f"filesystem://{tempfile.mkdtemp(prefix='nightshift-test-')}"
start_quickly()
# A script that runs the tests in the background lets them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

from installations import create_tables  # noqa: E402 - makes apps, with the environment above
from nightshift.celery.app import App  # noqa: E402
from probe_app import app  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest."""
    begin_with_waiting(items)


def with_tables(url: str) -> str:
    """Create the engine's tables in a database, and return its URL."""
    made = App("probe_app", app.composition, database_url=url)
    create_tables(made)
    made.runtime.close()
    return url


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return with_tables(f"sqlite:///{tmp_path_factory.mktemp('database')}/test.db")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres_database() as url:
        yield with_tables(url)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a database with the engine's tables, for the test session."""
    # It stays when the next test needs the other one.
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(scope="session")
def engine(database_url: str) -> Iterator[Engine]:
    """Yield an engine, as the runtime makes it: SQLite always, Postgres where it is reachable."""
    pooler = "DATABASE_POOLER" in os.environ
    engine = make_engine(database_url, pooler=pooler).execution_options(sqlite_begin="IMMEDIATE")
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session whose changes are rolled back after the test."""
    with engine.connect() as connection:
        transaction = connection.begin()
        mode = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}
        with Session(connection, **mode) as session:
            carry(session, Carried(guarded=True))
            yield session
        transaction.rollback()


@pytest.fixture(scope="session")
def project_app() -> App:
    """Return the probe's app, in the place of a project's."""
    return app


@pytest.fixture
def root() -> Path:
    """Return the engine's folder."""
    return Path(__file__).parent.parent
