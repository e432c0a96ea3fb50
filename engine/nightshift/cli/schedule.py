"""`celery -A project schedule`: the recurring jobs, when they ran last, and when they run next."""

from datetime import datetime
from typing import Any

import click
from sqlalchemy import select

from nightshift.cli.output import as_json_option, pass_runtime, print_rows
from nightshift.component import Composition
from nightshift.database import Session
from nightshift.jobs.models import Job
from nightshift.jobs.schedule import (
    Entry,
    find_last_good,
    find_paused_entries,
    read_last_fires,
)
from nightshift.runtime import Runtime

COLUMNS = (
    "entry", "when", "paused_at", "next_run", "last_run", "last_state", "last_success", "zone",
    "kind", "missed",
)  # fmt: skip
GIVES_WAY = ("missed", "kind", "zone", "last_success")


@click.command()
@as_json_option
@pass_runtime
def schedule(runtime: Runtime, as_json: bool) -> None:
    """List the recurring jobs: rule, zone, what is made up when missed, last and next run.

    The desk pauses and resumes them.
    """
    now = runtime.now()
    with runtime.read_only() as session:
        fires, paused = read_last_fires(session), find_paused_entries(session)
        entries = runtime[Composition].schedule(runtime)
        rows = [
            _build_row(session, entry, fires.get(entry.name), now)
            | {"in_words": entry.words, "paused_at": paused.get(entry.name)}
            for entry in entries
        ]
    print_rows(rows, COLUMNS, as_json=as_json, gives_way=GIVES_WAY)
    if not as_json and any(row["counted_from"] is None for row in rows):
        missing = "beat has not registered some of these yet: start it (celery -A project beat)"
        click.echo(missing, err=True)


def _build_row(
    session: Session, entry: Entry, last_fire: datetime | None, now: datetime
) -> dict[str, Any]:
    kind = entry.job.policy.kind
    newest = (
        select(Job.started_at, Job.state)
        .where(Job.kind == kind, Job.started_at.is_not(None))
        .order_by(Job.started_at.desc())
        .limit(1)
    )
    last = session.execute(newest).one_or_none()
    return {
        "entry": entry.name,
        "kind": kind,
        "when": entry.when if isinstance(entry.when, str) else f"every {entry.when}",
        "zone": str(entry.zone),
        "missed": entry.missed + (f" within {entry.window}" if entry.missed == "all" else ""),
        "last_run": last.started_at if last else None,
        "last_state": last.state if last else None,
        "next_run": entry.after(now),
        "last_success": find_last_good(session, entry),
        "counted_from": last_fire,
    }
