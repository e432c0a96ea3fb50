"""What a job's body gets (`Run`) and what it may return. Nothing of it needs Celery."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Protocol, TypeVar
from uuid import UUID

from nightshift.database import Session
from nightshift.errors import PermanentError
from nightshift.jobs import batches, claims
from nightshift.jobs.args import JobArgs
from nightshift.jobs.models import JobState
from nightshift.jobs.session import get_carried

T = TypeVar("T")

UnitOfWork = Callable[[], AbstractContextManager[Session]]


class Collaborators(Protocol):
    """What a body may use of its process: nightshift.runtime.Runtime."""

    def unit_of_work(self) -> AbstractContextManager[Session]:
        """Yield a transaction."""

    def read_only(self) -> AbstractContextManager[Session]:
        """Yield a transaction that only reads."""

    def read_newest(self) -> AbstractContextManager[Session]:
        """Yield a session each of whose statements reads what is committed by then."""

    def __getitem__(self, wanted: type[T]) -> T:
        """Return what a component provides under a type."""


def repeat(unit_of_work: UnitOfWork, change: Callable[[Session], int]) -> int:
    """Call `change`, each time in a transaction of its own, until it returns 0; return the sum."""
    changed = 0
    while True:
        with unit_of_work() as session:
            number = change(session)
        changed += number
        if number == 0:
            return changed


# Progress is written at most this often: a body may call `progress` in a tight loop.
PROGRESS_EVERY = timedelta(seconds=1)

# Bits of the ledger's integers without the sign. A count of bytes soon needs more.
LONGEST_NUMBER = 31


@dataclass(frozen=True, slots=True)
class Snooze:
    """Run again after `delay`. This run does not count as an attempt."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Discard:
    """End as discarded: what the job was about no longer exists."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End as cancelled."""

    reason: str


# What a body returns: None, a value that JSON can hold (the job's result), or one of the three
# above.
Outcome = Any


def _require_json(outcome: Outcome) -> None:
    # Another attempt would have the same result.
    try:
        json.dumps(outcome, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PermanentError(f"JSON cannot hold the job's result: {error}") from error


class Run:
    """One run of one job: its ids, its time, and what its body may write about it.

    `now` is the start of this run by the database's clock.
    """

    def __init__(self, claim: claims.Claim, runtime: Collaborators) -> None:
        self.id: UUID = claim.job_id
        self.claim_id: UUID = claim.claim_id
        self.parent_id: UUID | None = claim.parent_id
        self.attempt: int = claim.attempt
        self.now: datetime = claim.started_at
        self.runtime = runtime
        self.unit_of_work: UnitOfWork = runtime.unit_of_work
        self.read_only: UnitOfWork = runtime.read_only
        self.read_newest: UnitOfWork = runtime.read_newest
        # The state that `finish` has written, or None.
        self.state: JobState | None = None
        self.session: Session | None = None
        self._claim = claim
        self._notes = claims.Notes()
        self._written = monotonic()

    def progress(self, done: int, total: int) -> None:
        """Record that `done` of `total` are done, at most once a second.

        Others see it at once where the body has transactions of its own, else when the body's
        transaction commits. Numbers above the ledger's range are both divided by the same power of
        two. Raises LostClaim when the job was cancelled or released to another worker.
        """
        done, total = int(done), int(total)
        beyond = max(0, done.bit_length() - LONGEST_NUMBER, total.bit_length() - LONGEST_NUMBER)
        self._notes.done, self._notes.total = done >> beyond, total >> beyond
        if monotonic() - self._written < PROGRESS_EVERY.total_seconds():
            return
        self._written = monotonic()
        if self.session is not None:
            claims.require_valid(self.session, self._claim)
            return
        with self.unit_of_work() as session:
            claims.write_notes(session, self._claim, self._notes)
        self._notes.lines.clear()

    def log(self, line: str) -> None:
        """Add a line to the job's log. It is written with the next progress, or with the finish.

        An attempt keeps its first 1,000 lines, and of each line 2,000 characters; the last line
        says how many lines were left out.
        """
        # A file's name may hold any bytes. A line that the database refuses would make the write of
        # the job's end fail, and then the write of that failure.
        line = line[: claims.LONGEST_MESSAGE].replace("\0", "\N{REPLACEMENT CHARACTER}")
        self._notes.add(line.encode(errors="backslashreplace").decode())

    def spawn(
        self, session: Session, children: Sequence[JobArgs], *, then: JobArgs | None = None
    ) -> None:
        """Write `children` in `session`, which run once this job's finish has committed there.

        This job then waits until all children have ended, and after them `then`. It succeeds when
        all of these succeeded. `then` also runs when children failed; without children it runs at
        once. Another call adds children, and its `then` replaces an earlier one. A unique child
        that is open already is left out, and not waited for: it belongs to who enqueued it.

        Raises PermanentError in a session that no Runtime opened. A transaction that spawned and
        in which the job does not succeed is refused when it ends.
        """
        batches.spawn(session, self.id, children, then=then, now=self.now)

    def finish(self, session: Session, outcome: Outcome = None, *, last: bool = False) -> None:
        """Write the job's outcome in `session`, so that it commits together with the job's effect.

        `last` promises that the caller does nothing more in `session`: a finish without any effect
        is then one statement that commits by itself. Raises LostClaim when the job was cancelled or
        released to another worker, BrokenTransaction when the body has ended the session's
        transaction, and PermanentError when it spawned and did not succeed, or has finished before.
        """
        carried = get_carried(session)
        carried.require_unbroken()
        if self.state is not None:
            raise PermanentError(
                "run.finish was called before: call it once, and only in a body with"
                " own_transactions=True"
            )
        if isinstance(outcome, Snooze | Discard | Cancel):
            carried.require_no_spawn()
        self.state = self._write_end(session, outcome, last=last)
        carried.when_undone.append(self._forget_end)

    def _write_end(self, session: Session, outcome: Outcome, *, last: bool) -> JobState:
        match outcome:
            case Snooze(delay):
                try:
                    return claims.snooze(session, self._claim, delay, self._notes)
                except (OverflowError, TypeError) as error:
                    raise PermanentError(f"no job can be put off by {delay!r}") from error
            case Discard(reason):
                return self._end_early(session, JobState.DISCARDED, reason, last=last)
            case Cancel(reason):
                return self._end_early(session, JobState.CANCELLED, reason, last=last)
        _require_json(outcome)
        return claims.succeed(session, self._claim, self._notes, result=outcome, last=last)

    def _end_early(self, session: Session, state: JobState, reason: str, *, last: bool) -> JobState:
        return claims.mark_ended(
            session, self._claim, state, self._notes, result=str(reason), last=last
        )

    def _forget_end(self) -> None:
        self.state = None

    def fail(
        self, session: Session, error: dict[str, str], *, retry_after: timedelta | None
    ) -> JobState:
        """Record a failed attempt and return the job's state.

        `error` is what `claims.describe` returned. The job is scheduled after `retry_after`; it
        ends as failed when that is None or no attempt is left.
        """
        return claims.record_failure(
            session, self._claim, error, retry_after=retry_after, notes=self._notes
        )
