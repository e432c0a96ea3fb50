"""Recurring jobs: when an entry is due, and starting it once, however many beats look at it.

`schedule.last_fire_at` is moved on by compare-and-set in the transaction that enqueues, so a slot is started exactly once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import takewhile
from typing import Literal

from cronsim import CronSim, CronSimError
from sqlalchemy import delete, func, select, update

from services.database import Session, insert_or
from services.jobs.args import JobArgs
from services.jobs.enqueue import enqueue
from services.jobs.models import Job, JobState, ScheduleEntry

# A slot that is found so late was missed: nothing that ticks every second is later without having been away.
MISSED_AFTER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One recurring job.

    `when` is an interval, counted from the epoch so that all machines agree on the slots, or a cron expression read in `zone`
    (`0 6 * * mon`; `0 12 * * 2#3` is the third Tuesday): a time that DST skips runs right after the gap, one that it repeats runs once.
    `missed` says what is made up for slots that passed while everything was down: none (`skip`), the newest (`latest`), or
    `all` of those within `window`. `overdue_at_start`: when beat starts and no run has succeeded for one interval, start one.
    """

    name: str
    job: JobArgs
    when: timedelta | str
    zone: tzinfo
    missed: Literal["skip", "latest", "all"] = "latest"
    window: timedelta = timedelta(days=1)
    overdue_at_start: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a rule that nobody can read: beat looks at all entries at once, and would start none of them."""
        if isinstance(self.when, str):
            try:
                CronSim(self.when, datetime.now(UTC))
            except CronSimError as error:
                raise ValueError(f"the schedule's entry {self.name!r} cannot be due at {self.when!r}: {error}") from error
        elif self.when <= timedelta():
            raise ValueError(f"the schedule's entry {self.name!r} cannot be due every {self.when}")

    def before(self, instant: datetime) -> Iterator[datetime]:
        """Give the slots up to and including an instant, newest first."""
        if isinstance(self.when, str):
            # Added in UTC: in the hour that autumn repeats, wall-clock arithmetic would lead back into its first pass.
            start = instant.astimezone(UTC) + timedelta(seconds=1)
            yield from CronSim(self.when, start.astimezone(self.zone), reverse=True)
            return
        seconds = self.when.total_seconds()
        number = instant.timestamp() // seconds
        while True:
            yield datetime.fromtimestamp(number * seconds, self.zone)
            number -= 1

    def after(self, instant: datetime) -> datetime:
        """Return the next slot after an instant."""
        if isinstance(self.when, str):
            return next(CronSim(self.when, instant.astimezone(self.zone)))
        seconds = self.when.total_seconds()
        return datetime.fromtimestamp((instant.timestamp() // seconds + 1) * seconds, self.zone)

    def due(self, last: datetime, now: datetime) -> tuple[datetime | None, list[datetime]]:
        """Return the newest slot after `last` and up to `now`, and the slots to start a run for, oldest first."""
        newest = next(self.before(now))
        if newest <= last:
            return None, []
        match self.missed:
            case "skip":
                chosen = [newest] if now - newest <= MISSED_AFTER else []
            case "latest":
                chosen = [newest]
            case "all":
                oldest = max(last, now - self.window)
                chosen = list(takewhile(lambda slot: slot > oldest, self.before(now)))[::-1]
        return newest, chosen


def register(session: Session, entries: Sequence[Entry], *, now: datetime) -> list[tuple[str, datetime]]:
    """Make the table hold just these entries; a new one counts from now. Start those that are overdue, and return them as `fire` does."""
    started = []
    if entries:
        rows = [{"entry": entry.name, "last_fire_at": now} for entry in entries]
        session.execute(insert_or(session, ScheduleEntry).on_conflict_do_nothing(), rows)
    session.execute(delete(ScheduleEntry).where(ScheduleEntry.entry.not_in([entry.name for entry in entries])))
    for entry in entries:
        if entry.overdue_at_start and isinstance(entry.when, timedelta):
            last = last_success(session, entry.job.policy.kind)
            if last is None or now - last > entry.when:
                enqueue(session, entry.job, now=now)
                started.append((entry.name, now))
    return started


def fire(session: Session, entries: Sequence[Entry], *, now: datetime) -> list[tuple[str, datetime]]:
    """Enqueue what is due and return it as (entry, slot); what another beat has started is left out."""
    last_fires = {row.entry: row.last_fire_at for row in session.execute(select(ScheduleEntry.entry, ScheduleEntry.last_fire_at))}
    fired = []
    for entry in entries:
        last = last_fires.get(entry.name)
        if last is None:
            continue
        newest, slots = entry.due(last, now)
        if newest is None:
            continue
        moved = update(ScheduleEntry).where(ScheduleEntry.entry == entry.name, ScheduleEntry.last_fire_at == last)
        if session.execute(moved.values(last_fire_at=newest)).rowcount == 0:  # type: ignore[attr-defined]
            continue
        for slot in slots:
            enqueue(session, entry.job, now=now)
            fired.append((entry.name, slot))
    return fired


def last_success(session: Session, kind: str) -> datetime | None:
    """Return when a job of this kind succeeded last, as far as the ledger remembers."""
    return session.execute(select(func.max(Job.finished_at)).where(Job.kind == kind, Job.state == JobState.SUCCEEDED)).scalar()
