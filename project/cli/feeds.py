"""`celery -A project feeds …`: build, list and check the calendar files."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import select

from project.bootstrap import Bootstrap, bootstrap
from services.calendars import feeds as feeds_service
from services.calendars import serving
from services.calendars import sync as sync_service
from services.calendars.jobs import SyncCalendars
from services.calendars.models import Feed, FeedKind, SyncRun
from services.errors import ServiceError
from services.jobs import batches, enqueue, rescue
from services.jobs.models import ENDED, Job, JobState

POLL_SECONDS = 0.1

# Without a worker nothing happens: the caller is told so after a while, and in the end not kept waiting.
HINT_AFTER = timedelta(seconds=5)
GIVE_UP_AFTER = timedelta(seconds=60)

COMPLETE, PARTIAL, FAILED = 0, 1, 2


@click.group()
def feeds() -> None:
    """Build, list and check the calendar feeds."""


@feeds.command()
@click.option("--inline", is_flag=True, help="Run in this process, without a worker.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def sync(inline: bool, as_json: bool) -> None:
    """Bring every feed up to date and show how it goes.

    Exit code 0: everything is up to date; 1: some feeds or events failed; 2: the run itself failed.
    """
    boot = bootstrap()
    with boot.unit_of_work() as session:
        run_id = enqueue(session, SyncCalendars(), now=boot.now())
    with _hands(boot, inline=inline):
        state = _follow(boot, run_id, step=_work_off if inline else _wait)
    with boot.read_only() as session:
        record = session.execute(select(SyncRun).where(SyncRun.id == run_id)).scalar_one_or_none()
        job = session.execute(select(Job).where(Job.id == run_id)).scalar_one()
        summary: dict[str, Any] = {"built": 0, "unchanged": 0, "failed": 0, "removed": 0, "seconds": None, "errors": []}
        if record is not None:
            summary |= sync_service.summary(record)
        if state != JobState.SUCCEEDED:
            failure = (job.errors or [{}])[-1].get("message") or f"the job is {job.state}"
            summary |= {"state": "failed", "error": failure}
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _show(summary)
    sys.exit({"complete": COMPLETE, "partial": PARTIAL}.get(str(summary["state"]), FAILED))


def _show(summary: dict[str, Any]) -> None:
    counts = ", ".join(f"{summary[name]} {name}" for name in ("built", "unchanged", "failed", "removed"))
    seconds = "" if summary["seconds"] is None else f" in {summary['seconds']:.1f} s"
    click.echo(f"sync {summary['state']}: {counts}{seconds}")
    for error in summary["errors"]:
        what = error.get("feed") or error.get("event") or error.get("chunk")
        title = f" ({error['title']})" if error.get("title") else ""
        click.echo(f"  {what}{title}: {error['error']}", err=True)
    if "error" in summary:
        click.echo(f"  {summary['error']}", err=True)


def _follow(boot: Bootstrap, run_id: UUID, *, step: Callable[[Bootstrap, UUID], None]) -> JobState:
    """Show the run's progress until it has ended, calling `step` again and again."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began, warned = time.monotonic(), False
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("waiting for a worker", total=None)
        while True:
            with boot.read_only() as session:
                state = session.execute(select(Job.state).where(Job.id == run_id)).scalar_one()
                done, total = batches.progress(session, run_id)
            if state in ENDED:
                return JobState(state)
            if state == JobState.RUNNING:
                progress.update(bar, description="planning")
            if total:
                progress.update(bar, description="building feeds", completed=done, total=total)
            waited = timedelta(seconds=time.monotonic() - began)
            if state == JobState.QUEUED and waited > HINT_AFTER and not _worker_lives(boot):
                if not warned:
                    click.echo("no worker is running: start one (celery -A project worker), or use --inline", err=True)
                warned = True
                if waited > GIVE_UP_AFTER:
                    click.echo("nobody came; the sync is in the ledger, and the next worker does it", err=True)
                    return JobState(state)
            step(boot, run_id)


def _worker_lives(boot: Bootstrap) -> bool:
    with boot.read_only() as session:
        return bool(rescue.alive(session, silent_after=boot.settings.worker_silent_after))


def _hands(boot: Bootstrap, *, inline: bool) -> AbstractContextManager[None]:
    if not inline:
        return nullcontext()
    from project.task import working_here  # noqa: PLC0415 - makes the app, which the other commands do not need

    return working_here(boot)


def _wait(_boot: Bootstrap, _run_id: UUID) -> None:
    time.sleep(POLL_SECONDS)


def _work_off(boot: Bootstrap, run_id: UUID) -> None:
    """Run one job of the batch here, or wait for one that somebody else runs or that is to be retried later."""
    from project.task import run_here  # noqa: PLC0415 - makes the app, which the other commands do not need
    from services.jobs import relay  # noqa: PLC0415

    with boot.unit_of_work() as session:
        relay.promote(session)
        queued = select(Job.id, Job.kind).where((Job.id == run_id) | (Job.parent_id == run_id), Job.state == JobState.QUEUED)
        row = session.execute(queued.limit(1)).one_or_none()
    if row is None:
        time.sleep(POLL_SECONDS)
    else:
        run_here(row.id, row.kind, boot)


@feeds.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--kind", type=click.Choice([kind.value for kind in FeedKind]), help="Only feeds of this kind.")
def list_feeds(as_json: bool, kind: str | None) -> None:
    """List the feeds: kind, owner, path, events, bytes, etag, built_at, revoked_at, error."""
    boot = bootstrap()
    with boot.read_only() as session:
        rows = feeds_service.listed(session, boot.feed_store, kind=None if kind is None else FeedKind(kind))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table("kind", "owner", "path", "events", "bytes", "etag", "built_at", "revoked_at", "error")
    for row in rows:
        table.add_row(*["" if row[column.header] is None else escape(str(row[column.header])) for column in table.columns])  # type: ignore[index]
    Console(width=None if sys.stdout.isatty() else 200).print(table)


kind_argument = click.argument("kind", type=click.Choice([kind.value for kind in FeedKind]))


@feeds.command()
@kind_argument
@click.argument("owner")
def url(kind: str, owner: str) -> None:
    """Print a feed's secret address. OWNER: a user's email, a class's name, a department's name."""
    boot = bootstrap()
    with _refusals(), boot.read_only() as session:
        token = serving.token_of(session, FeedKind(kind), owner)
    click.echo(_address(boot, token))


@feeds.command()
@kind_argument
@click.argument("owner")
def rotate(kind: str, owner: str) -> None:
    """Give a feed a new secret address and print it; the old one is dead at once. Also for one that was revoked."""
    boot = bootstrap()
    with _refusals(), boot.unit_of_work() as session:
        token = serving.rotate(session, FeedKind(kind), owner)
    click.echo(_address(boot, token))


@feeds.command()
@kind_argument
@click.argument("owner")
def revoke(kind: str, owner: str) -> None:
    """Take a feed's address away; `rotate` gives it another."""
    boot = bootstrap()
    with _refusals(), boot.unit_of_work() as session:
        serving.revoke(session, FeedKind(kind), owner, now=boot.now())
    click.echo(f"the feed of {kind} {owner} has no address any more")


def _address(boot: Bootstrap, token: str) -> str:
    return f"{boot.settings.public_url.rstrip('/')}/f/{token}.ics"


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ServiceError as error:
        raise click.ClickException(str(error)) from error


@feeds.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(as_json: bool) -> None:
    """Compare every file with what it should hold, byte by byte. Exit code 1 when one differs; a sync mends it."""
    boot = bootstrap()
    window = boot.rules.window(boot.now())
    with boot.read_only() as session:
        ids = list(session.execute(select(Feed.id).order_by(Feed.id)).scalars())
    checked, differing = 0, []
    for at in range(0, len(ids), sync_service.FEEDS_A_CHUNK):
        with boot.read_only() as session:
            some = ids[at : at + sync_service.FEEDS_A_CHUNK]
            for feed, content in feeds_service.contents(session, window, school_name=boot.rules.school_name, feed_ids=some):
                checked += 1
                found = boot.feed_store.read(feed.kind, feed.owner_id)
                if found != content:
                    path = str(boot.feed_store.path(feed.kind, feed.owner_id))
                    differing.append({"path": path, "problem": "missing" if found is None else "differs"})
    if as_json:
        click.echo(json.dumps({"checked": checked, "differing": differing}))
    else:
        for problem in differing:
            click.echo(f"{problem['path']}: {problem['problem']}")
        click.echo(f"{checked} feeds checked, {len(differing)} differ")
    sys.exit(PARTIAL if differing else COMPLETE)
