"""`celery -A project school`: a school from CSV files, its events and its users."""

from pathlib import Path

import click
from nightshift.cli.boundary import FilePath
from nightshift.cli.output import pass_runtime
from nightshift.runtime import Runtime

from project.school.cli.events import event
from project.school.cli.users import user
from project.school.settings import SchoolSettings
from services.school import loading


@click.group()
def school() -> None:
    """Bring a school into the database, and look after its events and users."""


school.add_command(event)
school.add_command(user)


@school.command()
@click.argument("folder", type=FilePath())
@pass_runtime
def load(runtime: Runtime, folder: Path) -> None:
    """Load the CSV files of FOLDER; docs/school-csv.md describes them.

    A second load writes only what has changed.
    """
    zone = runtime[SchoolSettings].school_timezone
    with runtime.unit_of_work() as session:
        counts = loading.load(session, folder, zone=zone, now=runtime.now())
    for kind, (rows, written) in counts.items():
        said = f"{written:,} new or changed" if written else "unchanged"
        click.echo(f"{kind:<14}{rows:>10,}  {said}")
