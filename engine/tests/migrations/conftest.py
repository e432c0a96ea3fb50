"""A made-up project with migrations of its own, in an empty database of either kind."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from nightshift.database import make_engine
from servers import postgres_database
from sqlalchemy import Engine, text

INI = """
[alembic]
script_location = %(here)s/migrations
path_separator = newline
version_locations =
    nightshift:migrations/versions
    %(here)s/migrations/mail
    %(here)s/migrations/school
    %(here)s/migrations/versions
revision_environment = true
"""

ENV = """
import sqlalchemy as sa

import nightshift.jobs.models
from nightshift.database import Base
from nightshift.migrations import run_migrations
from nightshift.runtime import Runtime
from nightshift.settings import Settings

models = vars(nightshift.jobs.models).values()
engine = {{one.__tablename__ for one in models if hasattr(one, "__tablename__")}}
branches = {branches!r}
metadata = sa.MetaData(naming_convention=Base.metadata.naming_convention)
for name in engine:
    Base.metadata.tables[name].to_metadata(metadata)
for name in {tables!r}:
    sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True))
settings = Settings(_env_file=None, database_url={url!r})
branches.update(dict.fromkeys(engine, "nightshift"))
run_migrations(Runtime(settings), branches, metadata=metadata)
"""

MAKO = """
import sqlalchemy as sa
from alembic import op

from nightshift import database

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

def upgrade():
    ${upgrades if upgrades else "pass"}

def downgrade():
    ${downgrades if downgrades else "pass"}
"""

REVISION = """
import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {down!r}
branch_labels = {labels!r}
depends_on = {depends!r}

def upgrade():
{body}

def downgrade():
    pass
"""


@dataclass(frozen=True)
class Project:
    """A folder with an alembic.ini, and the database that it migrates."""

    folder: Path
    url: str
    engine: Engine

    def models(self, branches: dict[str, str], *, without_component: str = "") -> None:
        """Say which tables the models have, by the branch that holds them."""
        tables = [*branches, *without_component.split()]
        env = ENV.format(url=self.url, branches=branches, tables=tables)
        (self.folder / "migrations" / "env.py").write_text(env)

    def write(
        self,
        branch: str,
        revision: str,
        body: str,
        *,
        down: str | None = None,
        depends: str | None = None,
    ) -> None:
        """Write a revision by hand; the first of a branch has its label."""
        labels = None if down else (branch,)
        folder = self.folder / "migrations" / ("versions" if branch == "project" else branch)
        folder.mkdir(exist_ok=True)
        body = textwrap.indent(textwrap.dedent(body), "    ")
        (folder / f"{revision}.py").write_text(
            REVISION.format(revision=revision, down=down, labels=labels, depends=depends, body=body)
        )

    @property
    def config(self) -> Config:
        return Config(self.folder / "alembic.ini", stdout=StringIO())

    def upgrade(self) -> None:
        command.upgrade(self.config, "heads")

    def check(self) -> None:
        command.check(self.config)

    def autogenerate(self, revision: str, *, head: str = "head") -> None:
        command.revision(self.config, "next", autogenerate=True, rev_id=revision, head=head)

    def start_upgrade(self) -> subprocess.Popen[str]:
        """Start `alembic upgrade heads` in a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "alembic", "upgrade", "heads"],
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """Return what a query finds."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def execute(self, *statements: str) -> None:
        """Execute statements, and commit."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))


def _project(folder: Path, url: str) -> Iterator[Project]:
    (folder / "migrations").mkdir()
    (folder / "alembic.ini").write_text(INI)
    (folder / "migrations" / "script.py.mako").write_text(MAKO)
    engine = make_engine(url)
    project = Project(folder, url, engine)
    project.models({})
    yield project
    engine.dispose()


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Project]:
    yield from _project(tmp_path, f"sqlite:///{tmp_path}/test.db")


@pytest.fixture
def on_postgres(tmp_path: Path) -> Iterator[Project]:
    with postgres_database() as url:
        yield from _project(tmp_path, url)


@pytest.fixture(params=["on_sqlite", "on_postgres"])
def project(request: pytest.FixtureRequest) -> Project:
    """Give a project on SQLite, and one on Postgres."""
    found: Project = request.getfixturevalue(request.param)
    return found
