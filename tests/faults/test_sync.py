"""kill -9 in the middle of calendars.sync, at random moments."""

import itertools
import random
import threading
import time
from datetime import UTC, datetime

import pytest
from sqlalchemy import select, update

from services.calendars import feeds
from services.calendars.jobs import SyncCalendars
from services.calendars.models import Feed, SyncRun
from services.jobs import enqueue, enqueue_many
from services.school import demo
from services.school.models import Event
from tests.faults.conftest import kill_something
from tests.worker import probe
from tests.worker.conftest import Installation, any_installation

KILLS = 20
QUICK = {"heartbeat_interval": "PT1S", "worker_silent_after": "PT5S", "relay_interval": "PT0.2S", "resend_after": "PT2S"}


class Reader(threading.Thread):
    """A subscriber that reads all files again and again, and keeps what was not whole."""

    def __init__(self, installation: Installation) -> None:
        super().__init__(daemon=True)
        self.root = installation.boot.feed_store.root
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
                if not (content.startswith(b"BEGIN:VCALENDAR\r\n") and content.endswith(b"END:VCALENDAR\r\n")):
                    self.torn.append(str(path))
            time.sleep(0.2)


@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_killed_sync_ends_complete(tmp_path, kind):
    with any_installation(kind, tmp_path, **QUICK) as installation:
        boot = installation.boot
        now = datetime.now(UTC)
        with boot.unit_of_work() as session:
            size = {"users": 2000, "classes": 80, "departments": 8, "events": 1000}
            demo.generate(session, **size, seed=1, zone=boot.rules.zone, now=now, today=now.date())
        worker = installation.worker()
        # A worker whose children are killed before it stands gives up, and its supervisor starts it again. Here is none.
        with boot.unit_of_work() as session:
            job_id = enqueue(session, probe.Leave(), now=boot.now())
        installation.ended(job_id)
        reader = Reader(installation)
        reader.start()
        killed = {"child": 0, "worker": 0}
        in_time = 0
        for number in range(KILLS):
            with boot.unit_of_work() as session:
                # Every feed is out of date: all titles changed.
                session.execute(update(Event).values(title=Event.title + "."))
                run_id = enqueue(session, SyncCalendars(), now=boot.now())
            time.sleep(random.uniform(0, 1.5))
            in_time += installation.job(run_id).finished_at is None
            what, worker = kill_something(installation, worker)
            killed[what] += 1
            job = installation.ended(run_id, seconds=120)
            assert job.state == "succeeded", installation.logs()
            with boot.read_only() as session:
                run = session.execute(select(SyncRun).where(SyncRun.id == run_id)).scalar_one()
                assert (run.failed, run.errors) == (0, []), number
                assert run.built + run.unchanged == session.query(Feed).count()
        reader.stopping.set()
        reader.join()
        with boot.read_only() as session:
            ids = list(session.execute(select(Feed.id)).scalars())
            wanted = list(feeds.contents(session, boot.rules.window(boot.now()), school_name="Probe", feed_ids=ids))
            runs = session.execute(select(SyncRun).order_by(SyncRun.started_at)).scalars().all()
        differing = [feed.id for feed, content in wanted if boot.feed_store.read(feed.kind, feed.owner_id) != content]
        assert all(earlier.finished_at <= later.started_at for earlier, later in itertools.pairwise(runs))
        print(
            f"\n{kind}: {KILLS} syncs, killed {killed}, {in_time} of them before the end; {len(wanted)} feeds, {len(differing)} differ,"
        )
        print(f"  {reader.reads} reads, {len(reader.torn)} torn; {len(runs)} runs, none beside another")
        assert (differing, reader.torn, len(runs)) == ([], [], KILLS)


@pytest.mark.parametrize("kind", ["servers", "embedded"])
def test_short_lived_children_never_hang(tmp_path, kind):
    jobs = 10_000 if kind == "servers" else 1_000
    with any_installation(kind, tmp_path, **QUICK) as installation:
        installation.worker("--max-tasks-per-child=5")
        with installation.boot.unit_of_work() as session:
            enqueue_many(session, [probe.Leave(number=n) for n in range(jobs)], now=installation.boot.now())
        began = time.monotonic()
        installation.until(lambda: installation.open_jobs() == 0, seconds=1200)
        print(f"\n{kind}: {jobs} jobs with max_tasks_per_child=5 in {time.monotonic() - began:.0f} s")
        assert installation.effects() == jobs
