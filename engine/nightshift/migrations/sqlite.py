"""Alembic on SQLite: rebuild a table without losing rows, triggers or the ids in use.

SQLite cannot change most of a table in place. `batch_alter_table` copies it, drops the old table
and renames the copy. By itself that deletes the rows that refer to the table (ON DELETE CASCADE)
and the table's triggers, and lets new rows get the ids of deleted ones.
The steps are those of https://www.sqlite.org/lang_altertable.html#otheralter
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from alembic.ddl.sqlite import SQLiteImpl
from alembic.operations.batch import ApplyBatchImpl
from alembic.util import CommandError
from sqlalchemy import CursorResult, Table
from sqlalchemy.exc import OperationalError


@dataclass(frozen=True, slots=True)
class _Rebuild:
    """What a table had before it was rebuilt, and how many rows every table had."""

    triggers: list[str]
    sequence: int | None
    counts: dict[str, int]


class LosslessSQLite(SQLiteImpl):
    """Alembic's SQLite, which keeps what a rebuild would lose. Defining it registers it.

    The caller turns foreign keys off (that does not work within a transaction), so nothing
    cascades: a migration that deletes rows must also delete the rows that refer to them.
    """

    __dialect__ = "sqlite"
    transactional_ddl = True  # `make_engine` begins transactions itself, before DDL too

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._rebuilds: dict[str, _Rebuild] = {}
        self._rebuilt = False
        self._broken: Counter[tuple[str, str]] = Counter()

    def start_migrations(self) -> None:
        """Note which references are broken already: the migrations did not break them."""
        self._broken = self._count_broken_references()

    def prep_table_for_batch(self, batch_impl: ApplyBatchImpl, table: Table) -> None:
        """Keep what dropping the table loses; Alembic calls this before it creates the copy."""
        name = table.name
        created = self._run("SELECT sql FROM sqlite_master WHERE name = ?", name).scalar_one()
        triggers = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?"
        sequence = None
        if "AUTOINCREMENT" in created.upper():
            assert batch_impl.new_table is not None
            batch_impl.new_table.dialect_options["sqlite"]["autoincrement"] = True
            sequence = self._run("SELECT seq FROM sqlite_sequence WHERE name = ?", name).scalar()
        self._rebuilds[batch_impl.temp_table_name] = _Rebuild(
            list(self._run(triggers, name).scalars()), sequence, self._count_rows()
        )

    def rename_table(self, old_table_name: str, new_table_name: str, schema: Any = None) -> None:
        """Rename a table. When it is the copy of a rebuilt table, restore what the rebuild lost.

        Raises CommandError when any table has more or fewer rows than before the rebuild.
        """
        rebuild = self._rebuilds.pop(old_table_name, None)
        if rebuild is None:
            super().rename_table(old_table_name, new_table_name, schema)
            return
        # Triggers of other tables name the table, which does not exist at this moment. SQLite must
        # neither refuse them nor rewrite them to name the copy.
        self._run("PRAGMA legacy_alter_table = ON")
        super().rename_table(old_table_name, new_table_name, schema)
        self._run("PRAGMA legacy_alter_table = OFF")
        for trigger in rebuild.triggers:
            self._run(trigger)
        if rebuild.sequence is not None:
            self._run("DELETE FROM sqlite_sequence WHERE name = ?", new_table_name)
            self._run("INSERT INTO sqlite_sequence VALUES (?, ?)", new_table_name, rebuild.sequence)
        self._rebuilt = True
        counts = self._count_rows()
        if counts != rebuild.counts:
            changed = [
                f"{table} has {counts.get(table, 0)} rows instead of {count}"
                for table, count in rebuild.counts.items()
                if counts.get(table) != count
            ]
            raise CommandError(
                f"rebuilding {new_table_name} would lose rows: {'; '.join(changed)}."
                " The upgrade was undone"
            )

    def check(self, revision: str) -> None:
        """Raise CommandError when a revision has broken references, or triggers by a rebuild."""
        broken = self._count_broken_references() - self._broken
        if broken:
            found = [f"{n} in {table} to {parent}" for (table, parent), n in broken.items()]
            raise CommandError(
                f"revision {revision} leaves references to missing rows: {', '.join(found)}."
                " The upgrade was undone. Let the revision delete those rows, or set them to"
                " null: foreign keys do not act during a migration"
            )
        if self._rebuilt:
            self._check_triggers_and_views(revision)

    def _check_triggers_and_views(self, revision: str) -> None:
        # EXPLAIN compiles a statement with the triggers that it fires, and executes nothing.
        found = (
            "SELECT type, name FROM sqlite_master WHERE type = 'view' OR type = 'table'"
            " AND name IN (SELECT tbl_name FROM sqlite_master WHERE type = 'trigger')"
        )
        for kind, name in self._run(found).all():
            try:
                for statement in self._statements(kind, name):
                    self._run(f"EXPLAIN {statement}").all()
            except OperationalError as error:
                part = "view" if kind == "view" else "trigger of"
                raise CommandError(
                    f"revision {revision} leaves the {part} {name} broken: {error.orig}. The"
                    " upgrade was undone. Let the revision drop it before it changes the table, and"
                    " create it again afterwards"
                ) from error

    def _statements(self, kind: str, name: str) -> list[str]:
        quote = self.dialect.identifier_preparer.quote
        if kind == "view":
            return [f"SELECT * FROM {quote(name)}"]  # noqa: S608 - a view's name
        columns = self._run("SELECT name FROM pragma_table_info(?)", name).scalars()
        same = ", ".join(f"{quote(column)} = {quote(column)}" for column in columns)
        table = quote(name)
        return [
            f"INSERT INTO {table} DEFAULT VALUES",
            f"UPDATE {table} SET {same}",  # noqa: S608 - names of the table and its columns
            f"DELETE FROM {table}",  # noqa: S608 - a table's name
        ]

    def _count_broken_references(self) -> Counter[tuple[str, str]]:
        rows = self._run("PRAGMA foreign_key_check")
        return Counter((table, parent) for table, _row, parent, _key in rows)

    def _count_rows(self) -> dict[str, int]:
        quote = self.dialect.identifier_preparer.quote
        named = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        tables = self._run(named).scalars().all()
        counts = {one: f"SELECT count(*) FROM {quote(one)}" for one in tables}  # noqa: S608 - quoted
        return {one: self._run(count).scalar_one() for one, count in counts.items()}

    def _run(self, statement: str, *values: Any) -> CursorResult[*tuple[Any, ...]]:
        assert self.connection is not None
        return self.connection.exec_driver_sql(statement, values)
