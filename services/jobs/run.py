"""What a job's body is given, and what it may answer. A body that uses it need not know Celery."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

from services.database import Session
from services.jobs import batches, claims
from services.jobs.args import JobArgs
from services.jobs.models import JobState

UnitOfWork = Callable[[], AbstractContextManager[Session]]

# How often a body's progress is written at most: it may call `progress` in a tight loop.
PROGRESS_EVERY = timedelta(seconds=1)

# The ledger's integers have no more, and bytes are soon more than that.
LONGEST_NUMBER = 31


@dataclass(frozen=True, slots=True)
class Snooze:
    """Run again after `delay`; it does not count as an attempt."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Discard:
    """End as discarded: there is nothing left to do this for."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End as cancelled."""

    reason: str


# What a body answers: nothing, a value that JSON can hold (it becomes the job's result), or one of the three above.
Outcome = Any


class Run:
    """One run of one job: its claim, its clock, and the few things that a body may say about itself."""

    def __init__(self, claim: claims.Claim, unit_of_work: UnitOfWork, read_only: UnitOfWork) -> None:
        self.id: UUID = claim.job_id
        self.claim_id: UUID = claim.claim_id
        self.parent_id: UUID | None = claim.parent_id
        self.attempt: int = claim.attempt
        self.now: datetime = claim.started_at
        self.unit_of_work = unit_of_work
        self.read_only = read_only
        # What `finish` has written, if it has.
        self.state: JobState | None = None
        self.session: Session | None = None
        self._claim = claim
        self._notes = claims.Notes()
        self._written = monotonic()

    def progress(self, done: int, total: int) -> None:
        """Say how far the work is. Raises LostClaim when the job was cancelled or given to another worker meanwhile.

        A body that holds its own transactions shows it at once (once a second at most), another one when it commits. Numbers that the
        ledger cannot hold are made smaller, both alike.
        """
        done, total = int(done), int(total)
        beyond = max(0, done.bit_length() - LONGEST_NUMBER, total.bit_length() - LONGEST_NUMBER)
        self._notes.done, self._notes.total = done >> beyond, total >> beyond
        if monotonic() - self._written < PROGRESS_EVERY.total_seconds():
            return
        self._written = monotonic()
        if self.session is not None:
            claims.check(self.session, self._claim)
            return
        with self.unit_of_work() as session:
            claims.note(session, self._claim, self._notes)
        self._notes.lines.clear()

    def log(self, line: str) -> None:
        """Keep a line with the job, for people; it is written with the next progress or the finish."""
        # A line that the database refuses would take the job's end with it, and its failure too: a file's name may hold any bytes.
        line = line.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="backslashreplace").decode()
        self._notes.lines.append((datetime.now(UTC), line))

    def spawn(self, session: Session, children: Sequence[JobArgs], *, then: JobArgs | None = None) -> None:
        """Start `children` when this job finishes, which then waits for them; `then` runs once after the last one ended, however it ended.

        The job succeeds when all children and `then` did. Without children `then` runs at once. Called again, it adds children, and a
        `then` takes the place of an earlier one.
        """
        batches.spawn(session, self.id, children, then=then, now=self.now)

    def finish(self, session: Session, outcome: Outcome = None, *, last: bool = False) -> None:
        """Write the outcome in `session`'s transaction, which carries the effect too. Raises LostClaim when we no longer may.

        `last` promises that nothing more is done in `session`: then a finish that is all there is needs no transaction around it.
        """
        match outcome:
            case Snooze(delay):
                self.state = claims.snooze(session, self._claim, delay, self._notes)
            case Discard(reason):
                self.state = claims.end(session, self._claim, JobState.DISCARDED, self._notes, result=reason)
            case Cancel(reason):
                self.state = claims.end(session, self._claim, JobState.CANCELLED, self._notes, result=reason)
            case _:
                self.state = claims.succeed(session, self._claim, self._notes, result=outcome, last=last)

    def fail(self, session: Session, error: BaseException, *, retry_after: timedelta | None) -> JobState:
        """Record a failed attempt: tried again after `retry_after` unless that is None or the attempts are used up."""
        return claims.fail(session, self._claim, claims.describe(error), retry_after=retry_after, notes=self._notes)
