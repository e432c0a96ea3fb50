"""`celery -A project school`: a school from tables, its events and its users."""

import json
from pathlib import Path

import click
from nightshift.cli.boundary import FilePath
from nightshift.cli.output import pass_runtime
from nightshift.runtime import Runtime

from project.school.cli.events import event
from project.school.cli.holidays import holidays
from project.school.cli.sources import import_ics, sources
from project.school.cli.timetable import timetable
from project.school.cli.users import user
from project.school.settings import SchoolSettings
from services.school import exporting, loading


@click.group()
def school() -> None:
    """Bring a school into the database, and look after its events and users."""


school.add_command(event)
school.add_command(user)
school.add_command(holidays)
school.add_command(timetable)
school.add_command(import_ics)
school.add_command(sources)


ENCODINGS = ("utf-8", "windows-1252", "latin-1", "mac-roman", "utf-16")


@school.command()
@click.argument("path", type=FilePath())
@click.option("--check", is_flag=True, help="Only say what is wrong; write nothing.")
@click.option(
    "--encoding",
    type=click.Choice(ENCODINGS),
    default=ENCODINGS[0],
    help="That of the CSV files; UTF-8 unless given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what is wrong as JSON.")
@pass_runtime
def load(runtime: Runtime, path: Path, check: bool, encoding: str, as_json: bool) -> None:
    """Load the tables of PATH, a folder or a file; docs/school-csv.md describes them.

    They are .csv, .xlsx or .ods files. A second load writes only what has changed.
    """
    zone = runtime[SchoolSettings].school_timezone
    try:
        if check:
            with runtime.read_only() as session:
                counts = loading.check(session, path, zone=zone, encoding=encoding)
            for kind, rows in counts.items():
                click.echo(f"{kind:<14}{rows:>10,}  can be loaded")
            return
        with runtime.unit_of_work() as session:
            loaded = loading.load(session, path, zone=zone, now=runtime.now(), encoding=encoding)
    except loading.InvalidRows as error:
        if not as_json:
            raise
        problems = [problem._asdict() for problem in error.problems]
        click.echo(json.dumps({"problems": problems}, indent=2, ensure_ascii=False))
        raise click.exceptions.Exit(2) from error
    for kind, (rows, written) in loaded.items():
        said = f"{written:,} new or changed" if written else "unchanged"
        click.echo(f"{kind:<14}{rows:>10,}  {said}")


@school.command()
@click.argument("folder", type=FilePath())
@pass_runtime
def export(runtime: Runtime, folder: Path) -> None:
    """Write the school into FOLDER, as the CSV files that `school load` reads."""
    with runtime.read_only() as session:
        counts = exporting.export(session, folder)
    for kind, rows in counts.items():
        click.echo(f"{kind:<14}{rows:>10,}")
