"""What every test of the project may use: a migrated database of each kind, and its app."""

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from alembic import command
from alembic.config import Config
from nightshift.component import Composition
from nightshift.database import Session, make_engine
from nightshift.runtime import Runtime
from servers import postgres_database
from spreading import begin_with_waiting, start_quickly
from sqlalchemy import Engine

from project.app import COMPONENTS
from project.settings import NAME

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ZONE = ZoneInfo("Europe/Zurich")
COMPOSITION = Composition(COMPONENTS)

# Tests get the defaults, whatever the developer's own `.env` or environment say.
for _section in COMPOSITION.sections:
    for _name in _section.model_fields:
        os.environ.pop(_name.upper(), None)
    _section.model_config["env_file"] = None
# An app that is imported without an installation of its own gets a broker that is only its own.
os.environ["BROKER_URL"] = f"filesystem://{tempfile.mkdtemp(prefix='nightshift-test-')}"
start_quickly()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest."""
    begin_with_waiting(items)


def metric(name: str) -> str:
    """Return a metric's name as this project shows it."""
    return f"{NAME.replace('-', '_')}_{name}"


def make_runtime(**values: object) -> Runtime:
    """Return a runtime of the project that nothing around the test has a say in."""
    return COMPOSITION.runtime(_env_file=None, **values)


# Instead of the project's, which takes the database from the settings of a process.
ENV = """
from alembic import context
from nightshift.migrations import run_migrations

run_migrations(**context.config.attributes)
"""


def migrate_runtime(runtime: Runtime) -> None:
    """Bring a database's tables up to date, in this process: a command takes seconds to start.

    Not by `create_all`: triggers are no part of the models.
    """
    attributes = {"runtime": runtime, "table_branches": COMPOSITION.table_branches()}
    config = Config(ROOT / "alembic.ini", stdout=StringIO(), attributes=attributes)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "env.py").write_text(ENV, encoding="utf-8")
        config.set_main_option("script_location", folder)
        command.upgrade(config, "heads")


def migrate(url: str) -> str:
    """Bring a database's tables up to date and return its URL."""
    runtime = make_runtime(database_url=url)
    migrate_runtime(runtime)
    runtime.close()
    return url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield the URL of an empty, migrated Postgres database, for the test session."""
    with postgres_database() as url:
        yield migrate(url)


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of an empty, migrated SQLite database, for the test session."""
    return migrate(f"sqlite:///{tmp_path_factory.mktemp('database')}/test.db")


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Yield an engine, as the runtime makes it: SQLite always, Postgres where it is reachable."""
    url = request.getfixturevalue(f"{request.param}_url")
    engine = make_engine(url).execution_options(sqlite_begin="IMMEDIATE")
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session whose changes are rolled back after the test."""
    with engine.connect() as connection:
        transaction = connection.begin()
        mode = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}
        with Session(connection, **mode) as session:
            yield session
        transaction.rollback()


@pytest.fixture
def job_environment(tmp_path: Path) -> dict[str, str]:
    """Return what the components' settings name, for the installation that `job_app` makes."""
    return {"FEED_STORE": f"{tmp_path}/feeds", "MAIL_URL": f"folder://{tmp_path}/mail"}


@pytest.fixture(scope="session")
def example_school() -> Path:
    """Return the folder of the example school."""
    return ROOT / "examples" / "school"
