"""kill -9 in the middle of calendars.sync, at random moments."""

import itertools
import random
import threading
import time
from datetime import UTC, datetime

import pytest
from fault_processes import kill_something
from installations import Installation
from nightshift.jobs import enqueue
from sqlalchemy import select, update

from examples import made_up_school
from services.calendars import feeds
from services.calendars.jobs import SyncCalendars
from services.calendars.models import Feed, SyncRun
from services.calendars.store import FeedStore
from services.calendars.sync import Rules
from services.mail.jobs import SweepMail
from services.school.models import Event
from tests.installing import install

KILLS = 1


class Reader(threading.Thread):
    """A subscriber that reads all files again and again, and keeps what was not whole."""

    def __init__(self, installation: Installation) -> None:
        super().__init__(daemon=True)
        self.root = installation.runtime[FeedStore].root
        self.stopping = threading.Event()
        self.torn: list[str] = []
        self.reads = 0

    def run(self) -> None:
        while not self.stopping.is_set():
            for path in self.root.glob("*/*.ics"):
                try:
                    content = path.read_bytes()
                except FileNotFoundError:
                    continue
                self.reads += 1
                if not (
                    content.startswith(b"BEGIN:VCALENDAR\r\n")
                    and content.endswith(b"END:VCALENDAR\r\n")
                ):
                    self.torn.append(str(path))
            time.sleep(0.2)


@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_killed_sync_ends_complete(tmp_path, kind):
    with install(kind, tmp_path, resend_after="PT2S") as installation:
        runtime = installation.runtime
        rules, store = runtime[Rules], runtime[FeedStore]
        now = datetime.now(UTC)
        with runtime.unit_of_work() as session:
            size = {"users": 2000, "classes": 80, "departments": 8, "events": 1000}
            made_up_school.generate(
                session, **size, seed=1, zone=rules.zone, now=now, today=now.date()
            )
        worker = installation.worker()
        # A worker whose children are killed while it starts gives up. A supervisor would start it
        # again; here is none.
        with runtime.unit_of_work() as session:
            job_id = enqueue(session, SweepMail(), now=runtime.now())
        installation.ended(job_id)
        reader = Reader(installation)
        reader.start()
        killed = {"child": 0, "worker": 0}
        in_time = 0
        for number in range(KILLS):
            with runtime.unit_of_work() as session:
                # Every feed is out of date: all titles changed.
                session.execute(update(Event).values(title=Event.title + "."))
                run_id = enqueue(session, SyncCalendars(), now=runtime.now())
            time.sleep(random.uniform(0, 1.5))
            in_time += installation.job(run_id).finished_at is None
            what, worker = kill_something(installation, worker)
            killed[what] += 1
            job = installation.ended(run_id, seconds=120)
            assert job.state == "succeeded", installation.logs()
            with runtime.read_only() as session:
                run = session.execute(select(SyncRun).where(SyncRun.id == run_id)).scalar_one()
                assert (run.failed, run.errors) == (0, []), number
                assert run.built + run.unchanged == session.query(Feed).count()
        reader.stopping.set()
        reader.join()
        with runtime.read_only() as session:
            ids = list(session.execute(select(Feed.id)).scalars())
            window = rules.window(runtime.now())
            wanted = list(feeds.read_contents(session, window, school_name="Probe", feed_ids=ids))
            runs = session.execute(select(SyncRun).order_by(SyncRun.started_at)).scalars().all()
        differing = [
            feed.id for feed, content in wanted if store.read(feed.kind, feed.owner_id) != content
        ]
        assert all(
            earlier.finished_at <= later.started_at for earlier, later in itertools.pairwise(runs)
        )
        print(
            f"\n{kind}: {KILLS} syncs, killed {killed}, {in_time} of them before the end;"
            f" {len(wanted)} feeds, {len(differing)} differ,"
        )
        print(f"  {reader.reads} reads, {len(reader.torn)} torn; {len(runs)} runs, none at once")
        assert (differing, reader.torn, len(runs)) == ([], [], KILLS)
