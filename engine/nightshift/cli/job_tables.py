"""Jobs as tables for a terminal."""

from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nightshift.cli.output import make_pairs, make_table, show
from nightshift.observe.words import show_age

HEADERS = ("id", "kind", "state", "when", "took", "attempt", "progress", "queue", "error")
GIVES_WAY = ("queue", "took", "attempt", "progress")


def make_jobs_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table with a line for each job. When: it ended, or began, or is due."""
    now = datetime.now(UTC)
    return make_table(HEADERS, (_build_cells(row, now) for row in rows), gives_way=GIVES_WAY)


def _build_cells(row: dict[str, Any], now: datetime) -> tuple[Any, ...]:
    error = (row["errors"] or [None])[-1]
    began, ended = row["started_at"], row["finished_at"]
    return (
        str(row["id"])[:8],
        row["kind"],
        row["state"],
        show_age(ended or began or row["run_at"], now),
        ended - began if began and ended else None,
        f"{row['attempt']}/{row['max_attempts']}",
        row["progress_total"] and f"{row['progress_done']}/{row['progress_total']}",
        row["queue"],
        error and f"{error['type']}: {error['message']}",
    )


def make_job_page(job: dict[str, Any]) -> RenderableType:
    """Return everything about one job: its columns, errors, log, parent and children."""
    apart = ("log", "parent", "children_by_state", "children_newest", "errors", "parent_id")
    shown = ((name, job[name]) for name in job if job[name] is not None and name not in apart)
    parts: list[RenderableType] = [make_pairs(shown)]
    for error in job["errors"] or []:
        head = f"\n[bold]attempt {error['attempt']}[/], {show(error['at'])}"
        parts += [
            f"{head}: {escape(error['type'])}: {escape(show(error['message']))}",
            escape(show(error["traceback"])),
        ]
    if job["log"]:
        lines = (
            f"{show(line['at'])} {line['attempt']}: {show(line['line'])}" for line in job["log"]
        )
        parts += ["\n[bold]log[/]", *map(escape, lines)]
    if job["parent"] is not None:
        parts += ["\n[bold]parent[/]", make_jobs_table([job["parent"]])]
    if job["children_newest"]:
        by_state = sorted(job["children_by_state"].items())
        counts = ", ".join(f"{number} {state}" for state, number in by_state)
        parts += [f"\n[bold]children[/]: {counts}", make_jobs_table(job["children_newest"])]
    return Group(*parts)


def make_stats_tables(numbers: dict[str, Any]) -> RenderableType:
    """Return the tables of what `insight.read_stats` counted."""
    minutes = f"{numbers['over_seconds'] / 60:.0f} min"
    parts = (
        ("jobs", numbers["counts"]),
        ("queues", numbers["queues"]),
        (f"ended in the last {minutes}", numbers["lately"]),
    )
    return Group(
        *(
            part
            for title, rows in parts
            for part in (
                Text(title, style="bold"),
                make_table(
                    tuple(name.replace("_", " ") for name in (rows[0] if rows else ("none",))),
                    (tuple(row.values()) for row in rows),
                ),
            )
        )
    )
