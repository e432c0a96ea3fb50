"""Recurring jobs: when an entry is due, and how each slot is started once, by any number of beats.

The transaction that enqueues the job also updates `schedule.last_fire_at` by compare-and-set, so a
slot is started exactly once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import takewhile
from typing import Literal

from cronsim import CronSim, CronSimError
from sqlalchemy import delete, func, select, update

from nightshift.database import Session, insert_or
from nightshift.jobs.args import JobArgs
from nightshift.jobs.enqueue import enqueue
from nightshift.jobs.models import Job, JobState, ScheduleEntry

# Beat looks every second. A slot that it finds later than this was missed: beat was down.
MISSED_AFTER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One recurring job.

    `when` is an interval, or a cron expression in `zone` (`0 6 * * mon`; `0 12 * * 2#3` is the
    third Tuesday). Intervals count from the epoch, so all machines agree on the slots. Where a
    clock change skips a time, the slot is right after the gap; where it repeats one, there is one.

    `missed` says which of the slots that passed while beat was down are started late: none
    (`skip`), the newest (`latest`), or `all` within `window`. With `overdue_at_start`, an
    interval's job is started when beat starts and no run has succeeded for one interval.
    """

    name: str
    job: JobArgs
    when: timedelta | str
    zone: tzinfo
    missed: Literal["skip", "latest", "all"] = "latest"
    window: timedelta = timedelta(days=1)
    overdue_at_start: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid rule: beat, which reads all entries, would start none."""
        if isinstance(self.when, str):
            try:
                CronSim(self.when, datetime.now(UTC))
            except CronSimError as error:
                raise ValueError(
                    f"the schedule's entry {self.name!r} cannot be due at {self.when!r}: {error}"
                ) from error
        elif self.when <= timedelta():
            raise ValueError(f"the schedule's entry {self.name!r} cannot be due every {self.when}")

    def before(self, instant: datetime) -> Iterator[datetime]:
        """Yield the slots up to and including an instant, newest first, without an end."""
        if isinstance(self.when, str):
            # Added in UTC: in the hour that autumn repeats, a second added to the wall clock would
            # lead back to the hour's first pass.
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
        """Return the newest slot of those after `last` and up to `now`, and the slots to start.

        The latter are oldest first. Where no slot has passed, return None and no slots.
        """
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


def register_entries(
    session: Session, entries: Sequence[Entry], *, now: datetime
) -> list[tuple[str, datetime]]:
    """Make the table hold just these entries, and enqueue those that are overdue at start.

    A new entry counts from `now`. Return what was enqueued, as `enqueue_due` does.
    """
    started = []
    if entries:
        rows = [{"entry": entry.name, "last_fire_at": now} for entry in entries]
        session.execute(insert_or(session, ScheduleEntry).on_conflict_do_nothing(), rows)
    session.execute(
        delete(ScheduleEntry).where(ScheduleEntry.entry.not_in([entry.name for entry in entries]))
    )
    for entry in entries:
        if entry.overdue_at_start and isinstance(entry.when, timedelta):
            last = find_last_success(session, entry.job.policy.kind)
            if last is None or now - last > entry.when:
                enqueue(session, entry.job, now=now)
                started.append((entry.name, now))
    return started


def enqueue_due(
    session: Session, entries: Sequence[Entry], *, now: datetime
) -> list[tuple[str, datetime]]:
    """Enqueue the entries that are due, and return the name and the slot of each.

    A slot that another beat has started is left out.
    """
    last_fires = read_last_fires(session)
    fired = []
    for entry in entries:
        last = last_fires.get(entry.name)
        if last is None:
            continue
        newest, slots = entry.due(last, now)
        if newest is None:
            continue
        moved = update(ScheduleEntry).where(
            ScheduleEntry.entry == entry.name, ScheduleEntry.last_fire_at == last
        )
        if session.execute(moved.values(last_fire_at=newest)).rowcount == 0:  # type: ignore[attr-defined]
            continue
        for slot in slots:
            enqueue(session, entry.job, now=now)
            fired.append((entry.name, slot))
    return fired


def read_last_fires(session: Session) -> dict[str, datetime]:
    """Return by entry the newest slot that a beat has dealt with; at first, its registration."""
    return dict(session.execute(select(ScheduleEntry.entry, ScheduleEntry.last_fire_at)).all())


def find_last_success(session: Session, kind: str) -> datetime | None:
    """Return when a job of this kind last succeeded, or None where the ledger holds no such job."""
    return session.execute(
        select(func.max(Job.finished_at)).where(Job.kind == kind, Job.state == JobState.SUCCEEDED)
    ).scalar()
