"""`celery -A project school`: bring a school into the database, from CSV files or made up, and look after its events and users."""

from pathlib import Path

import click

from project.bootstrap import bootstrap
from project.cli.events import event
from project.cli.refusals import refusals
from project.cli.users import user
from services.school import demo as school_demo
from services.school import loading


@click.group()
def school() -> None:
    """Bring a school into the database, and look after its events and users."""


school.add_command(event)
school.add_command(user)


@school.command()
@click.argument("folder", type=click.Path(path_type=Path))
def load(folder: Path) -> None:
    """Load the CSV files of FOLDER; docs/school-csv.md describes them. A second load writes only what has changed."""
    boot = bootstrap()
    with refusals(), boot.unit_of_work() as session:
        counts = loading.load(session, folder, zone=boot.settings.school_timezone, now=boot.now())
    _print(counts)


@school.command()
@click.option("--users", default=500, show_default=True, type=click.IntRange(min=1))
@click.option("--classes", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--departments", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--events", default=2000, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=1, show_default=True, help="The same seed makes the same school (on the same day).")
def demo(users: int, classes: int, departments: int, events: int, seed: int) -> None:
    """Fill an empty database with a made-up school around today."""
    boot = bootstrap()
    zone, now = boot.settings.school_timezone, boot.now()
    with refusals(), boot.unit_of_work() as session:
        counts = school_demo.generate(
            session,
            users=users,
            classes=classes,
            departments=departments,
            events=events,
            seed=seed,
            zone=zone,
            now=now,
            today=now.astimezone(zone).date(),
        )
    _print(counts)


def _print(counts: dict[str, int]) -> None:
    for kind, number in counts.items():
        click.echo(f"{kind:<14}{number:>10,}")
