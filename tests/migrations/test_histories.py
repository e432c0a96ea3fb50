"""The project's histories: a database of any age reaches the heads, and loses nothing.

tests/golden/migrations has what the migrations executed when they were one history.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from forking import run_forked
from sqlalchemy import text

pytestmark = pytest.mark.filterwarnings(
    # SQLAlchemy reads from Postgres that a CHECK is NOT VALID, and then does not know the word.
    "ignore:Can't validate argument 'dialect_options'"
)

ROOT = Path(__file__).parent.parent.parent
OLD_REVISIONS = [f"{number:04}" for number in range(1, 8)]

SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
TRIGGERS_AND_FUNCTIONS = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal)"
    " + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)",
}


def heads_reached(database):
    script = ScriptDirectory.from_config(database.config)
    reached = {one.revision for one in script.get_all_current(database.versions())}
    return reached == set(script.get_heads())


def scalar(database, statement):
    with database.engine.connect() as connection:
        return connection.execute(text(statement)).scalar_one()


@pytest.mark.parametrize("revision", OLD_REVISIONS)
def test_an_old_database_reaches_the_heads_with_every_row(database, revision):
    database.replay(revision)
    database.fill()
    columns, before = database.columns(), database.rows()
    assert min(map(len, before.values())) >= 2
    database.upgrade()
    assert database.rows(columns) == before
    assert heads_reached(database)
    database.check()


def test_a_database_at_the_old_head_runs_only_what_is_newer(database):
    database.replay("0007")
    database.upgrade()
    assert database.versions() == ("0013", "mail_0003", "ns_0004")


QUEUED = """
INSERT INTO mail (id, kind, dedupe_key, message_id, recipient, subject, state, priority, attempt,
    repeats, created_at, due_at, expires_at, sensitive, resend)
VALUES (:id, :kind, :key, 'm', 'ann@school.example', 's', 'queued', 5, 0, 0, :at, :at, :at,
    false, true)
"""


def test_mails_of_the_release_before_say_what_they_are_about(database):
    database.replay("0007")
    event_id = "9b2f64c1-3c0a-4d0e-9f43-7a51c1d5e2b8"
    keys = {
        "event_changed": f"event_changed:{event_id}:12:345",
        "invitation": f"invitation:{event_id}:1:7",
        "digest": "digest:2026-W49:345",
        "notice": "notice:1",
    }
    with database.engine.begin() as connection:
        for number, (kind, key) in enumerate(keys.items(), 1):
            row = {"id": number, "kind": kind, "key": key, "at": "2026-11-21 12:00:00.000000"}
            connection.execute(text(QUEUED), row)
    database.upgrade()
    with database.engine.connect() as connection:
        found = connection.execute(
            text("SELECT about, version, reader_id FROM mail ORDER BY id")
        ).all()
    assert [tuple(row) for row in found] == [
        (f"event:{event_id}", 12, 345),
        (f"event:{event_id}", 1, 7),
        (None, None, None),
        (None, None, None),
    ]


def test_the_new_histories_make_what_the_old_one_made(on_sqlite, tmp_path_factory):
    on_sqlite.replay("0007")
    old = schema(on_sqlite)
    on_sqlite.engine.dispose()
    (on_sqlite.folder / "test.db").unlink()
    for head in ("0007", "mail_0001"):
        command.upgrade(on_sqlite.config, head)
    assert schema(on_sqlite) == old


def schema(database):
    """Return what SQLite has, apart from white space, quotes and the order of constraints."""
    with database.engine.connect() as connection:
        rows = connection.execute(text(SCHEMA)).all()
    return [
        [sorted(re.sub(r"[\s\"()]+", "", str(part)).split(",")) for part in row]
        for row in rows
        if row.tbl_name != "alembic_version"
    ]


def test_the_histories_go_there_and_back(database):
    database.upgrade()
    database.check()
    made = scalar(database, TRIGGERS_AND_FUNCTIONS[database.engine.dialect.name])
    assert made > 0
    command.downgrade(database.config, "school@0001")
    assert scalar(database, TRIGGERS_AND_FUNCTIONS[database.engine.dialect.name]) == 0
    database.upgrade()
    assert scalar(database, TRIGGERS_AND_FUNCTIONS[database.engine.dialect.name]) == made
    for branch in ("school", "mail", "nightshift"):
        command.downgrade(database.config, f"{branch}@base")
    assert list(database.columns()) == ["alembic_version"]


REBUILD = """
import sqlalchemy as sa
from alembic import op

revision = "rebuild"
down_revision = None
branch_labels = ("project",)
depends_on = ("0009", "mail_0001", "ns_0001")


def upgrade():
    for table in {tables}:
        with op.batch_alter_table(table, recreate="always"):
            pass
"""


def rebuild(database, *tables):
    script = database.folder / "migrations" / "versions" / "rebuild.py"
    script.write_text(REBUILD.format(tables=tables))
    database.upgrade()


@pytest.mark.parametrize("table", ["user_account", "school_class", "semester", "job"])
def test_a_rebuild_on_sqlite_loses_nothing(on_sqlite, table):
    on_sqlite.upgrade()
    on_sqlite.fill()
    rows = on_sqlite.rows()
    rebuild(on_sqlite, table)
    assert on_sqlite.rows() == rows


def test_every_table_can_be_rebuilt_and_stays_as_it_was(on_sqlite):
    on_sqlite.upgrade()
    on_sqlite.fill()
    rows, before = on_sqlite.rows(), schema(on_sqlite)
    rebuild(on_sqlite, *sorted(on_sqlite.columns().keys() - {"alembic_version"}))
    assert on_sqlite.rows() == rows
    assert schema(on_sqlite) == before


def test_a_generated_migration_passes_the_linter(database):
    database.upgrade()
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE event_notice"))
        connection.execute(text("DROP INDEX ix_event_author_id"))
    command.revision(database.config, "what changes", autogenerate=True, rev_id="next")
    [written] = (database.folder / "migrations").rglob("next_what_changes.py")
    assert written.parent.name == "school"
    for check in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *check, str(written)]
        linted = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert linted.returncode == 0, linted.stdout
    database.upgrade()
    database.check()


def test_the_command_checks_the_tables_of_every_branch(sqlite_url):
    environment = os.environ | {"DATABASE_URL": sqlite_url}
    said = run_forked("alembic", "check", environment=environment, folder=ROOT)
    assert said.returncode == 0, said.stderr
