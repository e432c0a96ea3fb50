"""How jobs look on a terminal. Everything is given as JSON values; times are UTC, to the second."""

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table


def _short(instant: str | None) -> str:
    """Return an instant in UTC, to the second."""
    return "" if instant is None else f"{instant[:19]}Z"


def table(rows: list[dict[str, Any]]) -> Table:
    """Lay out jobs, a line each."""
    jobs = Table("id", "kind", "queue", "state", "attempt", "progress", "run at", "started", "finished", "error")
    for row in rows:
        error = (row["errors"] or [None])[-1]
        jobs.add_row(
            row["id"][:8],
            row["kind"],
            row["queue"],
            row["state"],
            f"{row['attempt']}/{row['max_attempts']}",
            "" if row["progress_total"] is None else f"{row['progress_done']}/{row['progress_total']}",
            *(_short(row[name]) for name in ("run_at", "started_at", "finished_at")),
            "" if error is None else escape(f"{error['type']}: {error['message']}"[:60]),
        )
    return jobs


def page(job: dict[str, Any]) -> RenderableType:
    """Lay out everything about one job."""
    about = Table(show_header=False, box=None)
    apart = ("log", "parent", "children_by_state", "children_newest", "errors", "parent_id")
    for name, value in job.items():
        if value is not None and name not in apart:
            about.add_row(name, escape(_short(value) if name.endswith("_at") else str(value)))
    parts: list[RenderableType] = [about]
    for error in job["errors"] or []:
        parts += [
            f"\n[bold]attempt {error['attempt']}[/], {_short(error['at'])}: {escape(error['type'])}: {escape(error['message'])}"
        ]
        parts += [escape(error["traceback"])]
    if job["log"]:
        parts += ["\n[bold]log[/]", *(escape(f"{_short(line['at'])} {line['attempt']}: {line['line']}") for line in job["log"])]
    if job["parent"] is not None:
        parts += ["\n[bold]parent[/]", table([job["parent"]])]
    if job["children_newest"]:
        counts = ", ".join(f"{number} {state}" for state, number in sorted(job["children_by_state"].items()))
        parts += [f"\n[bold]children[/]: {counts}", table(job["children_newest"])]
    return Group(*parts)


def stats(numbers: dict[str, Any]) -> RenderableType:
    """Lay out what `insight.stats` counted."""
    tables = []
    minutes = f"{numbers['over_seconds'] / 60:.0f} min"
    for title, rows in (
        ("jobs", numbers["counts"]),
        ("queues", numbers["queues"]),
        (f"ended in the last {minutes}", numbers["lately"]),
    ):
        part = Table(*(rows[0] if rows else ("none",)), title=title, title_justify="left")
        for row in rows:
            part.add_row(
                *("" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values())
            )
        tables.append(part)
    return Group(*tables)
