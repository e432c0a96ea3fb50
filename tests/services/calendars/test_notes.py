"""Everything that feeds read leaves a note when it changes, whichever statement changes it.

What feeds read is taken from the statements that a sync and a refresh execute.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    CompoundSelect,
    Connection,
    Engine,
    Select,
    Table,
    UniqueConstraint,
    Update,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool
from sqlalchemy.sql import visitors

from services.calendars.models import ChangeLog, EventRevision, EventStamp, Feed
from services.school.models import EventState
from tests.services.calendars.conftest import LONG_AGO, Calendars
from tests.services.calendars.writes import TABLES, key_of, other_value

# The log itself, the mark of own writes, and the record of the runs: no feed is made from them.
NO_INPUTS = {"change_log", "own_write", "sync_run"}
# Forgetting stamps changes no feed.
SILENT = {("event_stamp", "delete"), ("event_stamp", "truncate")}

Columns = dict[str, list[Column[Any]]]


class Statements:
    """The columns that statements read, and those of feeds that they write."""

    def __init__(self) -> None:
        self.read: set[tuple[str, str]] = set()
        self.written: set[str] = set()

    def __call__(self, _connection: Any, clause: Any, *_: Any) -> None:
        if isinstance(clause, Select | CompoundSelect):
            self.read |= {
                (part.table.name, part.name)
                for part in visitors.iterate(clause)
                if isinstance(part, Column) and isinstance(part.table, Table)
            }
        elif isinstance(clause, Update) and clause.table.name == Feed.__tablename__:
            compiled = clause.compile(dialect=sqlite.dialect())
            self.written |= {one.name for one in clause.table.c if f"{one.name}=" in str(compiled)}


@pytest.fixture
def read(calendars: Calendars) -> Columns:
    """Return the columns that feeds read, by table. All feeds are right, and the log is empty."""
    engine, statements = calendars.runtime.engine, Statements()
    event.listen(engine, "before_execute", statements)
    calendars.sync()
    calendars.change(text("UPDATE event SET title = 'Neu' WHERE state = 'published'"))
    calendars.refresh()
    event.remove(engine, "before_execute", statements)
    found: Columns = {}
    for table, column in sorted(statements.read):
        is_output = table == Feed.__tablename__ and column in statements.written
        if table in TABLES.keys() - NO_INPUTS and not is_output:
            found.setdefault(table, []).append(TABLES[table].c[column])
    with calendars.runtime.unit_of_work() as session:
        # So that these tables have a row, too.
        ids = session.scalars(select(EventRevision.event_id)).all()
        stamp = {"sequence": 0, "modified_at": LONG_AGO, "gone_at": LONG_AGO}
        session.execute(insert(EventStamp), [{"event_id": one, **stamp} for one in ids[:2]])
        session.execute(delete(ChangeLog))
    return found


def is_current(event: Any) -> bool:
    return event["state"] == EventState.PUBLISHED and event["version_of_id"] is None


def statements_on(
    table: Table, columns: list[Column[Any]], rows: list[Any], *, on_sqlite: bool
) -> Iterator[tuple[str, list[Any]]]:
    """Yield each kind of statement that changes a row, and what is to be executed before it."""
    if table.name == "event":
        rows.sort(key=is_current, reverse=True)
    row = rows[0]
    yield "delete", [delete(table).where(key_of(table, row))]
    yield "insert", [delete(table).where(key_of(table, row)), insert(table).values(row)]
    primary = table.primary_key.columns.keys()
    for column in columns:
        # A column that is empty in most rows is changed where it is not.
        here = next((one for one in rows if one[column.name] is not None), row)
        here = row if column.name in ("cancelled_at", "deleted_at", "version_of_id") else here
        changed = dict(here) | {column.name: other_value(column, here, rows)}
        yield (
            f"update {column.name}",
            [update(table).where(key_of(table, here)).values({column.name: changed[column.name]})],
        )
        if column.name not in primary:
            other = {column.name: changed[column.name]}
            upsert = (sqlite if on_sqlite else postgresql).insert(table).values(changed)
            yield (
                f"upsert {column.name}",
                [upsert.on_conflict_do_update(index_elements=primary, set_=other)],
            )
            if on_sqlite:
                replaced = insert(table).prefix_with("OR REPLACE").values(changed)
                yield f"insert or replace {column.name}", [replaced]
    if not on_sqlite:
        yield "truncate", [text(f"TRUNCATE {table.name} CASCADE")]
        return
    uniques = [one for one in table.constraints if isinstance(one, UniqueConstraint)]
    for unique in [*(one.columns.keys() for one in uniques), primary]:
        taken = {name: row[name] for name in unique}
        other = next(
            (one for one in rows if taken.items() - one.items() and None not in taken.values()),
            None,
        )
        if other is not None:
            moved = update(table).prefix_with("OR REPLACE").where(key_of(table, other))
            yield f"update or replace {unique}", [moved.values(taken)]
            new = dict(other) | taken
            inserted = insert(table).prefix_with("OR REPLACE").values(new)
            yield f"insert or replace with the {unique} of another", [inserted]


def count_notes(connection: Connection, statements: list[Any]) -> int:
    """Execute statements, and return how many notes the last one leaves."""
    count = select(func.count()).select_from(ChangeLog)
    for one in statements[:-1]:
        connection.execute(one)
    before = connection.execute(count).scalar_one()
    connection.execute(statements[-1])
    return connection.execute(count).scalar_one() - before


@pytest.fixture
def other_program(calendars: Calendars) -> Iterator[Engine]:
    """Yield an engine as another program opens it.

    On SQLite: without foreign keys, and without recursive triggers.
    """
    engine = create_engine(calendars.runtime.engine.url, poolclass=NullPool)
    yield engine
    engine.dispose()


def test_every_write_of_what_feeds_read_leaves_a_note(read: Columns, other_program: Engine) -> None:
    assert {"event_class", "ignored_event", "event_revision", "event_rendering"} <= read.keys()
    assert {"title", "deleted_at"} <= {one.name for one in read["event"]}
    assert {one.name for one in read["feed"]} == {"id", "kind", "owner_id", "revoked_at"}
    silent, refused, done = [], [], 0
    on_sqlite = other_program.dialect.name == "sqlite"
    for name, columns in read.items():
        table = TABLES[name]
        with other_program.connect() as connection:
            rows = [dict(one) for one in connection.execute(select(table)).mappings()]
        for kind, statements in statements_on(table, columns, rows, on_sqlite=on_sqlite):
            with other_program.connect() as connection, connection.begin() as transaction:
                try:
                    if not count_notes(connection, statements) and (name, kind) not in SILENT:
                        silent.append((name, kind))
                    done += 1
                except IntegrityError:  # It changes nothing.
                    refused.append((name, kind))
                transaction.rollback()
    assert silent == []
    assert done > (200 if on_sqlite else 100), refused
