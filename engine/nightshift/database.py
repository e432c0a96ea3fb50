"""The base of all models, instants, the database's clock, and engines.

`make_engine` opens a database as the ledger needs it: in UTC, with a statement timeout, and on
SQLite with transactions that declare at their start whether they write.
"""

import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time as clock_time, timedelta
from enum import StrEnum
from functools import lru_cache, partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.sql import Composable
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Enum,
    Float,
    Index,
    MetaData,
    String,
    bindparam,
    column,
    create_engine,
    event,
    func,
    inspect,
    literal,
    make_url,
    select,
    text,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator, TypeEngine

from nightshift.errors import Conflict, InvalidInput, NotFound, first_line

# Seconds. Below every time limit of a job: a query ends before the worker kills the process that
# waits for it.
STATEMENT_TIMEOUT = 30
SQLITE_BUSY_TIMEOUT = 20
CONNECT_TIMEOUT = 5

# Seconds without an answer after which a connection is given up: longer than the server, were it
# there, would let a statement run.
SILENCE = STATEMENT_TIMEOUT + 5.0

# A connection whose other end is gone without a word is noticed after half a minute, also while
# this side waits for nothing.
KEEPALIVES = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}

# A connection that was idle for more seconds is tested before it is used.
PING_AFTER_IDLE = 1.0

# Words of statements whose effect may outlive the transaction: after a job's `SET
# default_transaction_read_only`, all later jobs on its connection failed. A word too many costs a
# new connection.
_KEPT_BY_SESSION = re.compile(
    r"(^|;|\*/|\n)\s*(set\s+(?!(local|transaction|constraints)\b)|do\b|prepare|load|pragma|attach)"
    r"|\b(listen|temp|temporary|pg_temp\w*|hold)\b|\bpg_(try_)?advisory_lock"
    r"|\bset_config\((?!'synchronous_commit', 'off', true\))",
    re.IGNORECASE,
)

# What lasts until the transaction's end: the other jobs of a bundle would have it too.
_KEPT_BY_TRANSACTION = re.compile(
    r"(^|;|\*/|--[^\n]*\n)\s*(set\s|lock\s|declare\s|create\s+(\w+\s+)?temp|pragma\s)"
    r"|\bpg_(try_)?advisory_xact_lock|\bset_config\(",
    re.IGNORECASE,
)

# Executions of a statement that may be one wait for the database.
MOST_AT_ONCE = 1_000

# Characters of a statement that is known again.
LONGEST_REMEMBERED = 20_000

# Connections that a pool keeps open. A worker's process uses one or two at once, the web server one
# for each thread.
POOL_SIZE = 4

__all__ = [
    "LONGEST_LIST",
    "POOL_SIZE",
    "Base",
    "Reader",
    "Session",
    "UtcDateTime",
    "after",
    "ago",
    "batched",
    "choice",
    "committed_lazily",
    "explain",
    "insert_many_or",
    "insert_or",
    "is_away",
    "json_text",
    "limit_lock_wait",
    "make_borrowing_engine",
    "make_engine",
    "once_per_statement",
    "partial_index",
    "plain",
    "read_clock",
    "reader",
    "resolve",
    "seconds_between",
    "upsert",
    "utc_now",
]

T = TypeVar("T")

# What SQLite and Postgres say of a table or column that a migration would make.
MISSING_TABLES = (
    "no such table", "no such column", "has no column", "UndefinedTable", "UndefinedColumn"
)  # fmt: skip

# Longer lists of ids are split, or not used: databases limit a statement's parameters.
LONGEST_LIST = 5_000


class Base(DeclarativeBase):
    """The base of all models. Every constraint has a name, which a migration needs to change it."""

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
    """An instant: aware in Python, `timestamptz` on Postgres, UTC text with microseconds on SQLite.

    Such texts sort by time. Raises ValueError for a datetime without a time zone.
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


class _ByDialect(FunctionElement[T]):
    """An expression that each database writes in its own way; {} stands for an argument."""

    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy's: what makes two expressions the same
        *FunctionElement._traverse_internals,  # noqa: SLF001 - as above
        ("postgresql", InternalTraversal.dp_string),
        ("sqlite", InternalTraversal.dp_string),
    ]

    def __init__(
        self, result: TypeEngine[T], *arguments: Any, postgresql: str, sqlite: str
    ) -> None:
        super().__init__(*arguments)
        self.type, self.postgresql, self.sqlite = result, postgresql, sqlite


@compiles(_ByDialect)
def _compile(element: _ByDialect[Any], compiler: Any, **options: Any) -> str:
    on_postgres = compiler.dialect.name == "postgresql"
    arguments = [compiler.process(clause, **options) for clause in element.clauses]
    return (element.postgresql if on_postgres else element.sqlite).format(*arguments)


def utc_now() -> ColumnElement[datetime]:
    """Return the database's clock. All workers use it, so they agree on what is due."""
    return _ByDialect(
        UtcDateTime(),
        # now() is the start of the transaction, which may have waited for a lock since then.
        # clock_timestamp() is volatile: a condition with it would not use an index.
        postgresql="statement_timestamp()",
        sqlite="(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
    )


def read_clock(session: Session) -> datetime:
    """Return the time by the database's clock."""
    return session.execute(select(utc_now())).scalar_one()


def ago(span: timedelta) -> ColumnElement[datetime]:
    """Return the database's clock minus a span."""
    return after(-span)


def after(span: timedelta) -> ColumnElement[datetime]:
    """Return the database's clock plus a span."""
    return _ByDialect(
        UtcDateTime(),
        literal(span.total_seconds(), Float),
        postgresql="(statement_timestamp() + make_interval(secs => {}))",
        sqlite="(strftime('%Y-%m-%d %H:%M:%f', 'now', {} || ' seconds') || '000')",
    )


def seconds_between(earlier: Any, later: Any) -> ColumnElement[float]:
    """Return the seconds from one instant to a later one. SQLite counts milliseconds."""
    return _ByDialect(
        Float(),
        earlier,
        later,
        postgresql="(extract(epoch from {1} - {0})::double precision)",
        sqlite="((julianday({1}) - julianday({0})) * 86400.0)",
    )


def json_text(document: Any, name: str) -> ColumnElement[str]:
    """Return a value of a JSON object as text: 7, true, a text without its quotes."""
    return _ByDialect(
        String(),
        document,
        literal(name),
        literal(f'$."{name}"'),
        postgresql="({0} ->> {1})",
        sqlite="(CASE json_type({0}, {2}) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'"
        " ELSE CAST(json_extract({0}, {2}) AS TEXT) END)",
    )


def committed_lazily() -> ColumnElement[str]:
    """Return what lets the transaction's commit not wait for the disk, once it is selected.

    When the database's server crashes right after it, the transaction may be lost; nothing else is.
    """
    return _ByDialect(
        String(),
        postgresql="set_config('synchronous_commit', 'off', true)",
        sqlite="null",  # in WAL mode SQLite does not wait
    )


def insert_or(session: Session, model: type[Base]) -> Any:
    """Return an INSERT that has `on_conflict_do_nothing` and `on_conflict_do_update`."""
    on_postgres = session.get_bind().dialect.name == "postgresql"
    return postgresql.insert(model) if on_postgres else sqlite.insert(model)


def insert_many_or(
    session: Session, model: type[Base], rows: Sequence[dict[str, Any]]
) -> tuple[Any, Any]:
    """Return what `insert_or` does, for rows with the same columns, and its parameters.

    Execute it on a connection: the ORM would handle each row by itself. On Postgres all rows are
    one JSON document: row by row the server takes four times as long.
    """
    statement = insert_or(session, model)
    if session.get_bind().dialect.name != "postgresql":
        return statement, rows
    names = list(rows[0])
    documents = func.json_to_recordset(bindparam("rows", type_=JSON)).table_valued(
        *(column(name, statement.table.c[name].type) for name in names)
    )
    values = [
        {
            name: str(value) if isinstance(value, UUID | date | clock_time) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    chosen = select(*documents.render_derived(with_types=True).c)
    return statement.from_select(names, chosen), {"rows": values}


def upsert(session: Session, model: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows with the same columns. A row whose primary key exists is overwritten."""
    statement = insert_or(session, model)
    keys = statement.table.primary_key.columns
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def is_away(error: SQLAlchemyError) -> bool:
    """Whether an error means that there is no connection, and not that a statement failed."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return True
    return isinstance(error.orig, psycopg.OperationalError) and error.orig.sqlstate is None


def limit_lock_wait(session: Session, seconds: float) -> None:
    """Let this transaction wait for another's lock no longer; SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SET LOCAL lock_timeout = {int(seconds * 1000)}"))


def explain(error: Exception) -> str:
    """Return a database's error in one line, and what to do where tables are missing or old."""
    line = first_line(error)
    if any(sign in line for sign in MISSING_TABLES):
        return f"{line}: the tables are missing or old; `alembic upgrade heads` makes them"
    return line


def resolve(session: Session, model: type[Base], prefix: str, *, digits: int = 1) -> UUID:
    """Return the id of the row whose id begins with `prefix`, which has at least `digits` digits.

    Raises InvalidInput for what cannot be an id, NotFound when there is none, and Conflict when
    there are several.
    """
    noun, beginning = model.__tablename__, prefix.lower().replace("-", "")
    hexadecimal = set(beginning) <= set("0123456789abcdef")
    if not digits <= len(beginning) <= 32 or not hexadecimal:  # noqa: PLR2004 - a UUID's length
        raise InvalidInput(
            f"{prefix!r} is not the id of any {noun}: ids are hexadecimal; give all of it, or at"
            f" least {digits} of its first digits"
        )
    first, last = UUID(beginning.ljust(32, "0")), UUID(beginning.ljust(32, "f"))
    # A range: both databases use the primary key's index for it.
    key = inspect(model).primary_key[0]
    ids: Sequence[UUID] = session.scalars(
        select(key).where(key.between(first, last)).order_by(key).limit(2)
    ).all()
    if not ids:
        raise NotFound(f"no {noun}'s id begins with {prefix}")
    if len(ids) > 1:
        raise Conflict(f"several {noun}s' ids begin with {prefix}: give more digits")
    return ids[0]


def plain(column: Any) -> ColumnElement[Any]:
    """Select an enum's column as plain text, which is equal to the member.

    Over thousands of rows that is much faster.
    """
    return type_coerce(column, String).label(column.key)


Reader = Callable[[Any], Sequence[Any]]


def reader(session: Session) -> Reader:
    """Return a function that executes a SELECT and returns all its rows, without the ORM.

    Over tens of thousands of rows that is much faster.
    """
    return lambda statement: session.connection().execute(statement).all()


def batched(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """Return the items in tuples of `size`; the last tuple may be shorter."""
    return (tuple(items[at : at + size]) for at in range(0, len(items), size))


def choice(values: type[StrEnum]) -> Enum:
    """Return the type of a column that stores an enum's values, with a CHECK constraint."""
    return Enum(
        values,
        native_enum=False,
        create_constraint=True,
        length=20,
        name=values.__name__.lower(),
        values_callable=lambda enum: [member.value for member in enum],
    )


def partial_index(name: str, *columns: str, where: str) -> Index:
    """Return an index of the rows that fit a condition."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


class Lease(Protocol):
    """How a transaction is lent: until `ending`, who ends it makes it `broken`."""

    ending: bool
    broken: bool

    def check(self, statement: str) -> None:
        """Raise for a statement that may not be executed while the transaction is lent."""


class Lendable:
    """What the drivers' connections have in common: a transaction that others may not end.

    In the driver, because a body may reach it past SQLAlchemy. A commit that is refused rolls back,
    so that nothing is left to commit. `changed`: a statement may have left something behind that
    outlives its transaction, so that no other user may get the connection. `marked`: the same for
    the rest of the transaction.
    """

    lease: Lease | None = None
    changed = False
    marked = False
    commits_each_statement = False
    is_idle: bool

    def commit(self) -> None:
        """Commit, or roll back when the transaction belongs to another."""
        if self._breaks():
            super().rollback()  # type: ignore[misc]
        else:
            super().commit()  # type: ignore[misc]

    def rollback(self) -> None:
        """Roll back."""
        self._breaks()
        super().rollback()  # type: ignore[misc]

    def check(self, statement: Any) -> None:
        """Look at a statement before it is executed."""
        if self.lease is None or self.lease.ending:
            return
        if isinstance(statement, Composable):
            statement = statement.as_bytes()
        text = statement.decode(errors="replace") if isinstance(statement, bytes) else statement
        self.lease.check(text)
        changed, marked = _find_kept(text)
        self.changed |= changed
        self.marked |= marked

    def _breaks(self) -> bool:
        if self.lease is None or self.lease.ending:
            return False
        self.lease.broken = True
        return True


def once_per_statement(look: Callable[[str], T]) -> Callable[[str], T]:
    """Remember what a look at a statement has found: it takes longer than to send the statement.

    Not of the longest, which are not executed again and would fill the memory.
    """
    remembered = lru_cache(maxsize=500)(look)

    def find(statement: str) -> T:
        return (remembered if len(statement) <= LONGEST_REMEMBERED else look)(statement)

    return find


@once_per_statement
def _find_kept(statement: str) -> tuple[bool, bool]:
    """Return whether a statement's effect may outlive its transaction, or its job."""
    kept = _KEPT_BY_SESSION.search(statement), _KEPT_BY_TRANSACTION.search(statement)
    return kept[0] is not None, kept[1] is not None


def lend(connection: Connection, lease: Lease) -> Lendable | None:
    """Lend a connection, and return the driver's; None where the engine is not `make_engine`'s."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, Lendable):
        return None
    driver.lease = lease
    return driver


class _Checking:
    """What the drivers' cursors have in common: the connection looks at each statement first."""

    connection: Any

    def execute(self, statement: Any, *arguments: Any, **options: Any) -> Any:
        self.connection.check(statement)
        return super().execute(statement, *arguments, **options)  # type: ignore[misc]

    def executemany(self, statement: Any, *arguments: Any, **options: Any) -> Any:
        self.connection.check(statement)
        return super().executemany(statement, *arguments, **options)  # type: ignore[misc]


class _SqliteCursor(_Checking, sqlite3.Cursor):
    def executescript(self, sql_script: str) -> Any:
        self.connection.check(sql_script)
        return super().executescript(sql_script)


class _SqliteConnection(Lendable, sqlite3.Connection):
    def cursor(self, factory: Any = _SqliteCursor) -> Any:
        return super().cursor(factory)

    @property
    def is_idle(self) -> bool:  # type: ignore[override]
        return not self.in_transaction


class _Cursor(_Checking, psycopg.Cursor[Any]):  # type: ignore[misc]
    def executemany(self, statement: Any, parameters: Any, *, returning: bool = False) -> Any:
        if returning:
            return super().executemany(statement, parameters, returning=True)
        # All of one call is one wait for the server, which would look silent while it works.
        written = 0
        for some in batched(list(parameters), MOST_AT_ONCE):
            super().executemany(statement, some)
            written += max(self.rowcount, 0)
        self._rowcount = written
        return None

    def stream(self, statement: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        self.connection.check(statement)
        return super().stream(statement, *arguments, **options)


class _Connection(Lendable, psycopg.Connection[Any]):
    """A connection that gives up a server that is silent.

    The server's own timeout does not end a wait for a server that is stopped, or for a proxy that
    lost its other side: TCP lives there.
    """

    silence: float | None = SILENCE
    # What releases a savepoint, to be sent with the next one; None where it is sent at once.
    owed: str | None = None

    @property
    def commits_each_statement(self) -> bool:  # type: ignore[override]
        return self.autocommit

    @property
    def is_idle(self) -> bool:  # type: ignore[override]
        status = self.pgconn.transaction_status
        return status in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)

    def cursor(self, name: str = "", **options: Any) -> Any:
        """Return a cursor. One with a name lasts as long as the transaction, or longer."""
        if name and self.lease is not None and not self.lease.ending:
            self.marked = True
            self.changed = self.changed or bool(options.get("withhold"))
        return super().cursor(name, **options)

    def commit(self) -> None:
        """Commit. Raises InFailedSqlTransaction when a statement has failed, and rolls back.

        Postgres would answer with a rollback, which no library reports: a job would count as done.
        """
        failed = self.pgconn.transaction_status == TransactionStatus.INERROR
        self.owed = None  # the commit releases all
        super().commit()
        if failed:
            raise psycopg.errors.InFailedSqlTransaction(
                "nothing is kept: a statement failed before. Execute one that may fail in"
                " begin_nested()"
            )

    def rollback(self) -> None:
        """Roll back."""
        self.owed = None
        super().rollback()

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        limit = self.silence if timeout is None else timeout
        try:
            return super().wait(gen, interval, limit)
        except psycopg.errors._WaitTimeout as error:  # noqa: SLF001 - psycopg lets callers convert it
            if timeout is not None:
                raise
            # SQLAlchemy sees that it is closed, and does not put it back into its pool.
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"the database gave no answer for {limit:g} s"
            ) from error


def combine_savepoints(connection: Connection) -> None:
    """Let each savepoint be released together with the start of the next, or by the commit.

    This holds until the end of the transaction, and saves a round trip a savepoint.
    """
    driver = connection.connection.driver_connection
    if isinstance(driver, _Connection):
        driver.owed = ""


def _combine(dialect: Dialect) -> None:
    """Give a dialect savepoints that `combine_savepoints` can combine."""
    begin, release = dialect.do_savepoint, dialect.do_release_savepoint
    roll_back = dialect.do_rollback_to_savepoint

    def do_savepoint(connection: Connection, name: str) -> None:
        driver: Any = connection.connection.driver_connection
        if driver.owed is None:
            begin(connection, name)
            return
        owed, driver.owed = driver.owed, ""
        try:
            # Not prepared: these are two statements.
            driver.execute(f"{owed}SAVEPOINT {name}", prepare=False)
        except psycopg.Error:
            begin(connection, name)  # raises it again, as SQLAlchemy's

    def do_release_savepoint(connection: Connection, name: str) -> None:
        driver: Any = connection.connection.driver_connection
        # After an error that was caught, only the server's answer tells that nothing is kept.
        failed = driver.pgconn.transaction_status != TransactionStatus.INTRANS
        if driver.owed is None or failed:
            release(connection, name)
        else:
            driver.owed = f"RELEASE SAVEPOINT {name};"

    def do_rollback_to_savepoint(connection: Connection, name: str) -> None:
        driver: Any = connection.connection.driver_connection
        if driver.owed:
            driver.owed = ""  # of one inside this one
        roll_back(connection, name)

    replaced = (do_savepoint, do_release_savepoint, do_rollback_to_savepoint)
    for function in replaced:
        setattr(dialect, function.__name__, function)


def is_idle(connection: Connection) -> bool:
    """Return True when the driver's connection is not in a transaction, or is closed."""
    if connection.closed or connection.invalidated:
        return True
    driver = connection.connection.driver_connection
    return isinstance(driver, Lendable) and driver.is_idle


def take_mark(connection: Connection) -> bool:
    """Return True when a statement has changed the connection for what follows; forget it."""
    if connection.closed or connection.invalidated:
        return False
    driver = connection.connection.driver_connection
    if not isinstance(driver, Lendable):
        return False
    marked, driver.marked = driver.marked or driver.changed, False
    return marked


def make_engine(
    url: str,
    *,
    password: str | None = None,
    pooler: bool = False,
    name: str = "nightshift",
    silence: float = SILENCE,
    tls: Mapping[str, str] | None = None,
    **options: Any,
) -> Engine:
    """Return an engine for a database. It connects when it is first used.

    `password` is used where the URL has none. Postgres shows the connections under `name`. With
    `pooler` the URL leads to PgBouncer in transaction mode. A statement that has no answer after
    `silence` seconds raises OperationalError. `options` are SQLAlchemy's. The folder of an SQLite
    file is created. `tls`: libpq's parameters for it.
    """
    address = make_url(url)
    # hide_parameters: they hold tokens and addresses, and exceptions are logged and stored.
    options = {"hide_parameters": True, **options}
    if address.get_backend_name() == "sqlite":
        if address.database:
            try:
                Path(address.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidInput(f"DATABASE_URL: {error.filename}: {error.strerror}") from error
        arguments: dict[str, Any] = {"timeout": SQLITE_BUSY_TIMEOUT, "check_same_thread": False}
        arguments["factory"] = _SqliteConnection
        engine = create_engine(address, connect_args=arguments, **options)
        event.listen(engine, "connect", _open_sqlite)
        event.listen(engine, "checkin", _drop_changed)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if password and address.password is None:
        address = address.set(password=password)
    arguments = {
        "client_encoding": "utf8",
        "cursor_factory": _Cursor,
        "connect_timeout": CONNECT_TIMEOUT,
        "application_name": name,
        **KEEPALIVES,
        **(tls or {}),
        # A pooler gives each transaction another server: nothing can be kept there for the next.
        **(
            {"prepare_threshold": None}
            if pooler
            else {"options": f"-c statement_timeout={STATEMENT_TIMEOUT}s -c timezone=UTC"}
        ),
    }
    engine = create_engine(address, connect_args=arguments, pool_size=POOL_SIZE, **options)
    event.listen(engine, "do_connect", partial(_connect, silence))
    _combine(engine.dialect)
    if pooler:
        event.listen(engine, "begin", _set_for_transaction)
    event.listen(engine, "checkin", _drop_changed)
    event.listen(engine, "checkin", _note_checkin)
    event.listen(engine, "checkout", partial(_ping_after_idleness, engine.dialect))
    return engine


def make_borrowing_engine(connect: Callable[[], Any]) -> Engine:
    """Return an engine on the connections of another library, for example those of Django.

    `connect` returns the connection to Postgres (psycopg's) on which that library has a transaction
    open. Only the library ends the transaction: what a session on this engine commits, rolls back
    or closes is neither.
    """
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: _Borrowed(connect()),
        poolclass=NullPool,
        use_native_hstore=False,  # SQLAlchemy would ask each connection for its type
        hide_parameters=True,
    )


class _Borrowed:
    """A connection whose transaction, and whose life, belong to another library."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        """Do nothing."""

    rollback = close = commit

    def add_notice_handler(self, _handler: Any) -> None:
        """Do nothing: SQLAlchemy adds one for each use."""


def _connect(silence: float, _dialect: Any, _record: Any, args: Any, options: Any) -> _Connection:
    connection = _Connection.connect(*args, **options)
    connection.silence = silence
    return connection


def _set_for_transaction(connection: Connection) -> None:
    connection.exec_driver_sql(
        f"SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT}s', true),"
        " set_config('TimeZone', 'UTC', true)"
    )


def _drop_changed(connection: Any, record: Any) -> None:
    if connection is not None and connection.changed:
        record.invalidate()  # the next use opens another


def _note_checkin(_connection: Any, record: Any) -> None:
    record.info["given_back"] = time.monotonic()


def _ping_after_idleness(dialect: Dialect, connection: Any, record: Any, _proxy: Any) -> None:
    # Notice a restarted database when a connection is taken from the pool, not in the middle of a
    # job. SQLAlchemy's own pre-ping would test each time, twice a job.
    if time.monotonic() - record.info.get("given_back", math.inf) > PING_AFTER_IDLE:
        try:
            dialect.do_ping(connection)
        except psycopg.Error as error:
            raise DisconnectionError from error


def _open_sqlite(connection: Any, _record: Any) -> None:
    # sqlite3 must not begin transactions by itself: `_begin_sqlite` does.
    connection.isolation_level = None
    # Text that other programs wrote may hold bytes that are not UTF-8; one such row must not make
    # its whole table unreadable.
    connection.text_factory = methodcaller("decode", "utf-8", "replace")
    for pragma in ("synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
    _turn_on_wal(connection)


def _turn_on_wal(connection: sqlite3.Connection) -> None:
    # SQLite's busy timeout does not cover this change: of two processes that open a new database
    # at once, one is told at once that it is locked.
    deadline = time.monotonic() + SQLITE_BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE waits until it may write. A DEFERRED transaction that reads first and writes later
    # fails at once when another writes, whatever the busy timeout.
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")
