"""`celery -A project school timetable …`: bring the timetable in. docs/timetable.md tells more."""

import sys
from typing import Any

import click
from nightshift.cli.boundary import exit_code
from nightshift.cli.output import (
    as_json_option,
    make_table,
    pass_runtime,
    print_json,
    print_table,
    show,
)
from nightshift.errors import InvalidInput, ServiceError
from nightshift.runtime import Runtime

from services.school.timetable import sync as syncs
from services.school.timetable.models import State
from services.school.timetable.plan import Plan
from services.school.timetable.sync import Sources

REFUSED = 1
# A table of a thousand lessons says less than their number.
MOST_LINES = 60
RUNS = 20


@click.group()
def timetable() -> None:
    """Bring lessons in from the sources that TIMETABLE_SOURCES names."""


@timetable.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]…")
@click.option("--dry-run", is_flag=True, help="Only show what would change; write nothing.")
@click.option("--accept", is_flag=True, help="Also when much would go, or all.")
@as_json_option
@pass_runtime
def sync(
    runtime: Runtime, sources: tuple[str, ...], dry_run: bool, accept: bool, as_json: bool
) -> None:
    """Bring in what each SOURCE says, or all of them, and list what changes.

    Exit code 1: an answer was refused, since too much would go; 2: a source could not be read.
    """
    known = runtime[Sources]
    if not known.by_name:
        raise InvalidInput("TIMETABLE_SOURCES names no source of a timetable")
    for name in sources:
        if name not in known.by_name:
            raise InvalidInput(
                f"{name!r} is no source; TIMETABLE_SOURCES has {', '.join(known.by_name)}"
            )
    code = 0
    said: list[dict[str, Any]] = []
    for name in sources or known.by_name:
        try:
            state, plan = syncs.sync(
                runtime, known, name, now=runtime.now(), accept=accept, dry_run=dry_run
            )
        except ServiceError as error:
            code = max(code, exit_code(error), 2)
            said.append({"source": name, "state": State.FAILED.value, "error": str(error)})
            if not as_json:
                click.echo(f"{name}: {error}", err=True)
            continue
        code = max(code, REFUSED if state is State.REFUSED else 0)
        said.append(
            {
                "source": name,
                "state": state.value,
                "error": plan.refusal or None,
                "counts": plan.counts,
                "report": plan.to_json(),
            }
        )
        if not as_json:
            _print_plan(name, state, plan, dry_run=dry_run)
    if as_json:
        print_json(said)
    sys.exit(code)


def _print_plan(name: str, state: State, plan: Plan, *, dry_run: bool) -> None:
    rows = [(one.what.value, one.kind, one.row, one.detail) for one in plan.items]
    if rows:
        print_table(make_table(("", "what", "which", "details"), rows[:MOST_LINES]))
    if len(rows) > MOST_LINES:
        click.echo(f"… and {len(rows) - MOST_LINES:,} more; --json has them all")
    counts = _show_counts(plan.counts) or "nothing differs"
    if state is State.REFUSED:
        click.echo(f"{name}: refused, {plan.refusal}; nothing was changed ({counts})")
        click.echo("If that is right, repeat it with --accept.")
    else:
        click.echo(f"{name}: {'would be ' if dry_run else ''}{state.value}: {counts}")


def _show_counts(counts: dict[str, dict[str, int]]) -> str:
    return "; ".join(
        f"{what} " + ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        for what, kinds in counts.items()
    )


@timetable.command()
@click.option("--limit", type=click.IntRange(1, 1_000), default=RUNS, help="How many; 20.")
@as_json_option
@pass_runtime
def runs(runtime: Runtime, limit: int, as_json: bool) -> None:
    """List the newest syncs, and how they ended."""
    with runtime.read_only() as session:
        rows = syncs.list_runs(session, limit=limit)
    if as_json:
        print_json(rows)
        return
    lines: list[tuple[Any, ...]] = [
        (show(row["started_at"]), row["source"], row["state"], _what_happened(row)) for row in rows
    ]
    print_table(make_table(("started", "source", "state", "what happened"), lines))


def _what_happened(row: dict[str, Any]) -> str:
    return row["error"] or _show_counts(row["counts"])
