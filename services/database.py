"""What every model stands on: the declarative base, instants, and the database's own clock."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    MetaData,
    String,
    inspect,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator

from services.errors import Conflict, NotFound

__all__ = [
    "AT_ONCE",
    "LONGEST_LIST",
    "Base",
    "Reader",
    "Session",
    "UtcDateTime",
    "ago",
    "committed_lazily",
    "insert_or",
    "plain",
    "reader",
    "resolve",
    "single_statement",
    "utc_now",
]

# Under this name a session's owner gives the engine for statements that commit by themselves.
AT_ONCE = "at_once"

# Longer lists of ids are cut, or left out: a database takes so many parameters only.
LONGEST_LIST = 5_000


class Base(DeclarativeBase):
    """Every constraint has a name, so that a migration can name it on both dialects."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware in Python, `timestamptz` on Postgres, UTC text with microseconds on SQLite (so text order is time order).

    Raises ValueError for a naive datetime: nobody can say which instant that would be.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a datetime without a time zone was given for an instant: {value!r}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class utc_now(FunctionElement[datetime]):  # noqa: N801 - it reads as the SQL function that it is
    """The database's clock, so that workers on machines whose clocks differ agree on what is due."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(utc_now, "postgresql")
def _postgres_now(element: utc_now, compiler: Any, **options: Any) -> str:
    # now() is the start of the transaction, which may have waited for a lock since; clock_timestamp() is volatile, and no index serves it.
    return "statement_timestamp()"


@compiles(utc_now, "sqlite")
def _sqlite_now(element: utc_now, compiler: Any, **options: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


class ago(FunctionElement[datetime]):  # noqa: N801 - as above
    """The database's clock, so long ago."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, span: timedelta) -> None:
        super().__init__(literal(span.total_seconds(), Float))


@compiles(ago, "postgresql")
def _postgres_ago(element: ago, compiler: Any, **options: Any) -> str:
    return f"(statement_timestamp() - make_interval(secs => {compiler.process(element.clauses, **options)}))"


@compiles(ago, "sqlite")
def _sqlite_ago(element: ago, compiler: Any, **options: Any) -> str:
    span = compiler.process(element.clauses, **options)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || {span} || ' seconds') || '000')"


class committed_lazily(FunctionElement[str]):  # noqa: N801 - as above
    """Let this transaction's commit not wait for the disk: after a crash of the server it may not have been, and nothing else is harmed."""

    type = String()
    inherit_cache = True


@compiles(committed_lazily, "postgresql")
def _postgres_lazily(element: committed_lazily, compiler: Any, **options: Any) -> str:
    return "set_config('synchronous_commit', 'off', true)"


@compiles(committed_lazily, "sqlite")
def _sqlite_lazily(element: committed_lazily, compiler: Any, **options: Any) -> str:
    return "null"  # In its WAL mode it does not wait anyway.


def insert_or(session: Session, model: type[Base]) -> Any:
    """Return an INSERT of the session's dialect, which knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(model)
    return sqlite.insert(model)


@contextmanager
def single_statement(session: Session) -> Iterator[Connection]:
    """Give a connection for one statement, which is committed by itself unless `session` is in a transaction, or its owner knows no way."""
    at_once: Engine | None = session.info.get(AT_ONCE)
    if at_once is None or session.in_transaction():
        yield session.connection()
        return
    with at_once.begin() as connection:
        yield connection


def resolve(session: Session, model: type[Base], prefix: str, *, digits: int = 1) -> UUID:
    """Return the id of a row by its beginning, at least `digits` long. Raises NotFound for none, Conflict for several."""
    noun, beginning = model.__tablename__, prefix.lower().replace("-", "")
    if not digits <= len(beginning) <= 32 or not set(beginning) <= set("0123456789abcdef"):  # noqa: PLR2004 - of a UUID
        raise NotFound(f"{prefix!r} is no {noun}'s id: ids are hexadecimal, and their first digits will do, at least {digits}")
    first, last = UUID(beginning.ljust(32, "0")), UUID(beginning.ljust(32, "f"))
    # A range, because the primary key's index serves it on both databases.
    key = inspect(model).primary_key[0]
    ids: Sequence[UUID] = session.scalars(select(key).where(key.between(first, last)).order_by(key).limit(2)).all()
    if not ids:
        raise NotFound(f"no {noun}'s id begins with {prefix}")
    if len(ids) > 1:
        raise Conflict(f"several {noun}s' ids begin with {prefix}: give more digits")
    return ids[0]


def plain(column: Any) -> ColumnElement[Any]:
    """Read an enum's column as the plain text that it is: equal to the member, and much cheaper over thousands of rows."""
    return type_coerce(column, String).label(column.key)


Reader = Callable[[Any], Sequence[Any]]


def reader(session: Session) -> Reader:
    """Return what reads tens of thousands of plain rows: all at once, and without the ORM, which would look at each."""
    connection = session.connection()
    return lambda statement: connection.execute(statement).all()
