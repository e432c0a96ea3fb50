"""From the commit of a change, made by SQL, to the last of its files at a large school."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nightshift.jobs import enqueue
from nightshift.jobs.models import Job
from nightshift.runtime import Runtime
from sqlalchemy import delete, select, text

from benchmarks.servers import installation, make_runtime, worker
from benchmarks.sync import sync
from examples import made_up_school
from services.calendars.jobs import RefreshFeeds, SyncCalendars
from services.calendars.models import ChangeLog
from services.calendars.sync import Rules

USERS, CLASSES, DEPARTMENTS, EVENTS = 10_000, 400, 20, 4_000
EDITS = 5

# Events of one class alone, which its students see too.
OF_ONE_CLASS = """
    SELECT id FROM event JOIN event_class ON event_id = id
    WHERE state = 'published' AND audience = 'all' AND starts_at > now()
    GROUP BY id HAVING count(*) = 1 ORDER BY id
"""


def run() -> dict[str, Any]:
    """Measure and return the figures."""
    with installation(SCHOOL_NAME="Bench"):
        runtime = make_runtime()
        now = datetime.now(UTC)
        size = {"users": USERS, "classes": CLASSES, "departments": DEPARTMENTS, "events": EVENTS}
        with runtime.unit_of_work() as session:
            made_up_school.generate(
                session,
                **size,
                seed=1,
                zone=runtime[Rules].zone,
                now=now,
                today=now.astimezone(runtime[Rules].zone).date(),
            )
            session.execute(delete(ChangeLog))  # The sync builds all that.
            events = list(session.execute(text(OF_ONE_CLASS)).scalars())
        with worker():
            full = sync(runtime)
            edits = [edit(runtime, event_id) for event_id in events[:EDITS]]
            beside = edit_beside_a_sync(runtime, events[EDITS])
    return {
        "feeds": full["built"],
        "full sync, s": full["seconds"],
        "edits of an event of one class": len(edits),
        "feeds that hold it": edits[0]["holding"],
        "files replaced beyond those, or not replaced (0)": max(one["wrong"] for one in edits),
        "from the commit to its last file, s, slowest (≤ 10)": max(one["seconds"] for one in edits),
        "the refresh job itself, s, slowest": max(one["job"] for one in edits),
        "full sync / the refresh job": full["seconds"] / max(one["job"] for one in edits),
        "to its last file beside a full sync, s (≤ 10)": beside,
    }


def edit(runtime: Runtime, event_id: Any) -> dict[str, Any]:
    """Change an event's title, wait for its files, and return what happened."""

    holding, before = holders(event_id), stamps()
    committed = change(runtime, event_id)
    wait(holding, before)
    time.sleep(3)  # What else is written is written by now.
    after = stamps()
    last = max(after[path] for path in holding) / 1e9
    with runtime.read_only() as session:
        newest = (
            select(Job)
            .where(Job.kind == RefreshFeeds.policy.kind)
            .order_by(Job.started_at.desc())
            .limit(1)
        )
        job = session.execute(newest).scalar_one()
    return {
        "holding": len(holding),
        "wrong": len({path for path in after if after[path] != before[path]} ^ holding),
        "seconds": last - committed,
        "job": (job.finished_at - job.started_at).total_seconds(),
    }


def edit_beside_a_sync(runtime: Runtime, event_id: Any) -> float:
    """Change an event while a sync writes every file again.

    Return the seconds until the event's files show the change.
    """

    holding = holders(event_id)
    for path in stamps():
        os.utime(path)
    with runtime.unit_of_work() as session:
        enqueue(session, SyncCalendars(), now=runtime.now())
    time.sleep(1)
    committed = change(runtime, event_id)
    while not all(b"SUMMARY:Bench" in path.read_bytes() for path in holding):
        time.sleep(0.02)
    return time.time() - committed


def change(runtime: Runtime, event_id: Any) -> float:
    """Change an event by SQL alone and return when it was committed."""
    with runtime.unit_of_work() as session:
        session.execute(text("UPDATE event SET title = 'Bench' WHERE id = :id"), {"id": event_id})
    return time.time()


def holders(event_id: Any) -> set[Path]:
    """Return the files that hold an event."""
    return {path for path in stamps() if str(event_id).encode() in path.read_bytes()}


def stamps() -> dict[Path, int]:
    """Return when each file was written, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in Path(os.environ["FEED_STORE"]).rglob("*.ics")}


def wait(holding: set[Path], before: dict[Path, int]) -> None:
    """Wait until all of these files are other ones."""
    while any(path.stat().st_mtime_ns == before[path] for path in holding):
        time.sleep(0.02)
