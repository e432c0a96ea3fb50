"""One upgrade at a time, under a lock timeout, and without leaving settings behind."""

import os

import pytest
from alembic import command
from alembic.util import CommandError
from forking import run_forked
from nightshift.migrations import LOCK_KEY
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

ROUNDS = 3
# Imports first, so that the three really start at once.
RACE = """
import os
from alembic import command
from alembic.config import Config
import nightshift.jobs.models
import nightshift.migrations

children = []
for _ in range(3):
    child = os.fork()
    if not child:
        command.upgrade(Config("alembic.ini"), "heads")
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
"""


def created(project):
    project.write("school", "s1", "op.create_table('thing', sa.Column('id', sa.Integer))")
    project.upgrade()


def heads(project):
    return project.rows("SELECT version_num FROM alembic_version ORDER BY version_num")


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_upgrades_at_once_of_an_empty_database_all_succeed(project, round_):
    project.write("school", "s1", "op.create_table('thing', sa.Column('id', sa.Integer))")
    (project.folder / "race.py").write_text(RACE)
    race = run_forked("race", environment=os.environ, folder=project.folder)
    assert race.returncode == 0, race.stderr
    assert heads(project) == [("ns_0004",), ("s1",)]
    assert project.rows("SELECT count(*) FROM thing") == [(0,)]


def test_an_upgrade_waits_for_the_one_that_runs(on_postgres):
    with on_postgres.engine.connect() as other:
        other.execute(text(f"SELECT pg_advisory_lock({LOCK_KEY})"))
        waiting = on_postgres.start_upgrade()
        assert waiting.stderr is not None
        assert "another migration of this database is running" in waiting.stderr.readline()
        assert on_postgres.rows("SELECT count(*) FROM pg_tables WHERE tablename = 'job'") == [(0,)]
        other.execute(text(f"SELECT pg_advisory_unlock({LOCK_KEY})"))
    waiting.communicate(timeout=100)
    assert waiting.returncode == 0
    assert heads(on_postgres) == [("ns_0004",)]


def test_an_upgrade_that_waits_lets_indexes_be_built_concurrently(on_postgres):
    created(on_postgres)
    with on_postgres.engine.connect() as other:
        other.execute(text(f"SELECT pg_advisory_lock({LOCK_KEY})"))
        other.commit()
        waiting = on_postgres.start_upgrade()
        assert waiting.stderr is not None
        waiting.stderr.readline()
        other.execution_options(isolation_level="AUTOCOMMIT")
        other.execute(text("SET statement_timeout = '10s'"))
        other.execute(text("CREATE INDEX CONCURRENTLY ix_thing ON thing (id)"))
        other.execute(text(f"SELECT pg_advisory_unlock({LOCK_KEY})"))
        other.invalidate()
    waiting.communicate(timeout=100)
    assert waiting.returncode == 0


def test_a_migration_has_a_lock_timeout_and_no_statement_timeout(on_postgres):
    body = """
        op.create_table("seen", sa.Column("name", sa.Text), sa.Column("setting", sa.Text))
        op.execute("INSERT INTO seen SELECT name, setting FROM pg_settings"
                   " WHERE name IN ('statement_timeout', 'lock_timeout')")
    """
    on_postgres.write("school", "s1", body)
    on_postgres.upgrade()
    seen = on_postgres.rows("SELECT name, setting FROM seen ORDER BY name")
    assert seen == [("lock_timeout", "10000"), ("statement_timeout", "0")]


def test_a_statement_may_take_longer_than_the_statement_timeout(on_postgres):
    on_postgres.execute(
        f"ALTER DATABASE {on_postgres.engine.url.database} SET statement_timeout = '200ms'"
    )
    on_postgres.write("school", "s1", "op.execute('SELECT pg_sleep(0.6)')")
    on_postgres.upgrade()
    assert heads(on_postgres) == [("ns_0004",), ("s1",)]


def test_a_table_in_use_stops_a_migration_at_the_lock_timeout(on_postgres, monkeypatch):
    created(on_postgres)
    monkeypatch.setattr("nightshift.migrations.LOCK_TIMEOUT", "300ms")
    on_postgres.write("school", "s2", "op.execute('ALTER TABLE thing ADD a INT')", down="s1")
    with on_postgres.engine.connect() as reader:
        reader.execute(text("SELECT * FROM thing"))
        with pytest.raises(OperationalError, match="lock timeout"):
            on_postgres.upgrade()
    assert heads(on_postgres) == [("ns_0004",), ("s1",)]
    on_postgres.upgrade()
    assert heads(on_postgres) == [("ns_0004",), ("s2",)]


def test_a_migration_that_fails_changes_nothing(project):
    body = "op.create_table('thing', sa.Column('id', sa.Integer))\nop.execute('SELECT missing')"
    project.write("school", "s1", body)
    with pytest.raises(Exception, match="missing"):
        project.upgrade()
    tables = "sqlite_master WHERE type = 'table'"
    if project.engine.dialect.name == "postgresql":
        tables = "pg_tables WHERE schemaname = 'public'"
    assert project.rows(f"SELECT count(*) FROM {tables}") == [(0,)]


def test_a_missing_folder_is_a_branch_that_was_left_out(project):
    project.upgrade()
    assert not (project.folder / "migrations" / "school").exists()
    assert heads(project) == [("ns_0004",)]


def test_sql_is_refused(on_sqlite):
    with pytest.raises(CommandError, match="--sql is not supported"):
        command.upgrade(on_sqlite.config, "heads", sql=True)


def test_a_migration_behind_a_pooler_is_refused(on_postgres, monkeypatch):
    monkeypatch.setenv("DATABASE_POOLER", "transaction")
    with pytest.raises(CommandError, match="DATABASE_POOLER=none"):
        on_postgres.upgrade()
    assert on_postgres.rows("SELECT count(*) FROM pg_tables WHERE tablename = 'job'") == [(0,)]
