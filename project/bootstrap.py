"""Settings become objects. One `Bootstrap` a process; after a fork the child makes its own connections."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from operator import methodcaller
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import DisconnectionError

from project import telemetry
from project.settings import Settings
from services.calendars.store import FeedStore
from services.calendars.sync import Rules
from services.database import AT_ONCE, Session
from services.jobs import Backoff
from services.jobs.enqueue import ENQUEUED
from services.mail.compose import MailRules
from services.mail.delivery import Terms
from services.mail.transport import Transport, open_transport

# Below every time limit of a job, so that a query ends before the worker kills the process that waits for it.
STATEMENT_TIMEOUT = 30
SQLITE_BUSY_TIMEOUT = 20

# Seconds after which an idle connection is asked whether it still is one.
PING_AFTER_IDLE = 1.0

# A pool keeps what was in use at once: a worker's process needs one or two connections, the feed server one for each thread.
POOL_SIZE = 4

# Above so many, nothing is sent by the caller: the relay feeds them to the broker as it drains.
SENT_BY_THE_CALLER = 200


class Bootstrap:
    """The collaborators of one process, each made when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def engine(self) -> Engine:
        """The database. Connections open when they are first used, so nothing is open before a worker forks."""
        return make_engine(self.settings)

    @cached_property
    def _writing(self) -> Engine:
        return self.engine.execution_options(sqlite_begin="IMMEDIATE")

    @cached_property
    def _at_once(self) -> Engine:
        # On Postgres a single statement needs no BEGIN and no COMMIT, each a round trip of its own. On connections of its own: to switch
        # one to and fro, twice a job, would cost half as much as the statement.
        return self._writing if self.engine.dialect.name == "sqlite" else make_engine(self.settings, isolation_level="AUTOCOMMIT")

    @cached_property
    def _reading(self) -> Engine:
        return self.engine.execution_options(sqlite_begin="DEFERRED")

    @cached_property
    def feed_store(self) -> FeedStore:
        """The place where calendar files are kept."""
        return FeedStore(self.settings.feed_store)

    @cached_property
    def rules(self) -> Rules:
        """The school's settings that the calendars depend on."""
        settings = self.settings
        return Rules(
            school_name=settings.school_name,
            domain=settings.school_domain,
            zone=settings.school_timezone,
            days_past=settings.feed_days_past,
            days_ahead=settings.feed_days_ahead,
        )

    @cached_property
    def mail_rules(self) -> MailRules:
        """The school's settings that mails are made by."""
        settings = self.settings
        return MailRules(
            sender=settings.mail_from,
            school_name=settings.school_name,
            public_url=settings.public_url.rstrip("/"),
            zone=settings.school_timezone,
            link_secret=settings.link_secret.get_secret_value(),
        )

    @cached_property
    def mailer(self) -> Transport:
        """The way that mail goes. It connects when it first sends, and keeps the connection: one a process."""
        return open_transport(self.settings.mail_url, password=self.settings.mail_password.get_secret_value())

    @cached_property
    def mail_terms(self) -> Terms:
        """The settings that mail is sent by."""
        settings = self.settings
        backoff = Backoff(first=settings.mail_retry_after)
        # A server that is away is asked sooner and more often than about a message that it put off: all the others wait for it.
        away = Backoff(first=settings.mail_retry_after / 12, cap=settings.mail_retry_after * 5)
        return Terms(self.mailer.name, settings.mail_sender, settings.mail_concurrency, settings.mail_rate, backoff, away)

    @contextmanager
    def unit_of_work(self) -> Iterator[Session]:
        """Give a transaction: committed at the end, rolled back on an exception. Jobs enqueued in it are sent after the commit."""
        with Session(self._writing, expire_on_commit=False) as session:
            session.info |= {"trace": telemetry.carrier, AT_ONCE: self._at_once}
            yield session
            session.commit()
            enqueued = session.info.pop(ENQUEUED, [])
        if enqueued:
            self._send(enqueued)

    @contextmanager
    def at_once(self) -> Iterator[Connection]:
        """Give a connection for a single statement, which is committed by itself."""
        with self._at_once.begin() as connection:
            yield connection

    @contextmanager
    def read_only(self) -> Iterator[Session]:
        """Give a transaction that only reads, and is rolled back at the end. On SQLite it neither waits for writers nor stops them."""
        with Session(self._reading) as session:
            yield session

    def now(self) -> datetime:
        """Return the time, for services, which have no clock of their own."""
        return datetime.now(UTC)

    def _send(self, enqueued: list[UUID]) -> None:
        # Here and not above: who only reads settings or the database needs no broker.
        from project.publisher import publisher  # noqa: PLC0415

        if len(enqueued) <= SENT_BY_THE_CALLER:
            publisher().send_soon(self, enqueued)

    def after_fork(self) -> None:
        """Forget the parent's connections without closing them: the parent may still use them."""
        self._disconnect(close=False)

    def disconnect(self) -> None:
        """Close the connections to the database; the next use opens others."""
        self._disconnect(close=True)

    def _disconnect(self, *, close: bool) -> None:
        for name in ("engine", "_at_once"):
            if name in self.__dict__:
                self.__dict__[name].dispose(close=close)

    def close(self) -> None:
        """Take leave of the mail server, if one was asked: this process ends."""
        if "mailer" in self.__dict__:
            self.mailer.close()


@cache
def bootstrap() -> Bootstrap:
    """Return this process's collaborators, by the environment's settings."""
    return Bootstrap(Settings())


def make_engine(settings: Settings, **more: Any) -> Engine:
    """Return an engine for DATABASE_URL, with `more` of SQLAlchemy's options. It opens nothing yet."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        connect: dict[str, Any] = {"timeout": SQLITE_BUSY_TIMEOUT, "check_same_thread": False}
        engine = create_engine(url, hide_parameters=True, connect_args=connect, **more)
        event.listen(engine, "connect", _open_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if settings.needs_password:
        url = url.set(password=settings.postgres_password.get_secret_value())
    options = f"-c statement_timeout={STATEMENT_TIMEOUT}s -c timezone=UTC -c client_encoding=UTF8"
    connect = {"options": options, "connect_timeout": 5, "application_name": "nightshift"}
    # hide_parameters: they hold tokens and addresses, and exceptions are logged and kept in the ledger.
    engine = create_engine(url, hide_parameters=True, connect_args=connect, pool_size=POOL_SIZE, **more)
    event.listen(engine, "checkin", _given_back)
    event.listen(engine, "checkout", partial(_ping_after_idleness, engine.dialect))
    return engine


def _given_back(_connection: Any, record: Any) -> None:
    record.info["given_back"] = time.monotonic()


def _ping_after_idleness(dialect: Dialect, connection: Any, record: Any, _proxy: Any) -> None:
    # A database that was restarted is noticed when a connection is taken, not in the middle of a job. SQLAlchemy's own pre-ping asks
    # each time, twice a job.
    if time.monotonic() - record.info.get("given_back", math.inf) > PING_AFTER_IDLE:
        try:
            dialect.do_ping(connection)
        except psycopg.Error as error:
            raise DisconnectionError from error


def _open_sqlite(connection: Any, _record: Any) -> None:
    # sqlite3 must not begin transactions by itself: `_begin_sqlite` chooses how they begin.
    connection.isolation_level = None
    # Text that other programs wrote may hold bytes that are no UTF-8; one such row must not make its whole table unreadable.
    connection.text_factory = methodcaller("decode", "utf-8", "replace")
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE waits for its turn to write; a transaction that reads first and writes later fails at once, whatever the busy timeout.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'DEFERRED')}")
