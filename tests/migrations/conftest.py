"""A copy of the project's migrations, and databases as the old ones left them."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.config import Config
from nightshift.component import Composition
from nightshift.database import make_engine
from servers import postgres_database
from sqlalchemy import Column, Engine, MetaData, Table, insert, inspect, select, text

from project.app import COMPONENTS

COMPOSITION = Composition(COMPONENTS)
ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "migrations"

ENV = """
from alembic import context
from nightshift.migrations import run_migrations

run_migrations(**context.config.attributes)
"""

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

# Alembic fills the first, triggers the second.
UNFILLED = ("alembic_version", "change_log")
# What two rows of a table hold that cannot be derived from its columns.
MORE: dict[str, dict[str, Any]] = {"event": {"starts_at": NOW, "ends_at": NOW}}


@dataclass(frozen=True)
class Database:
    """A database, and a copy of the project's migrations."""

    folder: Path
    engine: Engine

    @property
    def config(self) -> Config:
        url = self.engine.url.render_as_string(hide_password=False)
        runtime = COMPOSITION.runtime(_env_file=None, database_url=url)
        attributes = {"runtime": runtime, "table_branches": COMPOSITION.table_branches()}
        return Config(self.folder / "alembic.ini", stdout=StringIO(), attributes=attributes)

    def upgrade(self, revision: str = "heads") -> None:
        command.upgrade(self.config, revision)

    def check(self) -> None:
        command.check(self.config)

    def replay(self, revision: str) -> None:
        """Execute what the old migrations executed, from an empty database to this revision."""
        script = (GOLDEN / f"{self.engine.dialect.name}.sql").read_text()
        statements = (
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);\n"
        )
        for part in re.split(r"^-- revision ", script, flags=re.MULTILINE)[1:]:
            number, _, body = part.partition("\n")
            if number <= revision:
                statements += body
        statements += f"INSERT INTO alembic_version VALUES ('{revision}');"
        with self.engine.connect() as connection:
            cursor = connection.connection.cursor()
            run = getattr(cursor, "executescript", cursor.execute)
            run(statements)
            connection.connection.commit()

    def fill(self) -> None:
        """Insert two rows into every table; each refers to the rows of the same number."""
        with self.engine.begin() as connection:
            metadata = MetaData()
            metadata.reflect(connection)
            for table in metadata.sorted_tables:
                if table.name not in UNFILLED:
                    allowed = self._allowed(connection, table.name)
                    for number in (1, 2):
                        connection.execute(insert(table).values(_row(table, number, allowed)))

    def rows(self, columns: dict[str, list[str]] | None = None) -> dict[str, list[str]]:
        """Return every table's rows as text, sorted; of each table only those columns."""
        with self.engine.connect() as connection:
            metadata = MetaData()
            metadata.reflect(connection)
            found = {}
            for name, table in metadata.tables.items():
                if name != "alembic_version" and (columns is None or name in columns):
                    wanted = table.c if columns is None else [table.c[one] for one in columns[name]]
                    found[name] = sorted(str(row) for row in connection.execute(select(*wanted)))
            return found

    def columns(self) -> dict[str, list[str]]:
        """Return every table's columns."""
        tables = inspect(self.engine).get_table_names()
        return {
            name: [one["name"] for one in inspect(self.engine).get_columns(name)] for name in tables
        }

    def versions(self) -> tuple[str, ...]:
        with self.engine.connect() as connection:
            return tuple(connection.scalars(text("SELECT version_num FROM alembic_version")))

    def _allowed(self, connection: Any, table: str) -> dict[str, str]:
        # The first value that a CHECK allows, by column: kind IN ('user', …), or Postgres's form.
        found = {}
        for check in inspect(connection).get_check_constraints(table):
            match = re.match(r"\(*(\w+)\)?(?:::\w+)*\)? (?:IN|= ANY).*?'(\w+)'", check["sqltext"])
            if match:
                found[match[1]] = match[2]
        return found


def _row(table: Table, number: int, allowed: dict[str, str]) -> dict[str, Any]:
    needed = [
        one
        for one in table.c
        if not one.nullable or one.foreign_keys or one.name in MORE.get(table.name, ())
    ]
    row = {one.name: _value(one, number) for one in needed} | MORE.get(table.name, {})
    for column in table.c:
        if column.name in allowed:
            row[column.name] = allowed[column.name]
        if any(key.column.table is table for key in column.foreign_keys):
            row[column.name] = None if number == 1 else _value(column, 1)
    return row


def _value(column: Column[Any], number: int) -> Any:
    kind = column.type.python_type
    if kind is str and str(column.type) == "CHAR(32)":
        return UUID(int=number).hex
    return {
        bool: True,
        int: number,
        float: 1.0,
        str: str(number),
        bytes: bytes([number]),
        object: {"number": number},  # JSON
        UUID: UUID(int=number),
        date: NOW.date(),
        datetime: NOW,
        time: time(8),
    }[kind]


def _copy(folder: Path, url: str) -> Iterator[Database]:
    for name in ("alembic.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "migrations", folder / "migrations")
    (folder / "migrations" / "env.py").write_text(ENV)
    engine = make_engine(url)
    yield Database(folder, engine)
    engine.dispose()


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Database]:
    yield from _copy(tmp_path, f"sqlite:///{tmp_path}/test.db")


@pytest.fixture
def on_postgres(tmp_path: Path) -> Iterator[Database]:
    with postgres_database() as url:
        yield from _copy(tmp_path, url)


@pytest.fixture(params=["on_sqlite", "on_postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """Give an empty database: on SQLite, and on Postgres."""
    found: Database = request.getfixturevalue(request.param)
    return found
