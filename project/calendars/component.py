"""What the calendars contribute: the feeds, the jobs that build them, and the routes to them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from nightshift.component import SEVERITY, Answer, Component, Duty, Gauge, Probe, Status
from nightshift.database import Session
from nightshift.errors import InvalidInput
from nightshift.jobs import enqueue
from nightshift.jobs.schedule import Entry
from nightshift.observe.checks import show_time
from nightshift.runtime import Runtime
from sqlalchemy import exists, select

from project.calendars.settings import S3, CalendarSettings
from project.school.settings import SchoolSettings
from services.calendars import changes, feeds, sync
from services.calendars.folders import FolderStore
from services.calendars.jobs import BuildFeeds, FinishSync, RefreshFeeds, SyncCalendars
from services.calendars.models import Feed, FeedKind
from services.calendars.store import FeedStore, StoreAway
from services.calendars.sync import Rules

# One feed in ten: that is no longer the fault of a few events.
MOST_FAILED = 0.1


def make_store(runtime: Runtime) -> FeedStore:
    """Return the place where calendar files are kept."""
    settings = runtime[CalendarSettings]
    if isinstance(settings.feed_store, Path):
        return FolderStore(settings.feed_store)
    # Its library need not be there for a folder.
    from services.calendars.buckets import Bucket, BucketStore  # noqa: PLC0415

    secret = settings.feed_store_secret.get_secret_value()
    if not secret:  # Beat and Flower need none.
        raise InvalidInput("FEED_STORE_SECRET: a bucket needs it")
    name, _, prefix = settings.feed_store.removeprefix(S3).partition("/")
    return BucketStore(
        Bucket(
            name,
            prefix.strip("/"),
            endpoint=settings.feed_store_endpoint.rstrip("/"),
            region=settings.feed_store_region,
            key=settings.feed_store_key,
            secret=secret,
        )
    )


def make_rules(runtime: Runtime) -> Rules:
    """Return the school's settings that calendars depend on."""
    school, calendar = runtime[SchoolSettings], runtime[CalendarSettings]
    return Rules(
        school_name=school.school_name,
        domain=school.school_domain,
        zone=school.school_timezone,
        days_past=calendar.feed_days_past,
        days_ahead=calendar.feed_days_ahead,
    )


def make_schedule(runtime: Runtime) -> Sequence[Entry]:
    """Return the calendars' recurring job."""
    every, zone = runtime[CalendarSettings].sync_every, runtime[SchoolSettings].school_timezone
    return [
        Entry(
            "calendars.sync",
            SyncCalendars(),
            every,
            zone,
            missed="latest",
            overdue_at_start=True,
            find_last_good=sync.find_last_good,
        )
    ]


def enqueue_refresh(runtime: Runtime) -> None:
    """Enqueue the refresh that changes in the database call for. Any number of keepers make one."""
    with runtime.read_only() as session:
        if not changes.has_changes(session):
            return
    with runtime.unit_of_work() as session:
        enqueue(session, RefreshFeeds(), now=runtime.now(), delay=changes.COLLECT_FOR)


def check_sync(runtime: Runtime, session: Session) -> Answer:
    """Fail when the last good sync is too old, or the last one failed for many feeds.

    Warn when the last one left something out. A good sync is one whose record says so: the job
    succeeds also where feeds failed.
    """
    at, last = sync.find_last_good(session), sync.find_last_run(session)
    good = f"last good run {show_time(at)}" if at else "no good run yet"
    late = Status.OK
    if runtime[CalendarSettings].is_late(at, now=runtime.now()):
        late = Status.FAIL
    if last is None or not (last.failed or last.errors):
        return late, good
    total = last.built + last.unchanged + last.failed
    detail = f"{last.failed} of {total} feeds failed in the last run, {len(last.errors)} errors"
    return max(late, _judge(last.failed, total), key=SEVERITY.__getitem__), f"{detail}; {good}"


def _judge(failed: int, total: int) -> Status:
    return Status.FAIL if failed > MOST_FAILED * total else Status.WARN


def check_failed_feeds(_runtime: Runtime, session: Session) -> Answer:
    """Warn of feeds whose last build failed; fail when they are many."""
    counts = feeds.count_feeds(session)
    said = [f"{kind}: {bad} of {total}" for kind, (total, bad, *_) in counts.items() if bad]
    if not said:
        return Status.OK, "none"
    failed, total = (sum(count[place] for count in counts.values()) for place in (1, 0))
    return _judge(failed, total), ", ".join(said)


def check_addresses(_runtime: Runtime, session: Session) -> Answer:
    """Fail, by what it raises, when the web server cannot find a feed by its address."""
    there = session.execute(select(exists().where(Feed.token.is_not(None)))).scalar_one()
    return Status.OK, "can be read" if there else "none yet"


def check_full_feeds(_runtime: Runtime, session: Session) -> Answer:
    """Warn of feeds that are too long for calendar programs, so that later events are left out."""
    full = [f"{kind}: {number}" for kind, number in sorted(feeds.count_full(session).items())]
    return Status.WARN if full else Status.OK, ", ".join(full) or "none"


def check_store_readable(runtime: Runtime, _session: Session) -> Answer:
    """Fail when the web server cannot read the store."""
    try:
        return Status.OK, runtime[FeedStore].check_readable()
    except StoreAway as error:
        return Status.FAIL, str(error)


def check_store(runtime: Runtime, _session: Session) -> Answer:
    """Fail when the store cannot be written, or its disk is full."""
    try:
        return Status.OK, runtime[FeedStore].check_writable()
    except StoreAway as error:
        return Status.FAIL, str(error)


def read_metrics(_runtime: Runtime, session: Session) -> Iterator[Gauge]:
    """Yield how many feeds there are, and how many failed."""
    counts = dict.fromkeys(FeedKind, (0, 0, 0, 0)) | feeds.count_feeds(session)
    totals = {(str(kind),): total for kind, (total, *_) in counts.items()}
    failed = {(str(kind),): bad for kind, (_, bad, *_) in counts.items()}
    yield Gauge("feeds", "Calendar feeds.", ("kind",), totals)
    yield Gauge("failed_feeds", "Feeds whose last build failed.", ("kind",), failed)


calendars = Component(
    name="calendars",
    models=("services.calendars.models",),
    migrations="school",
    kinds=(SyncCalendars, BuildFeeds, FinishSync, RefreshFeeds),
    tasks=("tasks.calendars",),
    settings=CalendarSettings,
    schedule=make_schedule,
    provides={FeedStore: make_store, Rules: make_rules},
    probes=(
        Probe(
            "sync",
            check_sync,
            "start beat and a worker, or run `celery -A project feeds sync --inline`, which says"
            " what fails",
            told=True,
        ),
        Probe(
            "failed feeds",
            check_failed_feeds,
            "`celery -A project feeds list` says why; each keeps its last good file",
            told=True,
        ),
        Probe(
            "addresses",
            check_addresses,
            "`alembic upgrade heads` makes the tables",
            ready=True,
        ),
        Probe(
            "full feeds",
            check_full_feeds,
            "the events furthest ahead are left out (`celery -A project feeds list`): shorten"
            " descriptions, or lower FEED_DAYS_AHEAD",
        ),
        Probe(
            "store",
            check_store_readable,
            "let the web server read FEED_STORE: a folder, or a bucket that answers",
            ready=True,
            ledger=False,
        ),
        Probe(
            "feed store",
            check_store,
            "give the process's user a writable folder with 200 MB free, or a bucket that answers:"
            " FEED_STORE",
            ledger=False,
        ),
    ),
    metrics=(read_metrics,),
    duties=(Duty("notice of changes", enqueue_refresh),),
    routes="project.calendars.routes:make_routes",
    front="project.calendars.pages:show_calendars",
    desk="project.calendars.desk:make_part",
    commands={"feeds": "project.calendars.cli:feeds"},
    after_restore=("feeds take-stamps {replaced}", "feeds sync --inline"),
)
