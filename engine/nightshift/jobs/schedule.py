"""Recurring jobs: when an entry is due, and how each slot is started once, by any number of beats.

The transaction that enqueues the job also updates `schedule.last_fire_at` by compare-and-set, so a
slot is started exactly once.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import takewhile
from operator import attrgetter
from types import MappingProxyType
from typing import Literal

from cronsim import CronSim, CronSimError
from sqlalchemy import delete, exists, func, or_, select, update

from nightshift.database import Session, insert_or
from nightshift.errors import InvalidInput
from nightshift.jobs.args import JobArgs
from nightshift.jobs.enqueue import enqueue
from nightshift.jobs.models import (
    ENDED,
    LONGEST_ENTRY,
    Job,
    JobState,
    PausedEntry,
    ScheduleEntry,
)

# Beat looks every second. A slot that it finds later than this was missed: beat was down.
MISSED_AFTER = timedelta(minutes=1)

# A clock that is corrected by less starts no slot again.
FAR_AHEAD = timedelta(hours=1)

# How often beats record that they declare an entry: by this their end is noticed.
SEEN_EVERY = timedelta(seconds=10)

# When an entry that no beat declares is removed.
UNDECLARED_FOR = timedelta(days=7)

# Slots of an entry that one transaction starts, and jobs that are compared to find the last one.
MOST_SLOTS = 1_000
LATEST_JOBS = 100


UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
AT_A_TIME = re.compile(r"At (\d\d:\d\d(?::\d\d)?) (?:on )?(every day|[A-Z][a-z]+day)")


def describe_rule(when: timedelta | str) -> str:
    """Return an interval or a cron expression in words: `every 5 minutes`, `every day at 03:17`."""
    if isinstance(when, timedelta):
        seconds = when.total_seconds()
        unit, length = next((one for one in UNITS if seconds % one[1] == 0), ("second", 1))
        number = seconds / length
        return f"every {unit}" if number == 1 else f"every {number:g} {unit}s"
    text = CronSim(when, datetime.now(UTC)).explain()
    if found := AT_A_TIME.fullmatch(text):
        time, day = found.groups()
        return f"{day if day == 'every day' else f'every {day}'} at {time}"
    return text[:1].lower() + text[1:]


@dataclass(frozen=True, slots=True)
class Entry:
    """One recurring job.

    `when` is an interval, or a cron expression in `zone` (`0 6 * * mon`; `0 12 * * 2#3` is the
    third Tuesday). Intervals count from the epoch, so all machines agree on the slots. Where a
    clock change skips a time, the slot is right after the gap; where it repeats one, there is one.

    `missed` says which of the slots that passed while beat was down are started late: none
    (`skip`), the newest (`latest`), or `all` within `window`. With `overdue_at_start`, an
    interval's job is started when beat starts and no run was good for one interval.

    `find_last_good` returns when the last good run ended, for a job that may succeed in part; by
    default a run is good when its job has succeeded.
    """

    name: str
    job: JobArgs
    when: timedelta | str
    zone: tzinfo
    missed: Literal["skip", "latest", "all"] = "latest"
    window: timedelta = timedelta(days=1)
    overdue_at_start: bool = False
    find_last_good: Callable[[Session], datetime | None] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid entry: beat, which reads them all, would start none."""
        if not 0 < len(self.name) <= LONGEST_ENTRY:
            raise ValueError(
                f"the schedule's entry {self.name[:LONGEST_ENTRY]!r}: a name has 1 to"
                f" {LONGEST_ENTRY} characters"
            )
        try:
            self.job.to_row()
        except InvalidInput as error:
            raise ValueError(f"the schedule's entry {self.name!r}: {error}") from error
        if isinstance(self.when, str):
            try:
                CronSim(self.when, datetime.now(UTC))
            except CronSimError as error:
                raise ValueError(
                    f"the schedule's entry {self.name!r} cannot be due at {self.when!r}: {error}"
                ) from error
        elif self.when <= timedelta():
            raise ValueError(f"the schedule's entry {self.name!r} cannot be due every {self.when}")

    @property
    def words(self) -> str:
        """When it is due, in words: `every Monday at 06:00`."""
        return describe_rule(self.when)

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
    session: Session,
    entries: Sequence[Entry],
    *,
    now: datetime,
    remembered: Mapping[str, datetime] = MappingProxyType({}),
) -> None:
    """Put missing entries into the table, and remove those that no beat has declared for a week.

    Other beats, also of other releases, declare entries of their own: they stay. A new entry counts
    from `now`. `remembered` has the newest slots that this beat has seen: an entry that is missing
    or older, because the table was emptied or restored, gets its slot back. One whose slot is far
    ahead, because the database's clock was, counts from `now` too.
    """
    remembered = _forget_future(remembered, now)
    rows = {row.entry: row for row in session.execute(select(ScheduleEntry.__table__))}
    for entry in entries:
        row, known = rows.get(entry.name), remembered.get(entry.name)
        if row is None:
            last = now if known is None else _find_last_start(session, entry, since=known)
            new = {"entry": entry.name, "last_fire_at": last, "seen_at": now}
            session.execute(insert_or(session, ScheduleEntry).on_conflict_do_nothing(), new)
        elif known is not None and row.last_fire_at < known:
            last = _find_last_start(session, entry, since=known)
            _move(session, entry, row.last_fire_at, last)
        elif row.last_fire_at > max(now + FAR_AHEAD, entry.after(now)):
            _move(session, entry, row.last_fire_at, now)
    declared = {entry.name for entry in entries}
    # The release before does not declare its entries here: such an entry counts from now.
    unseen = [
        name
        for name, row in rows.items()
        if row.seen_at is None or (name in declared and row.seen_at < now - SEEN_EVERY)
    ]
    if unseen:
        # Another beat may be faster.
        late = or_(ScheduleEntry.seen_at.is_(None), ScheduleEntry.seen_at < now - SEEN_EVERY)
        seen = update(ScheduleEntry).where(ScheduleEntry.entry.in_(unseen), late)
        session.execute(seen.values(seen_at=now))
    gone = delete(ScheduleEntry).where(
        ScheduleEntry.entry.not_in(declared), ScheduleEntry.seen_at < now - UNDECLARED_FOR
    )
    if removed := session.execute(gone.returning(ScheduleEntry.entry)).scalars().all():
        session.execute(delete(PausedEntry).where(PausedEntry.entry.in_(removed)))


def _forget_future(remembered: Mapping[str, datetime], now: datetime) -> dict[str, datetime]:
    return {name: slot for name, slot in remembered.items() if slot <= now}


def _find_last_start(session: Session, entry: Entry, *, since: datetime) -> datetime:
    """Return when an entry's job was enqueued last, or `since` if it was not since then.

    Another beat may have started a slot just before the table was emptied.
    """
    of_kind = select(Job.created_at, Job.args).where(
        Job.kind == entry.job.policy.kind, Job.created_at > since
    )
    newest = session.execute(of_kind.order_by(Job.created_at.desc()).limit(LATEST_JOBS))
    args = entry.job.to_row()
    return next((row.created_at for row in newest if row.args == args), since)


def enqueue_overdue(
    session: Session, entries: Sequence[Entry], *, now: datetime
) -> list[tuple[str, datetime]]:
    """Enqueue the entries that are overdue when a beat starts. Return as `enqueue_due` does.

    An entry that is paused, or whose job is open, is left out.
    """
    started = []
    for entry in sorted(entries, key=attrgetter("name")):
        if not entry.overdue_at_start or isinstance(entry.when, str):
            continue
        # Locked: a beat that starts at the same time waits, and then finds our job.
        ours = select(ScheduleEntry.entry).where(ScheduleEntry.entry == entry.name)
        session.execute(ours.with_for_update())
        kind = entry.job.policy.kind
        if entry.name in find_paused_entries(session):
            continue
        last = find_last_good(session, entry)
        is_open = exists().where(Job.kind == kind, Job.state.not_in(ENDED))
        if last is not None and now - last <= entry.when:
            continue
        if not session.execute(select(is_open)).scalar_one():
            enqueue(session, entry.job, now=now)
            started.append((entry.name, now))
    return started


def enqueue_due(
    session: Session,
    entries: Sequence[Entry],
    *,
    now: datetime,
    remembered: Mapping[str, datetime] = MappingProxyType({}),
) -> list[tuple[str, datetime]]:
    """Enqueue the entries that are due, and return the name and the slot of each.

    Left out are a slot that another beat has started, the slots of a paused entry, and an entry
    with a slot before the one in `remembered`: the table was restored since `register_entries`. At
    most MOST_SLOTS of an entry are enqueued; the next call goes on.
    """
    last_fires, remembered = read_last_fires(session), _forget_future(remembered, now)
    fired: list[tuple[str, datetime]] = []
    paused: Mapping[str, datetime] | None = None  # read only when something is due
    # In one order for all beats: two that wait for each other's rows would be a deadlock.
    for entry in sorted(entries, key=attrgetter("name")):
        last = last_fires.get(entry.name)
        if last is None or last < remembered.get(entry.name, last):
            continue
        newest, slots = entry.due(last, now)
        if newest is None:
            continue
        if len(slots) > MOST_SLOTS:
            slots = slots[:MOST_SLOTS]
            newest = slots[-1]
        if not _move(session, entry, last, newest):
            continue
        if paused is None:
            paused = find_paused_entries(session)
        for slot in () if entry.name in paused else slots:
            enqueue(session, entry.job, now=now)
            fired.append((entry.name, slot))
    return fired


def _move(session: Session, entry: Entry, last: datetime, newest: datetime) -> bool:
    """Move an entry on from the slot `last`. Return False when another beat has moved it."""
    moved = update(ScheduleEntry).where(
        ScheduleEntry.entry == entry.name, ScheduleEntry.last_fire_at == last
    )
    return bool(session.execute(moved.values(last_fire_at=newest)).rowcount)  # type: ignore[attr-defined]


def read_last_fires(session: Session) -> dict[str, datetime]:
    """Return by entry the newest slot that a beat has dealt with; at first, its registration."""
    return dict(session.execute(select(ScheduleEntry.entry, ScheduleEntry.last_fire_at)).all())


def pause_entry(session: Session, name: str, *, now: datetime) -> bool:
    """Start no job of an entry until it is resumed. Return False when it was paused already.

    Its slots pass. Jobs of it that are enqueued run.
    """
    paused = insert_or(session, PausedEntry).values(entry=name, paused_at=now)
    written = paused.on_conflict_do_nothing().returning(PausedEntry.entry)
    return session.execute(written).scalar() is not None


def resume_entry(session: Session, name: str) -> bool:
    """Start an entry's jobs again, from its next slot on. Return False when it was not paused."""
    paused = delete(PausedEntry).where(PausedEntry.entry == name)
    return bool(session.execute(paused).rowcount)  # type: ignore[attr-defined]


def find_paused_entries(session: Session) -> dict[str, datetime]:
    """Return since when each paused entry is paused."""
    paused = select(PausedEntry.entry, PausedEntry.paused_at).order_by(PausedEntry.entry)
    return dict(session.execute(paused).all())


def read_last_sign(session: Session, entries: Sequence[Entry]) -> datetime | None:
    """Return when a beat declared one of these entries last, to within SEEN_EVERY."""
    names = [entry.name for entry in entries]
    seen = select(func.max(ScheduleEntry.seen_at)).where(ScheduleEntry.entry.in_(names))
    return session.execute(seen).scalar_one()


def find_last_good(session: Session, entry: Entry) -> datetime | None:
    """Return when the last good run of an entry ended, or None where none is recorded.

    Beat, the probes, the metrics and the commands all ask this, so they agree.
    """
    if entry.find_last_good is not None:
        return entry.find_last_good(session)
    succeeded = (Job.kind == entry.job.policy.kind, Job.state == JobState.SUCCEEDED)
    return session.execute(select(func.max(Job.finished_at)).where(*succeeded)).scalar()
