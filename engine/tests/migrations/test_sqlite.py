"""On SQLite a migration that rebuilds a table loses nothing, or is undone."""

import pytest
from alembic.util import CommandError

# A parent with a child that refers to it, one that refers to itself, triggers on both, an index on
# a part of the rows, checks, and an id that was used and must not come back.
SCHOOL = """
    op.execute('''
        CREATE TABLE parent (
            id INTEGER NOT NULL CONSTRAINT pk_parent PRIMARY KEY AUTOINCREMENT,
            name VARCHAR(20) NOT NULL,
            kind VARCHAR(20) DEFAULT 'a' NOT NULL,
            elder INTEGER,
            CONSTRAINT fk_parent_elder FOREIGN KEY(elder) REFERENCES parent (id) ON DELETE CASCADE,
            CONSTRAINT ck_parent_kind CHECK (kind IN ('a', 'b')),
            CONSTRAINT uq_parent_name UNIQUE (name)
        )
    ''')
    op.execute("CREATE INDEX ix_parent_kind ON parent (kind) WHERE kind = 'a'")
    op.execute('''
        CREATE TABLE child (
            id INTEGER NOT NULL PRIMARY KEY,
            parent_id INTEGER NOT NULL,
            CONSTRAINT fk_child FOREIGN KEY(parent_id) REFERENCES parent (id) ON DELETE CASCADE
        )
    ''')
    op.execute("CREATE TABLE note (text VARCHAR(20))")
    op.execute("CREATE TRIGGER noted AFTER UPDATE ON parent FOR EACH ROW WHEN (OLD.name IS NOT "
               "NEW.name) BEGIN INSERT INTO note VALUES (NEW.name); END")
    op.execute("CREATE TRIGGER touched AFTER INSERT ON child BEGIN "
               "UPDATE parent SET kind = 'b' WHERE id = NEW.parent_id; END")
    op.execute("CREATE VIEW named AS SELECT name FROM parent")
"""
WITHOUT_KIND = """
op.drop_index("ix_parent_kind")
with op.batch_alter_table("parent") as batch:
    batch.drop_constraint("ck_parent_kind")
    batch.drop_column("kind")
"""
COUNTS = "SELECT (SELECT count(*) FROM parent), (SELECT count(*) FROM child)"


@pytest.fixture
def filled(on_sqlite):
    on_sqlite.write("school", "s1", SCHOOL)
    on_sqlite.upgrade()
    on_sqlite.execute(
        "INSERT INTO parent (id, name) VALUES (1, 'one'), (2, 'two'), (90, 'ninety')",
        "UPDATE parent SET elder = 1",
        "INSERT INTO child (parent_id) VALUES (1), (1), (2)",
        "DELETE FROM parent WHERE id = 90",
    )
    assert on_sqlite.rows(COUNTS) == [(2, 3)]
    return on_sqlite


def rebuild(project, change, *, down="s1", revision="s2"):
    body = f"with op.batch_alter_table('parent') as batch:\n    {change}"
    project.write("school", revision, body, down=down)


def test_a_rebuild_keeps_every_row(filled):
    rebuild(filled, "batch.alter_column('name', type_=sa.String(50))")
    filled.upgrade()
    assert filled.rows(COUNTS) == [(2, 3)]
    assert filled.rows("SELECT id, name, kind, elder FROM parent ORDER BY id") == [
        (1, "one", "b", 1),
        (2, "two", "b", 1),
    ]


def test_a_rebuild_changes_only_what_it_was_asked_to(filled):
    described = "SELECT name, sql FROM sqlite_master WHERE tbl_name <> 'parent' ORDER BY name"
    triggers = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
    before = filled.rows(described), filled.rows(triggers)
    rebuild(filled, "batch.alter_column('name', type_=sa.String(50))")
    filled.upgrade()
    assert (filled.rows(described), filled.rows(triggers)) == before
    [(table,)] = filled.rows("SELECT sql FROM sqlite_master WHERE name = 'parent'")
    for kept in (
        "PRIMARY KEY AUTOINCREMENT",
        "name VARCHAR(50) NOT NULL",
        "kind VARCHAR(20) DEFAULT 'a' NOT NULL",
        "CONSTRAINT ck_parent_kind CHECK (kind IN ('a', 'b'))",
        "CONSTRAINT uq_parent_name UNIQUE (name)",
        "CONSTRAINT fk_parent_elder FOREIGN KEY(elder) REFERENCES parent (id) ON DELETE CASCADE",
    ):
        assert kept in table
    assert filled.rows("SELECT sql FROM sqlite_master WHERE name = 'ix_parent_kind'") == [
        ("CREATE INDEX ix_parent_kind ON parent (kind) WHERE kind = 'a'",)
    ]


def test_what_a_rebuild_kept_still_acts(filled):
    rebuild(filled, "batch.alter_column('name', type_=sa.String(50))")
    filled.upgrade()
    filled.execute("UPDATE parent SET name = 'first' WHERE id = 1")
    assert filled.rows("SELECT text FROM note") == [("first",)]
    filled.execute("INSERT INTO parent (name) VALUES ('next')")
    assert filled.rows("SELECT max(id) FROM parent") == [(91,)]
    filled.execute("DELETE FROM parent WHERE id = 2")
    assert filled.rows(COUNTS) == [(2, 2)]


def test_an_empty_table_keeps_its_sequence(on_sqlite):
    on_sqlite.write("school", "s1", SCHOOL)
    on_sqlite.upgrade()
    on_sqlite.execute("INSERT INTO parent (id, name) VALUES (7, 'x')", "DELETE FROM parent")
    rebuild(on_sqlite, "batch.alter_column('name', type_=sa.String(50))")
    rebuild(on_sqlite, "batch.drop_constraint('uq_parent_name')", down="s2", revision="s3")
    on_sqlite.upgrade()
    on_sqlite.execute("INSERT INTO parent (name) VALUES ('next')")
    assert on_sqlite.rows("SELECT id FROM parent") == [(8,)]


def test_a_rebuild_that_would_lose_rows_is_undone(filled):
    change = "batch.create_unique_constraint('uq_kind', ['kind'], sqlite_on_conflict='IGNORE')"
    rebuild(filled, change)
    lost = "rebuilding parent would lose rows: parent has 1 rows instead of 2"
    with pytest.raises(CommandError, match=lost):
        filled.upgrade()
    assert filled.rows(COUNTS) == [(2, 3)]
    assert filled.rows("SELECT version_num FROM alembic_version ORDER BY 1") == [
        ("ns_0004",),
        ("s1",),
    ]


def test_a_revision_that_leaves_references_to_missing_rows_is_undone(filled):
    filled.write("school", "s2", "op.execute('DELETE FROM parent WHERE id = 1')", down="s1")
    broken = "revision s2 leaves references to missing rows: .*2 in child to parent"
    with pytest.raises(CommandError, match=broken):
        filled.upgrade()
    assert filled.rows(COUNTS) == [(2, 3)]


def test_a_revision_may_delete_rows_with_those_that_refer_to_them(filled):
    deletions = """
        op.execute('UPDATE parent SET elder = NULL')
        op.execute('DELETE FROM child WHERE parent_id = 2')
        op.execute('DELETE FROM parent WHERE id = 2')
    """
    filled.write("school", "s2", deletions, down="s1")
    filled.upgrade()
    assert filled.rows(COUNTS) == [(1, 2)]


def test_references_that_were_broken_before_do_not_stop_a_migration(filled):
    with filled.engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("PRAGMA foreign_keys = OFF")
        cursor.execute("DELETE FROM parent WHERE id = 2")
        connection.invalidate()
    rebuild(filled, "batch.alter_column('name', type_=sa.String(50))")
    filled.upgrade()
    assert filled.rows(COUNTS) == [(1, 3)]


def test_a_trigger_that_names_a_dropped_column_is_found(filled):
    filled.write("school", "s2", WITHOUT_KIND, down="s1")
    broken = "revision s2 leaves the trigger of child broken: no such column: kind"
    with pytest.raises(CommandError, match=broken):
        filled.upgrade()
    assert filled.rows("SELECT kind FROM parent") == [("b",), ("b",)]


def test_a_view_that_names_a_dropped_column_is_found(filled):
    filled.execute("DROP TRIGGER noted")
    rebuild(filled, "batch.drop_constraint('uq_parent_name')\n    batch.drop_column('name')")
    with pytest.raises(CommandError, match="leaves the view named broken: no such column: name"):
        filled.upgrade()


def test_a_trigger_that_a_revision_drops_stays_away(filled):
    filled.write("school", "s2", "op.execute('DROP TRIGGER touched')" + WITHOUT_KIND, down="s1")
    filled.upgrade()
    assert filled.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'") == [("noted",)]
    assert filled.rows(COUNTS) == [(2, 3)]


def test_a_table_that_is_renamed_outside_a_rebuild_keeps_its_references(filled):
    filled.write("school", "s2", "op.rename_table('parent', 'elder')", down="s1")
    filled.upgrade()
    filled.execute("DELETE FROM elder WHERE id = 2")
    assert filled.rows("SELECT count(*) FROM child") == [(2,)]
