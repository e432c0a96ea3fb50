"""The main job: bring every feed up to date. Plan, build in chunks, finish; each is one job's body."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import func, select, update

from services.calendars import feeds, inputs, revisions
from services.calendars.jobs import BuildFeeds, FinishSync
from services.calendars.models import Feed, SyncRun
from services.calendars.store import FeedStore
from services.calendars.window import Window
from services.database import Session, insert_or
from services.jobs import Outcome, Run
from services.jobs.batches import children
from services.jobs.models import JobState

# A chunk locks its feeds' rows while it builds them, half a second at most; reading the school once costs as much as fifty feeds.
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


def plan(run: Run, store: FeedStore, rules: Rules) -> None:
    """Bring the revisions of all events up to date, then start a chunk for every few hundred feeds that are out of date.

    Rendering happens outside any transaction that writes: on SQLite everybody else would wait for it.
    """
    with run.unit_of_work() as session:
        record = insert_or(session, SyncRun).values(id=run.id, started_at=run.now, errors=[])
        session.execute(record.on_conflict_do_nothing(index_elements=[SyncRun.id]))
        # There is one run at a time, so another one that has not ended never will.
        dead = update(SyncRun).where(SyncRun.finished_at.is_(None), SyncRun.id != run.id)
        session.execute(dead.values(finished_at=run.now, errors=[{"run": "itself", "error": "it failed before its end"}]))
    window = rules.window(run.now)
    with run.read_only() as session:
        # Before anything else is read: what changes from here on makes the digest at the run's end another one.
        now_inputs = inputs.digest(session, window, repr(rules))
        same = now_inputs is not None and now_inputs == _inputs_of_last_good_run(session)
        found = [] if same else list(revisions.changes(session, window, domain=rules.domain))
    with run.unit_of_work() as session:
        changed = [change.event_id for change in found]
        revisions.record(session, window, found, domain=rules.domain, now=run.now, event_ids=changed)
        feeds.ensure(session)
    with run.read_only() as session:
        stale, total = feeds.out_of_date(session, window, store, school_name=rules.school_name, same_inputs=same)
    with run.unit_of_work() as session:
        session.execute(update(SyncRun).where(SyncRun.id == run.id).values(unchanged=total - len(stale), inputs=now_inputs))
        run.spawn(session, chunks(run.id, stale), then=FinishSync(run_id=run.id))
        run.finish(session)


def chunks(run_id: UUID, feed_ids: list[int]) -> list[BuildFeeds]:
    """Return the jobs that build these feeds."""
    cut = (tuple(feed_ids[at : at + FEEDS_A_CHUNK]) for at in range(0, len(feed_ids), FEEDS_A_CHUNK))
    return [BuildFeeds(run_id=run_id, feed_ids=some) for some in cut]


def _inputs_of_last_good_run(session: Session) -> bytes | None:
    """Return what the last run was made from, if that did not change meanwhile and no error came up: then every feed was right for it."""
    last = session.execute(
        select(SyncRun).where(SyncRun.finished_at.is_not(None)).order_by(SyncRun.started_at.desc()).limit(1)
    ).scalar()
    return None if last is None or last.failed or last.errors else last.inputs


def build_chunk(session: Session, args: BuildFeeds, run: Run, store: FeedStore, rules: Rules) -> Outcome:
    """Build one chunk's feeds and return the counts."""
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
    """Remove what nobody is entitled to and write the run's record; every chunk has ended by now, well or not."""
    removed, kept = feeds.remove_orphans(session, store)
    for leftover in store.leftovers(older_than_ns=int((run.now - LEFTOVER_AGE).timestamp() * 1e9)):
        with suppress(OSError):  # The next run finds it again.
            leftover.unlink()
    record = session.execute(select(SyncRun).where(SyncRun.id == args.run_id)).scalar_one()
    built, unchanged, failed = 0, record.unchanged, 0
    errors: list[dict[str, Any]] = [*revisions.errors(session, rules.window(run.now)), *kept]
    for chunk in children(session, args.run_id, BuildFeeds.policy.kind):
        if chunk["state"] == JobState.SUCCEEDED:
            built += chunk["result"]["built"]
            unchanged += chunk["result"]["unchanged"]
            failed += chunk["result"]["failed"]
            errors += chunk["result"]["errors"]
        else:
            failed += len(chunk["args"].get("feed_ids", ()))
            reason = (chunk["error"] or {}).get("message") or chunk["result"] or chunk["state"]
            errors.append({"chunk": str(chunk["id"]), "error": str(reason)})
    record.built, record.unchanged, record.failed, record.removed = built, unchanged, failed, removed
    record.errors = errors[:MOST_ERRORS]
    if record.inputs is not None and record.inputs != inputs.digest(session, rules.window(run.now), repr(rules)):
        record.inputs = None  # Something changed while we built: nobody can say which chunk has seen it.
    record.finished_at = run.now
    return summary(record)


def summary(record: SyncRun) -> dict[str, Any]:
    """Return a run's record as JSON values; `seconds` is None for a run that has not ended."""
    seconds = None if record.finished_at is None else (record.finished_at - record.started_at).total_seconds()
    return {
        "run": str(record.id),
        "state": "running" if record.finished_at is None else "partial" if record.failed or record.errors else "complete",
        "built": record.built,
        "unchanged": record.unchanged,
        "failed": record.failed,
        "removed": record.removed,
        "seconds": seconds,
        "errors": record.errors,
    }


def last_runs(session: Session, *, limit: int = 1) -> Sequence[SyncRun]:
    """Return the newest runs, the newest first."""
    return session.execute(select(SyncRun).order_by(SyncRun.started_at.desc()).limit(limit)).scalars().all()


def totals(session: Session) -> list[dict[str, Any]]:
    """Return, by kind, how many feeds there are, with how many events and bytes."""
    rows = session.execute(
        select(Feed.kind, func.count(), func.sum(Feed.event_count), func.sum(Feed.size)).group_by(Feed.kind).order_by(Feed.kind)
    )
    return [
        {"kind": kind.value, "feeds": count, "events": int(events or 0), "bytes": int(size or 0)}
        for kind, count, events, size in rows
    ]
