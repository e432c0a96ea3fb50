"""Run several short jobs in one transaction.

What a job writes is in a savepoint, which is set when the job first uses the database. The jobs'
ends are written together, right before the commit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine

from nightshift.database import Session, combine_savepoints, is_idle, take_mark
from nightshift.errors import PermanentError
from nightshift.jobs import claims
from nightshift.jobs.models import JobState
from nightshift.jobs.session import Carried, LentSession, lent


class _Part(LentSession):
    """A session in a savepoint of a bundle's transaction, which begins when it is first used."""

    def __init__(self, bundle: "Bundle") -> None:
        super().__init__(join_transaction_mode="create_savepoint", expire_on_commit=False)
        self._bundle = bundle
        self.is_over = False

    def get_bind(self, *_: Any, **__: Any) -> Connection:
        # What a body keeps would write into another job's savepoint, and might end its transaction.
        if self.is_over:
            raise PermanentError("a job's session cannot be used after the job has ended")
        return self._bundle.connection


class Bundle:
    """The transaction of the jobs of one claim, and after its commit the next one.

    `claimed_at`: when the jobs were claimed, by the database's clock.
    """

    def __init__(
        self, engine: Engine, make_notes: Callable[[], Carried], claimed_at: datetime
    ) -> None:
        self._engine = engine
        self._make_notes = make_notes
        self._claimed_at = claimed_at
        self._made = monotonic()
        self._connection: Connection | None = None
        self._begun = False
        self._parts: list[Carried] = []
        self._ends: list[claims.End] = []
        # A job has changed its transaction for those that follow: commit before the next one.
        self.is_marked = False

    @property
    def connection(self) -> Connection:
        """The connection, in a transaction. On SQLite this is the only one that may write."""
        if self._connection is None:
            self._connection = self._engine.connect()
        if not self._begun:
            self._begun = True
            self._connection.begin()
            combine_savepoints(self._connection)
        return self._connection

    def now(self) -> datetime:
        """Return the time by the database's clock, without asking it."""
        return self._claimed_at + timedelta(seconds=monotonic() - self._made)

    @contextmanager
    def unit_of_work(self) -> Iterator[Session]:
        """Yield a session for one job. What it wrote is undone on an exception.

        It is committed with the other jobs' by `commit`.
        """
        notes = self._make_notes()
        ends: list[claims.End] = []

        def note_end(claim: claims.Claim, state: JobState, its: claims.Notes, result: Any) -> None:
            ends.append(claims.End(claim, state, its, result, self.now()))

        notes.note_end = note_end
        part = _Part(self)
        try:
            with part as session, lent(session, notes):
                yield session
        finally:
            part.is_over = True
            if self._connection is not None:
                self.is_marked |= take_mark(self._connection)
        self._parts.append(notes)
        self._ends += ends

    @property
    def is_lost(self) -> bool:
        """Whether the transaction has ended, so that nothing of it is kept."""
        return self._begun and self._connection is not None and is_idle(self._connection)

    def commit(self, *, give_back: UUID | None = None, alone: bool = True) -> list[UUID]:
        """Write the jobs' ends and commit. Return the jobs that may be sent now.

        With `give_back`, the jobs that still run under that claim are queued again; `alone` as in
        `claims.undo_claims`. Raises LostClaim when one of the jobs was cancelled or released; then
        nothing may be kept.
        """
        with self.unit_of_work() as session:
            claims.mark_all_ended(session, self._ends)
            back = claims.undo_claims(session, [give_back], alone=alone) if give_back else []
        self.connection.commit()
        ids = [job_id for notes in self._parts for job_id in notes.enqueued] + back
        if self.is_marked:
            self.connection.close()
            self._connection = None
        self._begun, self.is_marked, self._parts, self._ends = False, False, [], []
        return ids

    def close(self) -> None:
        """Undo what is not committed, and give the connection back."""
        for notes in self._parts:
            notes.undo()
        if self._connection is not None:
            self._connection.close()
