"""`celery -A project jobs …`: show the ledger's jobs, and change them."""

import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import click
from rich.console import RenderableType
from rich.live import Live
from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import OperationalError

from nightshift.celery.app import App
from nightshift.celery.task import run_here, working_here
from nightshift.cli import job_tables
from nightshift.cli.boundary import LIMIT
from nightshift.cli.output import (
    as_json_option,
    change_each,
    end_with,
    make_console,
    pass_app,
    pass_runtime,
    print_json,
    print_table,
)
from nightshift.component import Composition
from nightshift.database import Session, after, read_clock, resolve, seconds_between, utc_now
from nightshift.errors import Conflict, first_line
from nightshift.jobs import care, insight, relay
from nightshift.jobs.models import SCHEDULED, Job, JobLog, JobState
from nightshift.observe.masks import Mask
from nightshift.runtime import Runtime

WATCH_SECONDS = 1.0

# `work-off` waits for so many jobs that a duty has just enqueued, when they are due so soon.
SOON = timedelta(seconds=10)
MOST_WAITED_FOR = 1_000

# Two commands that change the same batches at once can deadlock. The database aborts one of them,
# and its change is tried again.
TRIES = 3

T = TypeVar("T")

watch_option = click.option("--watch", is_flag=True, help="Repeat every second, until Ctrl-C.")
ids_argument = click.argument("ids", nargs=-1, required=True, metavar="ID…")


@click.group()
def jobs() -> None:
    """Show the ledger's jobs, and change them. The first digits of an ID are enough."""


@jobs.command("list")
@click.option("--kind", help="Only jobs of this kind.")
@click.option("--queue", help="Only jobs of this queue.")
@click.option(
    "--state",
    type=click.Choice(JobState, case_sensitive=False),
    help="Only jobs in this state.",
)
@click.option("--limit", default=50, show_default=True, type=LIMIT)
@as_json_option
@watch_option
@pass_runtime
def list_jobs(
    runtime: Runtime,
    *,
    as_json: bool,
    watch: bool,
    limit: int,
    state: JobState | None,
    **wanted: Any,
) -> None:
    """List jobs, newest first."""
    _require_known(runtime, **wanted)

    def read(session: Session) -> Any:
        found = insight.find_jobs(session, **wanted, state=state, limit=limit)
        return [_columns(job, mask) for job in found]

    mask = Mask(runtime)
    _present(runtime, read, job_tables.make_jobs_table, as_json=as_json, watch=watch)


@jobs.command()
@click.argument("job_id", metavar="ID")
@as_json_option
@pass_runtime
def show(runtime: Runtime, job_id: str, as_json: bool) -> None:
    """Show everything about one job: times, attempts, progress, log, parent and children."""

    def read(session: Session) -> Any:
        details = insight.read_details(session, resolve(session, Job, job_id))
        return {
            **_columns(details.job, mask),
            "log": [_columns(line, mask) for line in details.lines],
            "parent": None if details.parent is None else _columns(details.parent, mask),
            "children_by_state": details.children_by_state,
            "children_newest": [_columns(child, mask) for child in details.children],
        }

    mask = Mask(runtime)
    _present(runtime, read, job_tables.make_job_page, as_json=as_json, watch=False)


@jobs.command()
@ids_argument
@pass_runtime
def cancel(runtime: Runtime, ids: tuple[str, ...]) -> None:
    """Cancel jobs that have not ended, also running ones, with all their open children."""
    _change_each(runtime, ids, "cancelled", care.cancel)


@jobs.command()
@ids_argument
@pass_runtime
def retry(runtime: Runtime, ids: tuple[str, ...]) -> None:
    """Run jobs that have ended again, with all their attempts."""
    change = partial(care.retry, kinds=runtime.kinds, now=runtime.now())
    _change_each(runtime, ids, "scheduled", change)


@jobs.command("retry-failed")
@click.argument("kind")
@pass_runtime
def retry_failed(runtime: Runtime, kind: str) -> None:
    """Run every failed job of a kind again."""
    _require_known(runtime, kind=kind)
    now = _write(runtime, read_clock)
    change = partial(care.retry_failed, kind=kind, kinds=runtime.kinds, now=now)
    scheduled, after = _write(runtime, change)
    while after is not None:
        number, after = _write(runtime, partial(change, after=after))
        scheduled += number
    click.echo(f"{scheduled} jobs scheduled")


@jobs.command()
@ids_argument
@pass_runtime
def hold(runtime: Runtime, ids: tuple[str, ...]) -> None:
    """Keep jobs from starting until they are released."""
    _change_each(runtime, ids, "held", care.hold)


@jobs.command()
@ids_argument
@pass_runtime
def release(runtime: Runtime, ids: tuple[str, ...]) -> None:
    """Let held jobs run when they are due."""
    _change_each(runtime, ids, "released", care.release)


@jobs.command()
@click.argument("queue")
@pass_runtime
def pause(runtime: Runtime, queue: str) -> None:
    """Start no job of a queue until it is resumed; running jobs go on."""
    _require_known(runtime, queue=queue)
    done = _write(runtime, partial(care.pause, queue=queue, now=runtime.now()))
    click.echo(f"{queue} {'is paused' if done else 'was paused already'}")


@jobs.command()
@click.argument("queue")
@pass_runtime
def resume(runtime: Runtime, queue: str) -> None:
    """Start the jobs of a paused queue again."""
    _require_known(runtime, queue=queue)
    done = _repeat(runtime, partial(care.resume, queue=queue))
    click.echo(f"{queue} {'is resumed' if done else 'was not paused'}")


@jobs.command()
@click.option("--queue", help="Only jobs of this queue.")
@click.option("--kind", help="Only jobs of this kind.")
@pass_runtime
def clear(runtime: Runtime, queue: str | None, kind: str | None) -> None:
    """Cancel every job of a queue or kind that has not started."""
    if queue is None and kind is None:
        raise click.UsageError("say what to clear: --queue or --kind, or both")
    _require_known(runtime, queue=queue, kind=kind)
    cleared = _repeat(runtime, partial(care.clear, queue=queue, kind=kind))
    click.echo(f"{cleared} jobs cancelled")


@jobs.command()
@click.option("--queue", help="Only jobs of this queue.")
@pass_app
def work_off(app: App, queue: str | None) -> None:
    """Run due jobs in this process, without a worker or broker, until none is due.

    The components' duties of a keeper are performed too, and the jobs that they enqueue are waited
    for. Time limits and the limits of kinds do not hold here.
    """
    # A supervisor's SIGTERM is as good as Ctrl-C: the job that runs is released.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _require_known(app.runtime, queue=queue)
    which = [] if queue is None else [Job.queue == queue]
    tried: list[UUID] = []
    with working_here(app):
        troubles = _perform_duties(app)
        while _run_due(app, which, tried):
            troubles = _perform_duties(app)
    if tried:
        ids = ", ".join(map(str, tried))
        troubles.append(f"{len(tried)} jobs are due but could not be started here: {ids}")
    if troubles:
        end_with("\n".join(troubles))


def _perform_duties(app: App) -> list[str]:
    """Perform the components' duties, as a keeper does, and return what failed.

    Wait for the jobs that they have enqueued for SOON: a duty collects changes for some seconds.
    """
    troubles, before = [], _find_due_soon(app.runtime)
    for duty in app.composition.duties:
        try:
            duty.run(app.runtime)
        except Exception as error:  # noqa: BLE001 - the jobs are still to run
            troubles.append(f"a duty failed: {duty.name}: {first_line(error)}")
    enqueued = _find_due_soon(app.runtime)
    time.sleep(max((enqueued[one] for one in enqueued.keys() - before.keys()), default=0))
    return troubles


def _find_due_soon(runtime: Runtime) -> dict[UUID, float]:
    """Return the jobs that are scheduled for SOON, with the seconds until then."""
    left = seconds_between(utc_now(), Job.run_at)
    soon = select(Job.id, left).where(SCHEDULED, Job.run_at <= after(SOON))
    with runtime.read_only() as session:
        rows = session.execute(soon.order_by(Job.run_at).limit(MOST_WAITED_FOR))
        return {job_id: max(0.0, seconds) for job_id, seconds in rows}


def _run_due(app: App, which: list[ColumnElement[bool]], tried: list[UUID]) -> int:
    """Run the jobs that are due, and return how many were run; add to `tried` those that cannot."""
    runtime, ran = app.runtime, 0
    while row := _write(runtime, lambda s: relay.find_next_due(s, *which, without=tried)):
        # A job that cannot be claimed, or whose kind is not known here, stays queued: without
        # this list it would be tried for ever.
        tried.append(row.id)
        run_here(app, row.id, row.kind)
        with runtime.read_only() as session:
            state = session.execute(select(Job.state).where(Job.id == row.id)).scalar()
        click.echo(f"{row.id}  {row.kind}  {state}")
        if state != JobState.QUEUED:
            tried.pop()
            ran += 1
    return ran


@jobs.command()
@as_json_option
@watch_option
@pass_runtime
def stats(runtime: Runtime, as_json: bool, watch: bool) -> None:
    """Count jobs by kind, queue and state; show waiting queues, and the jobs that ended lately."""
    _present(
        runtime, insight.read_stats, job_tables.make_stats_tables, as_json=as_json, watch=watch
    )


@jobs.command()
@pass_runtime
def prune(runtime: Runtime) -> None:
    """Delete jobs that ended longer ago than JOBS_KEEP_SUCCEEDED and JOBS_KEEP_FAILED say."""
    settings = runtime.settings
    pruned = care.prune_all(
        runtime.unit_of_work,
        succeeded=settings.jobs_keep_succeeded,
        failed=settings.jobs_keep_failed,
        now=runtime.now(),
    )
    click.echo(f"{pruned} jobs deleted")


def _require_known(runtime: Runtime, *, kind: str | None = None, queue: str | None = None) -> None:
    """End with exit code 1 for a kind or queue that neither a component nor the ledger has.

    Most likely it is misspelt.
    """
    names = (
        ("kind", Job.kind, kind, sorted(runtime.kinds)),
        ("queue", Job.queue, queue, runtime[Composition].queues),
    )
    for name, column, value, known in names:
        if value is None or value in known:
            continue
        with runtime.read_only() as session:
            found = session.execute(select(Job.id).where(column == value).limit(1)).one_or_none()
        if found is None:
            end_with(f"there is no {name} {value!r}; there are: {', '.join(known)}")


def _repeat(runtime: Runtime, change: Callable[[Session], int]) -> int:
    """Make a change until it returns 0, each time in a transaction of its own; return the sum."""
    changed = 0
    while number := _write(runtime, change):
        changed += number
    return changed


def _write(runtime: Runtime, change: Callable[[Session], T], *, tries: int = TRIES) -> T:
    """Make a change in a transaction of its own; again when the database aborts it."""
    try:
        with runtime.unit_of_work() as session:
            return change(session)
    except OperationalError as error:
        if tries == 1 or "deadlock" not in str(error):
            raise
    return _write(runtime, change, tries=tries - 1)


def _change_each(
    runtime: Runtime,
    ids: Iterable[str],
    done: str,
    change: Callable[[Session, list[UUID]], list[UUID]],
) -> None:
    """Change the jobs one by one, each in a transaction of its own."""

    def one(session: Session, prefix: str) -> str:
        job_id = resolve(session, Job, prefix)
        changed = change(session, [job_id])
        if job_id not in changed:
            state = session.execute(select(Job.state).where(Job.id == job_id)).scalar()
            raise Conflict(f"job {job_id} is {state}: not {done}")
        others = len(changed) - 1
        return f"{job_id} {done}" + (f", with {others} of its batch" if others else "")

    change_each(ids, lambda prefix: _write(runtime, partial(one, prefix=prefix)))


def _present(
    runtime: Runtime,
    read: Callable[[Session], Any],
    table: Callable[[Any], RenderableType],
    *,
    as_json: bool,
    watch: bool,
) -> None:
    """Show what `read` returns, once or every second; as JSON then in one line each time."""

    def look() -> Any:
        with runtime.read_only() as session:
            return read(session)

    if not watch:
        print_json(look()) if as_json else print_table(table(look()))
        return
    live = Live(console=make_console(), auto_refresh=False)
    with suppress(KeyboardInterrupt), nullcontext() if as_json else live:
        while True:
            if as_json:
                print_json(look(), indent=None)
                sys.stdout.flush()
            else:
                live.update(table(look()), refresh=True)
            time.sleep(WATCH_SECONDS)


def _columns(row: Job | JobLog, mask: Mask) -> dict[str, Any]:
    return {column.key: mask.value(getattr(row, column.key)) for column in row.__table__.columns}
