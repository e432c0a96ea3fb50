"""`celery -A project reminders …`: add reminders, and list them."""

from datetime import UTC, datetime

import click
from nightshift.cli.boundary import LIMIT
from nightshift.cli.output import as_json_option, pass_runtime, print_rows, refusals
from nightshift.runtime import Runtime

from services.reminders import reminders as service

LISTED = ("id", "address", "text", "due_at", "mailed_at")
GIVES_WAY = ("address",)


@click.group()
def reminders() -> None:
    """Add reminders, which are mailed when they are due, and list them."""


@reminders.command()
@click.argument("address")
@click.argument("text")
@click.option(
    "--at",
    type=click.DateTime(["%Y-%m-%dT%H:%M"]),
    help="When to mail it, in UTC: 2026-12-01T08:00. Without it, at once.",
)
@pass_runtime
def add(runtime: Runtime, address: str, text: str, at: datetime | None) -> None:
    """Remind the reader of ADDRESS of TEXT."""
    now = runtime.now()
    due_at = now if at is None else at.replace(tzinfo=UTC)
    with refusals(), runtime.unit_of_work() as session:
        click.echo(service.add(session, address, text, due_at=due_at, now=now))


@reminders.command("list")
@click.option("--limit", default=50, show_default=True, type=LIMIT)
@as_json_option
@pass_runtime
def list_reminders(runtime: Runtime, *, limit: int, as_json: bool) -> None:
    """List reminders, the latest due one first."""
    with runtime.read_only() as session:
        found = service.find_reminders(session, limit=limit)
        rows = [{name: getattr(one, name) for name in LISTED} for one in found]
    print_rows(rows, LISTED, as_json=as_json, gives_way=GIVES_WAY)
