"""`celery -A project jobs …`: see the ledger's jobs, and take care of them."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from datetime import datetime
from functools import partial
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import click
from rich.console import Console, RenderableType
from rich.live import Live
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from project.bootstrap import bootstrap
from project.cli import job_tables
from services.database import Session, resolve, utc_now
from services.errors import Conflict, ServiceError
from services.jobs import care, insight, relay
from services.jobs.args import KINDS
from services.jobs.models import Job, JobLog, JobState, PausedQueue

WATCH_SECONDS = 1.0

# Two people who change the same batches at once can deadlock; the database stops one of them, who just tries again.
TRIES = 3

# Into a file or a pipe nothing is folded.
WIDE = 200

T = TypeVar("T")

as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
watch_option = click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
ids_argument = click.argument("ids", nargs=-1, required=True, metavar="ID…")


@click.group()
def jobs() -> None:
    """See the ledger's jobs, and take care of them. An ID may be given by its first digits."""


@jobs.command("list")
@click.option("--kind", help="Only jobs of this kind.")
@click.option("--queue", help="Only jobs of this queue.")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1))
@as_json_option
@watch_option
def list_jobs(  # noqa: PLR0917 - click passes them by name
    kind: str | None, queue: str | None, state: str | None, limit: int, as_json: bool, watch: bool
) -> None:
    """List jobs, newest first."""
    _require(kind=kind, queue=queue)
    wanted = None if state is None else JobState(state)

    def read(session: Session) -> Any:
        return [_columns(job) for job in insight.find(session, kind=kind, queue=queue, state=wanted, limit=limit)]

    _present(read, job_tables.table, as_json=as_json, watch=watch)


@jobs.command()
@click.argument("job_id", metavar="ID")
@as_json_option
def show(job_id: str, as_json: bool) -> None:
    """Show everything about one job: times, attempts, progress, log, parent and children."""

    def read(session: Session) -> Any:
        details = insight.show(session, resolve(session, Job, job_id))
        return {
            **_columns(details.job),
            "log": [_columns(line) for line in details.lines],
            "parent": None if details.parent is None else _columns(details.parent),
            "children_by_state": details.children_by_state,
            "children_newest": [_columns(child) for child in details.children],
        }

    _present(read, job_tables.page, as_json=as_json, watch=False)


@jobs.command()
@ids_argument
def cancel(ids: tuple[str, ...]) -> None:
    """Cancel jobs that have not ended, running ones too; of a batch, everything that is open."""
    _import_tasks()
    _change_each(ids, "cancelled", lambda session, job_id: care.cancel(session, [job_id]))


@jobs.command()
@ids_argument
def retry(ids: tuple[str, ...]) -> None:
    """Run jobs that have ended once more, with all their attempts."""
    _import_tasks()
    _change_each(ids, "scheduled", lambda session, job_id: care.retry(session, [job_id], now=bootstrap().now()))


@jobs.command("retry-failed")
@click.argument("kind")
def retry_failed(kind: str) -> None:
    """Run every failed job of a kind once more."""
    _require(kind=kind)
    _import_tasks()
    number = _write(lambda session: care.retry_failed(session, kind, now=bootstrap().now()))
    click.echo(f"{number} jobs scheduled")


@jobs.command()
@ids_argument
def hold(ids: tuple[str, ...]) -> None:
    """Keep jobs from starting until they are released."""
    _change_each(ids, "held", lambda session, job_id: care.hold(session, [job_id]))


@jobs.command()
@ids_argument
def release(ids: tuple[str, ...]) -> None:
    """Let held jobs run when they are due."""
    _change_each(ids, "released", lambda session, job_id: care.release(session, [job_id], now=bootstrap().now()))


@jobs.command()
@click.argument("queue")
def pause(queue: str) -> None:
    """Start nothing from a queue; what runs goes on."""
    _require(queue=queue)
    done = _write(lambda session: care.pause(session, queue, now=bootstrap().now()))
    click.echo(f"{queue} {'is paused' if done else 'was paused already'}")


@jobs.command()
@click.argument("queue")
def resume(queue: str) -> None:
    """Start jobs from a paused queue again."""
    _require(queue=queue)
    done = _write(lambda session: care.resume(session, queue))
    click.echo(f"{queue} {'is resumed' if done else 'was not paused'}")


@jobs.command()
@click.option("--queue", help="What has not started in this queue.")
@click.option("--kind", help="What has not started of this kind.")
def clear(queue: str | None, kind: str | None) -> None:
    """Cancel every job of a queue or kind that has not started."""
    if queue is None and kind is None:
        raise click.UsageError("say what to clear: --queue or --kind, or both")
    _require(kind=kind, queue=queue)
    _import_tasks()
    cleared = 0
    while number := _write(lambda session: care.clear(session, queue=queue, kind=kind)):
        cleared += number
    click.echo(f"{cleared} jobs cancelled")


@jobs.command()
@click.option("--queue", help="Only jobs of this queue.")
def work_off(queue: str | None) -> None:
    """Run due jobs in this process, without a worker or broker, until none is due. Time and rate limits are a worker's, and do not hold."""
    from project.task import run_here, working_here  # noqa: PLC0415 - makes the app, which the other commands do not need

    boot = bootstrap()
    _require(queue=queue)
    tried: list[UUID] = []
    with working_here(boot):
        while (row := _write(lambda session: _next_due(session, queue, tried))) is not None:
            # Not again, unless by a retry of its own: a job that cannot be claimed, or that nobody knows, would be tried for ever.
            tried.append(row.id)
            run_here(row.id, row.kind, boot)
            with boot.read_only() as session:
                state = session.execute(select(Job.state).where(Job.id == row.id)).scalar()
            click.echo(f"{row.id}  {row.kind}  {state}")
            if state != JobState.QUEUED:
                tried.pop()
    if tried:
        _end_with(f"{len(tried)} jobs are due but could not be started here: {', '.join(map(str, tried))}")


def _next_due(session: Session, queue: str | None, tried: Iterable[UUID]) -> Any:
    relay.promote(session)
    due = select(Job.id, Job.kind).where(
        Job.state == JobState.QUEUED,
        Job.run_at <= utc_now(),
        Job.queue.not_in(select(PausedQueue.queue)),
        Job.id.not_in(tried),
        *([] if queue is None else [Job.queue == queue]),
    )
    return session.execute(due.order_by(Job.priority, Job.run_at).limit(1)).one_or_none()


@jobs.command()
@as_json_option
@watch_option
def stats(as_json: bool, watch: bool) -> None:
    """Count jobs by kind, queue and state; show what waits, and how the last minutes went."""
    _present(insight.stats, job_tables.stats, as_json=as_json, watch=watch)


@jobs.command()
def prune() -> None:
    """Delete jobs that ended longer ago than JOBS_KEEP_SUCCEEDED and JOBS_KEEP_FAILED say."""
    boot = bootstrap()
    keep = care.retention(succeeded=boot.settings.jobs_keep_succeeded, failed=boot.settings.jobs_keep_failed)
    click.echo(f"{care.prune_all(boot.unit_of_work, keep, now=boot.now())} jobs deleted")


# --- Reading and writing ---


def _import_tasks() -> None:
    """Make the kinds of jobs known: a batch may go on with any of them when its last child ends. Most commands need no app."""
    from project.celery import app  # noqa: PLC0415

    app.loader.import_default_modules()


def _require(*, kind: str | None = None, queue: str | None = None) -> None:
    """End with exit code 1 for a kind or queue that neither the ledger nor the code has heard of: a typing error, most likely."""
    for name, column, value in (("kind", Job.kind, kind), ("queue", Job.queue, queue)):
        if value is None:
            continue
        with bootstrap().read_only() as session:
            if session.execute(select(Job.id).where(column == value).limit(1)).one_or_none() is not None:
                continue
        _import_tasks()
        from project.celeryconfig import QUEUES  # noqa: PLC0415 - imports kombu

        known = sorted(KINDS) if name == "kind" else QUEUES
        if value not in known:
            _end_with(f"there is no {name} {value!r}; there are: {', '.join(known)}")


def _end_with(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(1)


def _write(change: Callable[[Session], T]) -> T:
    """Make a change in a transaction of its own; one that is refused ends with exit code 1."""
    try:
        return _transact(change)
    except ServiceError as error:
        _end_with(str(error))


def _transact(change: Callable[[Session], T], *, tries: int = TRIES) -> T:
    try:
        with bootstrap().unit_of_work() as session:
            return change(session)
    except OperationalError as error:
        if tries == 1 or "deadlock" not in str(error):
            raise
    return _transact(change, tries=tries - 1)


def _change_each(ids: Iterable[str], done: str, change: Callable[[Session, UUID], list[UUID]]) -> None:
    """Change one job after the other, each in its own transaction: one that is refused does not stop the others."""

    def one(session: Session, prefix: str) -> str:
        job_id = resolve(session, Job, prefix)
        changed = change(session, job_id)
        if job_id not in changed:
            raise Conflict(f"job {job_id} is {session.execute(select(Job.state).where(Job.id == job_id)).scalar()}: not {done}")
        return f"{job_id} {done}" + (f", with {len(changed) - 1} of its batch" if len(changed) > 1 else "")

    refused = False
    for prefix in ids:
        try:
            click.echo(_transact(partial(one, prefix=prefix)))
        except ServiceError as error:
            click.echo(str(error), err=True)
            refused = True
    sys.exit(int(refused))


# --- What is shown ---


def _present(read: Callable[[Session], Any], table: Callable[[Any], RenderableType], *, as_json: bool, watch: bool) -> None:
    """Show what was read, once or again and again; as JSON that is one line a time."""

    def look() -> Any:
        try:
            with bootstrap().read_only() as session:
                # Half a character, as file names may hold, goes to no terminal.
                rows = json.dumps(read(session), default=_text, ensure_ascii=False)
                return json.loads(rows.encode(errors="replace"))
        except ServiceError as error:
            _end_with(str(error))

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    if not watch:
        click.echo(json.dumps(look(), indent=1)) if as_json else console.print(table(look()))
        return
    with suppress(KeyboardInterrupt), nullcontext() if as_json else Live(console=console, auto_refresh=False) as live:
        while True:
            click.echo(json.dumps(look())) if live is None else live.update(table(look()), refresh=True)
            time.sleep(WATCH_SECONDS)


def _columns(row: Job | JobLog) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


def _text(value: datetime | UUID) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
