"""`celery -A project school holidays …`: the days without lessons."""

from datetime import date

import click
from nightshift.cli.boundary import DAY
from nightshift.cli.output import as_json_option, make_table, pass_runtime, print_json, print_table
from nightshift.runtime import Runtime

from project.school.settings import SchoolSettings
from services.school import holidays as service


@click.group()
def holidays() -> None:
    """Look after the days without lessons. A school's own are in holidays.csv."""


@holidays.command("import")
@click.argument("country")
@click.option("--canton", "region", metavar="CODE", help="A canton, state or province, as BE.")
@click.option("--year", "years", type=int, multiple=True, required=True, help="May be repeated.")
@click.option("--language", help="That of the names, as de; the country's own unless given.")
@as_json_option
@pass_runtime
def import_holidays(
    runtime: Runtime,
    country: str,
    region: str | None,
    years: tuple[int, ...],
    *,
    language: str | None,
    as_json: bool,
) -> None:
    """Add the public holidays of COUNTRY, as CH. What is there already stays as it is."""
    days = service.find_public(country, region, years, language=language)
    with runtime.unit_of_work() as session:
        new = service.add(session, days)
    rows = [(one.day, one.name, one.key, "new" if one.key in new else "there") for one in days]
    headers = ("date", "name", "id", "state")
    if as_json:
        print_json([dict(zip(headers, row, strict=True)) for row in rows])
        return
    print_table(make_table(headers, rows))
    click.echo(f"{len(new)} new, {len(days) - len(new)} there already")


@holidays.command("list")
@click.option("--from", "since", type=DAY, help="Only from this day on; today unless given.")
@as_json_option
@pass_runtime
def list_holidays(runtime: Runtime, since: date | None, as_json: bool) -> None:
    """List the coming days without lessons."""
    zone = runtime[SchoolSettings].school_timezone
    with runtime.read_only() as session:
        rows = service.list_holidays(session, since=since or runtime.now().astimezone(zone).date())
    if as_json:
        print_json(rows)
        return
    headers = ("starts", "ends", "name", "id")
    print_table(make_table(headers, [[row[name] for name in headers] for row in rows]))


@holidays.command()
@click.argument("key", metavar="ID")
@pass_runtime
def remove(runtime: Runtime, key: str) -> None:
    """Remove a holiday: lessons take place then."""
    with runtime.unit_of_work() as session:
        service.remove(session, key)
    click.echo(f"{key} removed")
