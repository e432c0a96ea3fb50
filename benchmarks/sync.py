"""calendars.sync at a large school.

Beside it: icalendar feed by feed, and reading and writing with nothing else.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import icalendar
import psutil
from nightshift.database import Base
from nightshift.jobs import enqueue
from nightshift.jobs.models import ENDED, Job
from nightshift.runtime import Runtime
from sqlalchemy import delete, select

from benchmarks.measure import add_up
from benchmarks.servers import installation, make_runtime, worker
from examples import made_up_school
from services.calendars import feeds, revisions
from services.calendars.ics import find_words
from services.calendars.jobs import SyncCalendars
from services.calendars.models import ChangeLog, Feed, SyncRun
from services.calendars.store import FeedStore
from services.calendars.sync import Rules
from services.calendars.vtimezone import make_vtimezone
from services.translation import Locale

USERS, CLASSES, DEPARTMENTS, EVENTS = 5_000, 200, 20, 2_000

# icalendar needs minutes for all of them; the time for so many is scaled up.
SAMPLE = 150


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
            session.execute(delete(ChangeLog))  # Else all of it is refreshed beside the sync.
        with worker() as process:
            used = [read_cpu(process.pid)]
            full = sync(runtime)
            used.append(read_cpu(process.pid))
            memory_before = memory(process.pid)
            unchanged = [sync(runtime) for _ in range(3)]
            used.append(read_cpu(process.pid))
            for _ in range(4):
                for path in Path(os.environ["FEED_STORE"]).rglob("*.ics"):
                    os.utime(path)
                full_again = sync(runtime)
            memory_after = memory(process.pid)
        alone = by_icalendar(runtime, now)
        floor = read_and_write(runtime)
    fastest = min(run["seconds"] for run in unchanged)
    return {
        "feeds": full["built"],
        "full sync, s": full["seconds"],
        "touched files only, s": full_again["seconds"],
        "unchanged sync, s": fastest,
        "full sync, the worker's CPU s": used[1] - used[0],
        "unchanged sync, the worker's CPU s (mean of 3)": (used[2] - used[1]) / 3,
        "icalendar feed by feed, s (scaled)": alone,
        "read and write only, s": floor,
        "full sync is faster than icalendar by, × (≥ 40)": alone / full["seconds"],
        "full sync / read and write only (≤ 3)": full["seconds"] / floor,
        "unchanged / full (≤ 0.1)": fastest / full["seconds"],
        "files written by an unchanged sync (0)": unchanged[-1]["built"],
        "memory of a worker process after 4 more full syncs / before (≈ 1)": memory_after
        / memory_before,
    }


def sync(runtime: Runtime) -> dict[str, Any]:
    """Run one sync through the workers; return its counts and the seconds from enqueue to end."""

    began = time.perf_counter()
    with runtime.unit_of_work() as session:
        run_id = enqueue(session, SyncCalendars(), now=runtime.now())
    while True:
        with runtime.read_only() as session:
            if session.execute(select(Job.state).where(Job.id == run_id)).scalar_one() in ENDED:
                record = session.execute(select(SyncRun).where(SyncRun.id == run_id)).scalar_one()
                assert not record.errors, record.errors
                return {
                    "seconds": time.perf_counter() - began,
                    "built": record.built,
                    "unchanged": record.unchanged,
                }
        time.sleep(0.01)


def memory(worker_pid: int) -> float:
    """Return the largest resident set of a worker's children, in MiB."""
    children = psutil.Process(worker_pid).children()
    return max(child.memory_info().rss for child in children) / 2**20


def read_cpu(worker_pid: int) -> float:
    """Return the CPU seconds that a worker and its processes have used."""
    return add_up(psutil.Process(worker_pid))


def by_icalendar(runtime: Runtime, now: datetime) -> float:
    """Build feeds one by one with icalendar from the same rows.

    Return the seconds that all would take.
    """

    window = runtime[Rules].window(now)
    with runtime.read_only() as session:
        school, wanted = feeds.read_calendars(session, window, school_name="Bench")
        contents: dict[UUID, Any] = dict(
            revisions.read_contents(session, window, runtime[Rules].domain)
        )
    sample = wanted[:: len(wanted) // SAMPLE]
    began = time.perf_counter()
    for wish in sample:
        calendar = icalendar.Calendar()
        calendar.add("version", "2.0")
        calendar.add("prodid", "-//Nightshift//Nightshift//EN")
        calendar.add("calscale", "GREGORIAN")
        calendar.add("name", wish.name)
        calendar.add("x-wr-calname", wish.name)
        calendar.add_component(make_vtimezone(runtime[Rules].zone))
        for index in wish.events:
            calendar.add_component(vevent(contents[school.events[index].id], now))
        calendar.to_ical()
    return (time.perf_counter() - began) * len(wanted) / len(sample)


def vevent(content: Any, now: datetime) -> icalendar.Event:
    """Return an event with the properties that ours have."""

    german = find_words(Locale.GERMAN)
    facts = (
        german.affected[content.teaching_affected]
        + "\n"
        + german.classes % {"names": ", ".join(content.classes)}
    )
    event = icalendar.Event()
    event.add("dtstamp", now)
    event.add("last-modified", now)
    event.add("sequence", 0)
    event.add("uid", content.uid)
    event.add("dtstart", content.starts)
    event.add("dtend", content.ends)
    event.add("summary", content.title)
    event.add("description", f"{facts}\n\n{content.description}")
    event.add("location", content.location)
    event.add("categories", list(content.classes))
    event.add("status", "CANCELLED" if content.cancelled else "CONFIRMED")
    event.add("transp", "OPAQUE")
    return event


def read_and_write(runtime: Runtime) -> float:
    """Read the rows that a full sync reads and write the same bytes; return the seconds."""

    tables = [
        table
        for table in Base.metadata.sorted_tables
        if table.name not in ("job", "job_log", "worker", "paused_queue", "schedule")
    ]
    with runtime.read_only() as session:
        contents = [
            (
                Path(runtime[FeedStore].locate(feed.kind, feed.owner_id)),
                runtime[FeedStore].read(feed.kind, feed.owner_id),
            )
            for feed in session.execute(select(Feed)).scalars()
        ]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with runtime.read_only() as session:
            for table in tables:
                session.execute(select(table)).all()
        for path, content in contents:
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.replace(path)
        times.append(time.perf_counter() - began)
    return sorted(times)[1]
