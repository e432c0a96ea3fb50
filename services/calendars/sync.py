"""Bring every feed up to date: plan, build in chunks, finish. Each is one job's body."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import Session, batched, insert_or
from nightshift.jobs import Outcome, Run
from nightshift.jobs.batches import read_children
from nightshift.jobs.models import JobState
from sqlalchemy import func, select, update

from services.calendars import feeds, inputs, revisions
from services.calendars.jobs import BuildFeeds, FinishSync
from services.calendars.models import SyncRun
from services.calendars.notes import find_doubted
from services.calendars.store import FeedStore
from services.calendars.window import Window

# A chunk locks its feeds' rows while it builds them, for half a second at most. Each chunk reads
# the school, which costs as much as fifty feeds.
FEEDS_A_CHUNK = 250

MOST_ERRORS = 200
LEFTOVER_AGE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Rules:
    """The school's settings that the calendars depend on."""

    school_name: str
    domain: str
    zone: ZoneInfo
    days_past: int
    days_ahead: int

    def window(self, now: datetime) -> Window:
        """Return the window of days that a feed built now holds."""
        return Window.around(now, self.zone, days_past=self.days_past, days_ahead=self.days_ahead)

    @property
    def stamps_kept(self) -> timedelta:
        """Return how long the stamps of a deleted event are kept."""
        return timedelta(days=self.days_past + self.days_ahead) + revisions.STAMPS_KEPT


def plan(run: Run, store: FeedStore, rules: Rules) -> None:
    """Bring all events' revisions up to date, and start chunks for the feeds that are out of date.

    Render outside a transaction that writes: on SQLite all other writers would wait. A second run
    finds the revisions as they should be, and starts the same chunks.
    """
    with run.unit_of_work() as session:
        record = insert_or(session, SyncRun).values(id=run.id, started_at=run.now, errors=[])
        session.execute(record.on_conflict_do_nothing(index_elements=[SyncRun.id]))
        # There is one run at a time, so another record without an end is of a run that failed.
        dead = update(SyncRun).where(SyncRun.finished_at.is_(None), SyncRun.id != run.id)
        session.execute(
            dead.values(
                finished_at=run.now, errors=[{"run": "itself", "error": "it failed before its end"}]
            )
        )
    window = rules.window(run.now)
    with run.read_only() as session:
        # Before all other reads: a change from here on makes the digest at the run's end differ.
        now_inputs = inputs.digest(session, window, repr(rules))
        doubted = find_doubted(session)
        same = (
            now_inputs is not None
            and now_inputs == _find_last_inputs(session)
            and doubted is not None
            and not doubted
        )
        outdated = revisions.find_outdated(session, window, domain=rules.domain, doubted=doubted)
        found = [] if same else list(outdated)
    with run.unit_of_work() as session:
        changed = [change.event_id for change in found]
        revisions.record(
            session,
            window,
            found,
            domain=rules.domain,
            now=run.now,
            event_ids=changed,
            doubted=doubted,
            builds_feeds=True,
        )
        feeds.add_missing(session)
    with run.read_only() as session:
        stale, total = feeds.find_out_of_date(
            session, window, store, school_name=rules.school_name, same_inputs=same
        )
    with run.unit_of_work() as session:
        session.execute(
            update(SyncRun)
            .where(SyncRun.id == run.id)
            .values(unchanged=total - len(stale), inputs=now_inputs)
        )
        run.spawn(session, build_jobs(run.id, stale), then=FinishSync(run_id=run.id))
        run.finish(session)


def build_jobs(run_id: UUID, feed_ids: list[int]) -> list[BuildFeeds]:
    """Return the jobs that build these feeds."""
    return [BuildFeeds(run_id=run_id, feed_ids=some) for some in batched(feed_ids, FEEDS_A_CHUNK)]


def find_last_run(session: Session) -> SyncRun | None:
    """Return the newest run that ended, also one that failed."""
    return session.execute(
        select(SyncRun)
        .where(SyncRun.finished_at.is_not(None))
        .order_by(SyncRun.started_at.desc())
        .limit(1)
    ).scalar()


def find_last_good(session: Session) -> datetime | None:
    """Return when the last run ended that left nothing out: no feed and no event failed."""
    complete = (SyncRun.failed == 0, func.json_array_length(SyncRun.errors) == 0)
    return session.execute(select(func.max(SyncRun.finished_at)).where(*complete)).scalar()


def _find_last_inputs(session: Session) -> bytes | None:
    """Return the last run's digest: all feeds were right for these inputs.

    Return None when that run had an error, or when its inputs changed during it.
    """
    last = find_last_run(session)
    return None if last is None or last.failed or last.errors else last.inputs


def build_chunk(
    session: Session, args: BuildFeeds, run: Run, store: FeedStore, rules: Rules
) -> Outcome:
    """Build the feeds of one chunk, and return the counts."""
    return feeds.build(
        session,
        rules.window(run.now),
        store,
        school_name=rules.school_name,
        feed_ids=args.feed_ids,
        run_id=args.run_id,
        now=run.now,
    )


def finish(session: Session, args: FinishSync, run: Run, store: FeedStore, rules: Rules) -> Outcome:
    """Remove the feeds that should not exist any more, and write the run's record.

    All chunks have ended by now: succeeded, failed or cancelled.
    """
    removed, kept = feeds.remove_orphans(session, store)
    revisions.prune_stamps(session, before=run.now - rules.stamps_kept)
    store.remove_leftovers(before=run.now - LEFTOVER_AGE)
    record = session.execute(select(SyncRun).where(SyncRun.id == args.run_id)).scalar_one()
    record.built, record.failed, record.removed = 0, 0, removed
    errors: list[dict[str, Any]] = [*revisions.find_errors(session, rules.window(run.now)), *kept]
    for chunk in read_children(session, args.run_id, BuildFeeds.policy.kind):
        if chunk["state"] == JobState.SUCCEEDED:
            record.built += chunk["result"]["built"]
            record.unchanged += chunk["result"]["unchanged"]
            record.failed += chunk["result"]["failed"]
            errors += chunk["result"]["errors"]
        else:
            record.failed += len(chunk["args"].get("feed_ids", ()))
            reason = (chunk["error"] or {}).get("message") or chunk["result"] or chunk["state"]
            errors.append({"chunk": str(chunk["id"]), "error": str(reason)})
    record.errors = errors[:MOST_ERRORS]
    if record.inputs is not None and record.inputs != inputs.digest(
        session, rules.window(run.now), repr(rules)
    ):
        # The school changed during the run: some chunks may have seen it, others not.
        record.inputs = None
    record.finished_at = run.now
    return summarise(record)


def summarise(record: SyncRun) -> dict[str, Any]:
    """Return a run's record as JSON values; `seconds` is None for a run that has not ended."""
    seconds = (
        None
        if record.finished_at is None
        else (record.finished_at - record.started_at).total_seconds()
    )
    return {
        "run": str(record.id),
        "state": "running"
        if record.finished_at is None
        else "partial"
        if record.failed or record.errors
        else "complete",
        "built": record.built,
        "unchanged": record.unchanged,
        "failed": record.failed,
        "removed": record.removed,
        "seconds": seconds,
        "errors": record.errors,
    }
