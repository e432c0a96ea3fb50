"""What a session carries for the ledger beside its transaction: one typed object.

A `Runtime` fills it for the sessions that it opens. Any other SQLAlchemy session starts with an
empty one: its jobs exist once it has committed, and the relay sends them.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import SessionTransaction

from nightshift.database import Session, lend, once_per_statement
from nightshift.errors import PermanentError
from nightshift.jobs.args import Kinds

_KEY = "nightshift"

# At the start, or as another statement of the same text; not the end of a savepoint: ROLLBACK TO;
# and not that of a block, which has begun in the same text.
_ENDING = re.compile(
    r"(^\s*end|^(?!.*\bbegin\b).*;\s*end"
    r"|(^|;)\s*(commit|abort|rollback(?!\s+((work|transaction)\s+)?to\b)))\b",
    re.IGNORECASE | re.DOTALL,
)
# What may hold such words and is not executed: comments, texts, names, bodies of functions.
_QUOTED = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\"|\$(\w*)\$.*?\$\1\$", re.DOTALL)
_MAY_END = re.compile(r"\b(commit|abort|rollback|end)\b", re.IGNORECASE)


class BrokenTransaction(PermanentError):
    """The code that was lent a session has ended its transaction, or tried to."""

    def __init__(self) -> None:
        super().__init__(
            "a job's body, and code in a unit of work, must not commit, roll back or close the"
            " session: what it writes and the job's end are one transaction, which ends by itself."
            " Use begin_nested() to undo a part, or own_transactions=True for several transactions"
        )


def _no_trace() -> dict[str, str] | None:
    return None


@dataclass(slots=True)
class Carried:
    """The ledger's notes on one session.

    `enqueued`: the jobs that may be sent once the transaction has committed. `follow_ups`: by
    parent, the follow-up of a batch that was spawned in this transaction, or None for a batch
    without one. `trace`: returns the caller's W3C trace headers. `autocommit`: an engine for
    statements that commit by themselves, where the session's owner has one. `kinds`: those that the
    session's owner declares; None for a session that no Runtime has opened. `guarded`: the
    session's owner calls `require_no_spawn` before it commits. `when_undone`: what
    the owner calls when the transaction is rolled back. `note_end`: notes a job's end, where the
    session's owner writes it together with those of other jobs. `ending`: the owner ends its
    transaction now. `broken`: other code has ended it.
    """

    enqueued: list[UUID] = field(default_factory=list)
    follow_ups: dict[UUID, dict[str, Any] | None] = field(default_factory=dict)
    trace: Callable[[], dict[str, str] | None] = _no_trace
    autocommit: Engine | None = None
    kinds: Kinds | None = None
    guarded: bool = False
    when_undone: list[Callable[[], None]] = field(default_factory=list)
    note_end: Callable[..., None] | None = None
    ending: bool = False
    broken: bool = False

    def require_no_spawn(self) -> None:
        """Raise PermanentError when a job spawned in this transaction and does not wait in it.

        Its children would run although it does not wait for them.
        """
        if self.follow_ups:
            raise PermanentError(
                "run.spawn was called in a transaction in which its job does not succeed: call it"
                " in the job's last transaction, and return no Discard, Cancel or Snooze after it"
            )

    def undo(self) -> None:
        """Note that the transaction was rolled back."""
        self.ending = True
        for undo in self.when_undone:
            undo()

    def require_unbroken(self) -> None:
        """Raise BrokenTransaction when other code than its owner has ended the transaction."""
        if self.broken:
            raise BrokenTransaction

    def check(self, statement: str) -> None:
        """Raise BrokenTransaction for a statement that ends the transaction, or comes after."""
        self.require_unbroken()
        if _ends(statement):
            self.broken = True
            raise BrokenTransaction


@once_per_statement
def _ends(statement: str) -> bool:
    """Return whether a statement may end its transaction."""
    if not _MAY_END.search(statement):
        return False
    return _ENDING.search(_QUOTED.sub("", statement)) is not None


class LentSession(Session):
    """A session whose transaction only its owner ends; others get BrokenTransaction."""


@event.listens_for(LentSession, "before_commit")
def _refuse_commit(session: Session) -> None:
    # Refused before anything is kept. A savepoint may be committed.
    if not session.in_nested_transaction():
        _refuse_end(get_carried(session))


@event.listens_for(LentSession, "after_transaction_end")
def _note_end(session: Session, transaction: SessionTransaction) -> None:
    # A rollback cannot be refused; the work that it undid must not look done.
    carried = get_carried(session)
    if transaction.parent is None and not carried.ending:
        carried.broken = True


@event.listens_for(LentSession, "after_begin")
def _lend_connection(session: Session, _: SessionTransaction, connection: Connection) -> None:
    # Not taken back: after the session, `ending` is true.
    carried = get_carried(session)
    driver = lend(connection, carried)
    if driver is not None and driver.commits_each_statement:
        _refuse_end(carried)


def _refuse_end(carried: Carried) -> None:
    if not carried.ending:
        carried.broken = True
        raise BrokenTransaction


def get_carried(session: Session) -> Carried:
    """Return what a session carries. A session without notes gets empty ones."""
    found: Carried = session.info.setdefault(_KEY, Carried())
    return found


def carry(session: Session, notes: Carried) -> None:
    """Make a session carry `notes`."""
    session.info[_KEY] = notes


@contextmanager
def lent(session: LentSession, notes: Carried) -> Iterator[None]:
    """Lend a session with notes on it; commit at the end. On an exception call `notes.undo`.

    Raises BrokenTransaction when the borrower commits, rolls back or closes the session.
    """
    carry(session, notes)
    try:
        yield
        notes.require_unbroken()
        notes.require_no_spawn()
        notes.ending = True
        session.commit()
    except BaseException:
        notes.undo()
        raise


@contextmanager
def single_statement(session: Session) -> Iterator[Connection]:
    """Yield a connection for one statement that commits by itself.

    Where `session` has begun a transaction, or carries no engine for this, it is the session's own
    connection, and the statement commits with the session.
    """
    autocommit = get_carried(session).autocommit
    if autocommit is None or session.in_transaction():
        yield session.connection()
        return
    with autocommit.begin() as connection:
        yield connection
