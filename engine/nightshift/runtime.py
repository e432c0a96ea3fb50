"""The collaborators of one process: passed in, never looked up.

A job's body has its process's runtime as `run.runtime`; a command and a route get it as an
argument; a test makes its own. Two runtimes in one process share nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Engine

from nightshift.database import Session, make_engine
from nightshift.jobs.args import Kinds
from nightshift.jobs.bundles import Bundle
from nightshift.jobs.session import Carried, LentSession, lent
from nightshift.settings import ComponentSettings, Settings

T = TypeVar("T")

# After its commit a caller sends its jobs itself when they are at most this many; else the relay
# sends them.
SENT_BY_THE_CALLER = 200

Provider = Callable[["Runtime"], Any]


class Publisher(Protocol):
    """What a caller that has just committed needs of the broker."""

    def send_soon(self, runtime: "Runtime", ids: list[UUID]) -> None:
        """Send the jobs among `ids` that may be sent at once. Neither wait long nor raise."""

    def close(self) -> None:
        """Close the connection to the broker."""


class Runtime:
    """The collaborators of one process. Each is made when it is first used.

    `runtime[Transport]` returns what a component provides for that type, `runtime[MailSettings]`
    a component's settings. The objects in `given` belong to the caller, which also closes them.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kinds: Kinds | None = None,
        sections: Mapping[type[ComponentSettings], ComponentSettings] | None = None,
        given: Mapping[type, Any] | None = None,
        providers: Mapping[type, Provider] | None = None,
        publisher: Publisher | None = None,
        trace: Callable[[], dict[str, str] | None] | None = None,
    ) -> None:
        self.settings = settings
        self.kinds: Kinds = kinds or {}
        self.publisher = publisher
        self._providers = dict(providers or {})
        self._given: dict[type, Any] = {Settings: settings, **(sections or {}), **(given or {})}
        self._made: dict[type, Any] = {}
        self._notes: dict[str, Any] = {} if trace is None else {"trace": trace}

    def __getitem__(self, wanted: type[T]) -> T:
        """Return the object for this type. Raises LookupError when no component provides one."""
        if wanted in self._given:
            return self._given[wanted]  # type: ignore[no-any-return]
        if wanted not in self._made:
            if wanted not in self._providers:
                raise LookupError(
                    f"no component provides {wanted.__name__}: add it to `provides` in the"
                    " component that owns it, and that component to the project's list"
                )
            self._made[wanted] = self._providers[wanted](self)
        found: T = self._made[wanted]
        return found

    def find(self, wanted: type[T]) -> T | None:
        """Return the object for this type, or None when no component provides one."""
        provided = wanted in self._given or wanted in self._providers
        return self[wanted] if provided else None

    @property
    def sections(self) -> list[ComponentSettings]:
        """Return the settings of every component."""
        made = (one for one in self._given.values() if isinstance(one, ComponentSettings))
        return list({type(one): one for one in made}.values())

    @cached_property
    def engine(self) -> Engine:
        """The database. It connects when it is first used: no connection is open at a fork."""
        return self.make_engine()

    @cached_property
    def _writing(self) -> Engine:
        return self.engine.execution_options(sqlite_begin="IMMEDIATE")

    @cached_property
    def _reading(self) -> Engine:
        return self.engine.execution_options(sqlite_begin="DEFERRED")

    @cached_property
    def _autocommit(self) -> Engine:
        # On Postgres a single statement needs neither BEGIN nor COMMIT, which are a round trip
        # each. It uses connections of its own: to switch a connection's mode for each statement
        # would cost half as much as the statement.
        # Behind a pooler, a statement has its timeout from its transaction.
        if self.engine.dialect.name == "sqlite" or self.settings.database_pooler != "none":
            return self._writing
        return self.make_engine(isolation_level="AUTOCOMMIT")

    def make_engine(self, **options: Any) -> Engine:
        """Return another engine for the database; the caller disposes of it."""
        settings = self.settings
        return make_engine(
            settings.database_url,
            password=settings.postgres_password.get_secret_value(),
            pooler=settings.database_pooler != "none",
            name=settings.project_name,
            tls=settings.database_tls,
            **options,
        )

    @contextmanager
    def unit_of_work(self) -> Iterator[Session]:
        """Yield a session in a transaction: committed at the end, rolled back on an exception.

        Jobs that were enqueued in it are sent after the commit. Raises BrokenTransaction when the
        caller commits, rolls back or closes the session.
        """
        notes = self._make_notes()
        notes.autocommit = self._autocommit
        with (
            LentSession(self._writing, expire_on_commit=False) as session,
            lent(session, notes),
        ):
            yield session
        self.send_soon(notes.enqueued)

    @contextmanager
    def bundle(self, claimed_at: datetime) -> Iterator[Bundle]:
        """Yield a transaction for the jobs of one claim. What is not committed is undone.

        The caller gives the ids that its `commit` returns to `send_soon`.
        """
        bundle = Bundle(self._writing, self._make_notes, claimed_at)
        try:
            yield bundle
        finally:
            bundle.close()

    def send_soon(self, ids: list[UUID]) -> None:
        """Send jobs whose transaction has committed, unless there are so many that they wait."""
        if self.publisher is not None and 0 < len(ids) <= SENT_BY_THE_CALLER:
            self.publisher.send_soon(self, ids)

    def _make_notes(self) -> Carried:
        return Carried(kinds=self.kinds or None, guarded=True, **self._notes)

    @contextmanager
    def single_statement(self) -> Iterator[Connection]:
        """Yield a connection for one statement, which commits by itself."""
        with self._autocommit.begin() as connection:
            yield connection

    @contextmanager
    def read_only(self) -> Iterator[Session]:
        """Yield a session in a transaction for reading, which is rolled back at the end.

        On SQLite it does not wait for writers, and writers do not wait for it.
        """
        with Session(self._reading) as session:
            yield session

    @contextmanager
    def read_newest(self) -> Iterator[Session]:
        """Yield a session for reading, each of whose statements sees what is committed by then.

        On Postgres no transaction is begun: that saves two round trips. Use it for one statement
        that runs often.
        """
        alone = self._autocommit is not self._writing
        with Session(self._autocommit if alone else self._reading) as session:
            yield session

    def now(self) -> datetime:
        """Return this machine's time, to pass to services, which do not read a clock."""
        return datetime.now(UTC)

    def disconnect(self, *, close: bool = True) -> None:
        """Close the connections to the database. The next use opens others.

        A forked child must not close its parent's connections: it drops them, without `close`.
        """
        for name in ("engine", "_autocommit"):
            if name in self.__dict__:
                self.__dict__[name].dispose(close=close)

    def close(self) -> None:
        """Close what components have provided, and all connections, before the process ends."""
        for made in self._made.values():
            if callable(close := getattr(made, "close", None)):
                close()
        if self.publisher is not None:
            self.publisher.close()
        self.disconnect()
