"""`celery -A project schedule`: the recurring jobs, when they ran last, and when they run next."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from project.bootstrap import bootstrap
from project.schedule import entries
from services.database import Session
from services.jobs.models import Job, ScheduleEntry
from services.jobs.schedule import Entry, last_success


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def schedule(as_json: bool) -> None:
    """List the recurring jobs: rule, zone, what is made up when it was missed, last and next run, last success."""
    boot = bootstrap()
    now = boot.now()
    with boot.read_only() as session:
        rows = [_row(session, entry, now) for entry in entries(boot.settings)]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table("entry", "kind", "when", "zone", "missed", "last run", "last state", "next run", "last success")
    for row in rows:
        table.add_row(*("" if value is None else str(value).replace("+00:00", "Z") for value in list(row.values())[:9]))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if any(row["counted_from"] is None for row in rows):
        click.echo("no beat has seen some of these yet: start one (celery -A project beat)", err=True)


def _row(session: Session, entry: Entry, now: datetime) -> dict[str, Any]:
    kind = entry.job.policy.kind
    mark = session.execute(select(ScheduleEntry.last_fire_at).where(ScheduleEntry.entry == entry.name)).scalar()
    newest = select(Job.started_at, Job.state).where(Job.kind == kind, Job.started_at.is_not(None)).order_by(Job.started_at.desc())
    last = session.execute(newest.limit(1)).one_or_none()
    return {
        "entry": entry.name,
        "kind": kind,
        "when": entry.when if isinstance(entry.when, str) else f"every {entry.when}",
        "zone": str(entry.zone),
        "missed": entry.missed + (f" within {entry.window}" if entry.missed == "all" else ""),
        "last_run": _instant(last.started_at if last else None),
        "last_state": last.state if last else None,
        "next_run": _instant(entry.after(now)),
        "last_success": _instant(last_success(session, kind)),
        # The newest slot that beat has dealt with, or when it first saw the entry.
        "counted_from": _instant(mark),
    }


def _instant(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat(timespec="seconds")
