"""`celery -A project school import-ics`: calendars that are kept elsewhere. docs/import.md."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from nightshift.cli.output import as_json_option, make_table, pass_runtime, print_json, print_table
from nightshift.errors import ServiceError
from nightshift.observe.checks import show_time
from nightshift.runtime import Runtime

from services.school import importing
from services.school.importing import ImportRules, Order, Report


class _DryRun(Exception):
    """Undo the transaction."""


@click.command("import-ics")
@click.argument("address", metavar="FILE|URL")
@click.option("--name", help="What the source is called; unless given, the file's name or the URL.")
@click.option("--audience", help="For whom its events are: teachers, students, all (default), …")
@click.option(
    "--class", "classes", multiple=True, help="A class's name. May be given several times."
)
@click.option("--group", "class_groups", multiple=True, help="A class group, as 27G.")
@click.option("--department", "departments", multiple=True, help="A department's name.")
@click.option("--teaching", "teaching_affected", help="yes, partial or no (default).")
@click.option("--nightly/--not-nightly", default=None, help="Import it every night from now on.")
@click.option("--accept", is_flag=True, help="Also when more than a fifth of its events are gone.")
@click.option("--overwrite", is_flag=True, help="Also events that were changed here.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@as_json_option
@pass_runtime
def import_ics(
    runtime: Runtime,
    address: str,
    *,
    name: str | None,
    nightly: bool | None,
    accept: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Import the events of a calendar that is kept elsewhere, and keep them up to date.

    A second import of the same source changes what has changed there, and cancels what is gone.
    """
    rules, now = runtime[ImportRules], runtime.now()
    given = {
        key: list(one) if isinstance(one, tuple) else one for key, one in options.items() if one
    }
    if not importing.is_url(address):
        address = str(Path(address).absolute())
    called = name or (address if importing.is_url(address) else Path(address).name)
    order = Order(called, address, given or None, nightly)
    with runtime.read_only() as session:
        source = importing.look_up(session, order)
        if overwrite:
            source.state = None  # Also where the file is the same as at the last import.
    report = Report(called)
    try:
        fetched = importing.fetch(source, rules, now=now)
        with suppress(_DryRun), runtime.unit_of_work() as session:
            kept = importing.keep(session, order, now=now)
            report = importing.apply(
                session, kept.id, fetched, rules, now=now, accept=accept, overwrite=overwrite
            )
            if dry_run:
                raise _DryRun
    except ServiceError as error:
        if not dry_run:
            with runtime.unit_of_work() as session:
                kept = importing.keep(session, order, now=now)
                importing.record_failure(session, kept.id, error, now=now)
        raise
    _print(report, as_json=as_json, dry_run=dry_run)


@click.command("sources")
@as_json_option
@pass_runtime
def sources(runtime: Runtime, as_json: bool) -> None:
    """List the calendars that are imported, and how their last import ended."""
    with runtime.read_only() as session:
        found = importing.list_sources(session)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one["name"],
            "nightly" if one["nightly"] else "by hand",
            one["events"],
            one["last_run_at"] and show_time(one["last_run_at"]),
            one["error"] or _sum_up(one["report"] or {}),
        )
        for one in found
    ]
    print_table(make_table(("name", "when", "events", "last import", "result"), rows))


def _sum_up(report: dict[str, Any]) -> str:
    names = ("new", "changed", "cancelled", "unchanged")
    return ", ".join(f"{report[name]} {name}" for name in names if report.get(name))


def _print(report: Report, *, as_json: bool, dry_run: bool) -> None:
    shown = report.as_json()
    if as_json:
        print_json(shown | {"dry_run": dry_run})
        return
    said = _sum_up(shown) or "no event"
    if report.not_modified:
        said = f"has not changed since the last import; {said}"
    click.echo(f"{report.source}: {said}" + (" (nothing was written)" if dry_run else ""))
    for title, some in (("kept as it is here", report.kept), ("not taken over", report.troubles)):
        for one in some:
            click.echo(f"  {title}: {one.title or one.uid}: {one.reason}")
