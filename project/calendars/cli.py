"""`celery -A project feeds …`: build, list and check the calendar files."""

import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from nightshift.celery.app import App
from nightshift.celery.task import run_here, working_here
from nightshift.cli.output import (
    as_json_option,
    end_with,
    pass_app,
    pass_runtime,
    print_json,
    print_rows,
)
from nightshift.database import batched
from nightshift.jobs import batches, enqueue, relay, rescue
from nightshift.jobs.models import ENDED, Job, JobState
from nightshift.runtime import Runtime
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from sqlalchemy import inspect, make_url, select

from services.calendars import (
    feeds as feeds_service,
    revisions,
    serving,
    sync as sync_service,
)
from services.calendars.jobs import SyncCalendars
from services.calendars.models import EventStamp, Feed, FeedKind, SyncRun
from services.calendars.store import FeedStore, StoreAway, StoreUnavailable
from services.calendars.sync import Rules

POLL_SECONDS = 0.1

# Without a worker nothing happens: the caller is told so after a while, and waits no longer in the
# end.
HINT_AFTER = timedelta(seconds=5)
GIVE_UP_AFTER = timedelta(seconds=60)

COMPLETE, PARTIAL, FAILED = 0, 1, 2
FEED_KINDS = click.Choice(FeedKind, case_sensitive=False)
LISTED = (
    "kind", "owner", "events", "left_out", "bytes", "built_at", "revoked_at", "path", "etag",
    "error",
)  # fmt: skip
GIVES_WAY = ("etag", "path", "bytes", "left_out")

kind_argument = click.argument("kind", type=FEED_KINDS)


@click.group()
def feeds() -> None:
    """Build, list and check the calendar feeds."""


@feeds.command()
@click.option("--inline", is_flag=True, help="Run in this process, without a worker.")
@as_json_option
@pass_app
def sync(app: App, inline: bool, as_json: bool) -> None:
    """Bring every feed up to date and show how it goes.

    Exit code 0: everything is up to date; 1: some feeds or events failed; 2: the run itself failed.
    """
    runtime = app.runtime
    with runtime.unit_of_work() as session:
        run_id = enqueue(session, SyncCalendars(), now=runtime.now())
    with working_here(app) if inline else nullcontext():
        state = _follow(app, run_id, inline=inline)
    summary = _summarise(runtime, run_id, state)
    if as_json:
        print_json(summary, indent=None)
    else:
        _print_summary(summary)
    sys.exit({"complete": COMPLETE, "partial": PARTIAL}.get(str(summary["state"]), FAILED))


def _summarise(runtime: Runtime, run_id: UUID, state: JobState) -> dict[str, Any]:
    with runtime.read_only() as session:
        record, job = session.get(SyncRun, run_id), session.get_one(Job, run_id)
        summary: dict[str, Any] = dict.fromkeys(("built", "unchanged", "failed", "removed"), 0)
        summary |= {"seconds": None, "errors": []}
        if record is not None:
            summary |= sync_service.summarise(record)
        if state != JobState.SUCCEEDED:
            failure = (job.errors or [{}])[-1].get("message") or f"the job is {job.state}"
            summary |= {"state": "failed", "error": failure}
    return summary


def _print_summary(summary: dict[str, Any]) -> None:
    names = ("built", "unchanged", "failed", "removed")
    counts = ", ".join(f"{summary[name]} {name}" for name in names)
    seconds = "" if summary["seconds"] is None else f" in {summary['seconds']:.1f} s"
    click.echo(f"sync {summary['state']}: {counts}{seconds}")
    for error in summary["errors"]:
        what = error.get("feed") or error.get("event") or error.get("chunk")
        title = f" ({error['title']})" if error.get("title") else ""
        click.echo(f"  {what}{title}: {error['error']}", err=True)
    if "error" in summary:
        click.echo(f"  {summary['error']}", err=True)


def _follow(app: App, run_id: UUID, *, inline: bool) -> JobState:
    """Show the run's progress until it has ended. With `inline`, run its jobs in this process."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    began, warned = time.monotonic(), False
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("waiting for a worker", total=None)
        while True:
            with app.runtime.read_only() as session:
                state = session.execute(select(Job.state).where(Job.id == run_id)).scalar_one()
                done, total = batches.count_children(session, run_id)
            if state in ENDED:
                return JobState(state)
            if state == JobState.RUNNING:
                progress.update(bar, description="planning")
            if total:
                progress.update(bar, description="building feeds", completed=done, total=total)
            waited = timedelta(seconds=time.monotonic() - began)
            late = state == JobState.QUEUED and waited > HINT_AFTER
            if late and not _worker_lives(app.runtime):
                if not warned:
                    hint = "start one (celery -A project worker), or use --inline"
                    click.echo(f"no worker is running: {hint}", err=True)
                warned = True
                if waited > GIVE_UP_AFTER:
                    click.echo("no worker picked the sync up; it is still queued", err=True)
                    return JobState(state)
            if not inline or not _run_next(app, run_id):
                time.sleep(POLL_SECONDS)


def _worker_lives(runtime: Runtime) -> bool:
    silent_after = runtime.settings.worker_silent_after
    with runtime.read_only() as session:
        return bool(rescue.find_living_workers(session, silent_after=silent_after))


def _run_next(app: App, run_id: UUID) -> bool:
    """Run one job of the batch here. Return False when all run elsewhere or are due later."""
    with app.runtime.unit_of_work() as session:
        row = relay.find_next_due(session, (Job.id == run_id) | (Job.parent_id == run_id))
    if row is not None:
        run_here(app, row.id, row.kind)
    return row is not None


@feeds.command("list")
@as_json_option
@click.option("--kind", type=FEED_KINDS, help="Only feeds of this kind.")
@pass_runtime
def list_feeds(runtime: Runtime, as_json: bool, kind: FeedKind | None) -> None:
    """List the feeds: whose they are, what is in them, when they were built, and errors."""
    with runtime.read_only() as session:
        rows = feeds_service.list_feeds(session, runtime[FeedStore], kind=kind)
    print_rows(rows, LISTED, as_json=as_json, gives_way=GIVES_WAY)


@feeds.command()
@kind_argument
@click.argument("owner")
@pass_runtime
def url(runtime: Runtime, kind: FeedKind, owner: str) -> None:
    """Print a feed's secret address.

    OWNER: a user's email, a class's name, a department's name.
    """
    with runtime.read_only() as session:
        token = serving.find_token(session, kind, owner)
    click.echo(_address(runtime, token))


@feeds.command()
@kind_argument
@click.argument("owner")
@pass_runtime
def rotate(runtime: Runtime, kind: FeedKind, owner: str) -> None:
    """Give a feed a new secret address and print it; the old one is dead at once.

    Also for a feed that was revoked.
    """
    with runtime.unit_of_work() as session:
        token = serving.rotate(session, kind, owner)
    click.echo(_address(runtime, token))


@feeds.command()
@kind_argument
@click.argument("owner")
@pass_runtime
def revoke(runtime: Runtime, kind: FeedKind, owner: str) -> None:
    """Take a feed's address away; `rotate` gives it another."""
    with runtime.unit_of_work() as session:
        owner_id = serving.revoke(session, kind, owner, now=runtime.now())
    click.echo(f"the feed of {kind} {owner} has no address any more")
    try:
        runtime[FeedStore].remove(kind, owner_id)
    except (StoreAway, StoreUnavailable) as error:
        click.echo(f"its file stays until the next sync: {error}", err=True)


def _address(runtime: Runtime, token: str) -> str:
    return f"{runtime.settings.public_url.rstrip('/')}/f/{token}.ics"


@feeds.command()
@as_json_option
@pass_runtime
def verify(runtime: Runtime, as_json: bool) -> None:
    """Compare every file with what it should hold, byte by byte.

    Exit code 1 when one differs; a sync corrects it.
    """
    rules, store = runtime[Rules], runtime[FeedStore]
    window = rules.window(runtime.now())
    with runtime.read_only() as session:
        ids = list(session.execute(select(Feed.id).order_by(Feed.id)).scalars())
    checked, differing = 0, []
    for some in batched(ids, sync_service.FEEDS_A_CHUNK):
        with runtime.read_only() as session:
            wanted = feeds_service.read_contents(
                session, window, school_name=rules.school_name, feed_ids=some
            )
            for feed, content in wanted:
                checked += 1
                written = store.read(feed.kind, feed.owner_id)
                if written != content:
                    path = store.locate(feed.kind, feed.owner_id)
                    problem = "missing" if written is None else "differs"
                    differing.append({"path": path, "problem": problem})
    if as_json:
        print_json({"checked": checked, "differing": differing}, indent=None)
    else:
        for found in differing:
            click.echo(f"{found['path']}: {found['problem']}")
        click.echo(f"{checked} feeds checked, {len(differing)} differ")
    sys.exit(PARTIAL if differing else COMPLETE)


@feeds.command("take-stamps")
@click.argument("database")
@pass_runtime
def take_stamps(runtime: Runtime, database: str) -> None:
    """Let no event look older than in DATABASE, which a restored backup has replaced.

    Calendar programs ignore an event whose SEQUENCE or LAST-MODIFIED is lower than what they
    remember. `make restore` runs this, then a sync. DATABASE: a name on the same server, or an
    SQLite file.
    """
    url = make_url(runtime.settings.database_url).set(database=database)
    if url.get_backend_name() == "sqlite" and not Path(database).is_file():
        end_with(f"DATABASE: there is no file {database!r}", code=2)
    there = url.render_as_string(hide_password=False)
    former = Runtime(runtime.settings.model_copy(update={"database_url": there}))
    try:
        with former.read_only() as session:
            known = inspect(session.connection()).has_table(EventStamp.__tablename__)
            stamps = revisions.read_stamps(session) if known else {}
    finally:
        former.close()
    with runtime.unit_of_work() as session:
        taken = revisions.take_stamps(session, stamps, now=runtime.now())
    click.echo(f"{taken} of {len(stamps)} events had been changed since the backup")
