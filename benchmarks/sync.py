"""calendars.sync at a large school: against icalendar feed by feed, and against reading and writing with nothing else."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import icalendar
import psutil
from sqlalchemy import delete, select

from benchmarks.servers import installation, worker

USERS, CLASSES, DEPARTMENTS, EVENTS = 5_000, 200, 20, 2_000

# icalendar needs minutes for all of them; the time for so many is scaled up.
SAMPLE = 150


def run() -> dict[str, Any]:
    """Measure and return the figures."""
    with installation(SCHOOL_NAME="Bench"):
        from project.bootstrap import bootstrap
        from services.calendars.models import ChangeLog
        from services.school import demo

        boot = bootstrap()
        now = datetime.now(UTC)
        size = {"users": USERS, "classes": CLASSES, "departments": DEPARTMENTS, "events": EVENTS}
        with boot.unit_of_work() as session:
            demo.generate(session, **size, seed=1, zone=boot.rules.zone, now=now, today=now.astimezone(boot.rules.zone).date())
            session.execute(delete(ChangeLog))  # Else all of it is refreshed beside the sync.
        with worker() as process:
            full = sync(boot)
            memory_before = memory(process.pid)
            unchanged = [sync(boot) for _ in range(3)]
            for _ in range(4):
                for path in Path(os.environ["FEED_STORE"]).rglob("*.ics"):
                    os.utime(path)
                full_again = sync(boot)
            memory_after = memory(process.pid)
        alone = by_icalendar(boot, now)
        floor = read_and_write(boot)
    fastest = min(run["seconds"] for run in unchanged)
    return {
        "feeds": full["built"],
        "full sync, s": full["seconds"],
        "touched files only, s": full_again["seconds"],
        "unchanged sync, s": fastest,
        "icalendar feed by feed, s (scaled)": alone,
        "read and write only, s": floor,
        "full sync is faster than icalendar by, × (≥ 40)": alone / full["seconds"],
        "full sync / read and write only (≤ 3)": full["seconds"] / floor,
        "unchanged / full (≤ 0.1)": fastest / full["seconds"],
        "files written by an unchanged sync (0)": unchanged[-1]["built"],
        "memory of a worker process after 4 more full syncs / before (≈ 1)": memory_after / memory_before,
    }


def sync(boot: Any) -> dict[str, Any]:
    """Run one sync through the workers and return its record with the wall time from enqueue to end."""
    from services.calendars.jobs import SyncCalendars
    from services.calendars.models import SyncRun
    from services.jobs import enqueue
    from services.jobs.models import ENDED, Job

    began = time.perf_counter()
    with boot.unit_of_work() as session:
        run_id = enqueue(session, SyncCalendars(), now=boot.now())
    while True:
        with boot.read_only() as session:
            if session.execute(select(Job.state).where(Job.id == run_id)).scalar_one() in ENDED:
                record = session.execute(select(SyncRun).where(SyncRun.id == run_id)).scalar_one()
                assert not record.errors, record.errors
                return {"seconds": time.perf_counter() - began, "built": record.built, "unchanged": record.unchanged}
        time.sleep(0.01)


def memory(worker_pid: int) -> float:
    """Return the largest resident set of a worker's children, in MiB."""
    children = psutil.Process(worker_pid).children()
    return max(child.memory_info().rss for child in children) / 2**20


def by_icalendar(boot: Any, now: datetime) -> float:
    """Build feeds one by one with icalendar from the same rows, and return the seconds that all would take."""
    from services.calendars import feeds, revisions
    from services.calendars.vtimezone import vtimezone

    window = boot.rules.window(now)
    with boot.read_only() as session:
        school, wanted = feeds.calendars(session, window, school_name="Bench")
        contents: dict[UUID, Any] = dict(revisions.contents(session, window, boot.rules.domain))
    sample = wanted[:: len(wanted) // SAMPLE]
    began = time.perf_counter()
    for wish in sample:
        calendar = icalendar.Calendar()
        calendar.add("version", "2.0")
        calendar.add("prodid", "-//Nightshift//Nightshift//EN")
        calendar.add("calscale", "GREGORIAN")
        calendar.add("name", wish.name)
        calendar.add("x-wr-calname", wish.name)
        calendar.add_component(vtimezone(boot.rules.zone))
        for index in wish.events:
            calendar.add_component(vevent(contents[school.events[index].id], now))
        calendar.to_ical()
    return (time.perf_counter() - began) * len(wanted) / len(sample)


def vevent(content: Any, now: datetime) -> icalendar.Event:
    """Return an event with the properties that ours have."""
    from services.calendars.ics import words
    from services.school.models import Locale

    german = words(Locale.GERMAN)
    facts = german.affected[content.teaching_affected] + "\n" + german.classes % {"names": ", ".join(content.classes)}
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


def read_and_write(boot: Any) -> float:
    """Read every row that a full sync reads and write the same bytes, with nothing else; return the seconds."""
    from services.calendars.models import Feed
    from services.database import Base

    tables = [
        table for table in Base.metadata.sorted_tables if table.name not in ("job", "job_log", "worker", "paused_queue", "schedule")
    ]
    with boot.read_only() as session:
        contents = [
            (boot.feed_store.path(feed.kind, feed.owner_id), boot.feed_store.read(feed.kind, feed.owner_id))
            for feed in session.execute(select(Feed)).scalars()
        ]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with boot.read_only() as session:
            for table in tables:
                session.execute(select(table)).all()
        for path, content in contents:
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.replace(path)
        times.append(time.perf_counter() - began)
    return sorted(times)[1]
