"""`celery -A project school`: bring a school into the database, from CSV files or made up."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from project.bootstrap import bootstrap
from services.errors import ServiceError
from services.school import demo as school_demo
from services.school import loading


@click.group()
def school() -> None:
    """Bring a school into the database."""


@school.command()
@click.argument("folder", type=click.Path(path_type=Path))
def load(folder: Path) -> None:
    """Load the CSV files of FOLDER; docs/school-csv.md describes them. A second load writes only what has changed."""
    boot = bootstrap()
    with _refusals(), boot.unit_of_work() as session:
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
    with _refusals(), boot.unit_of_work() as session:
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


@contextmanager
def _refusals() -> Iterator[None]:
    """End with exit code 1 and what was wrong on stderr; bad input is no reason for a traceback."""
    try:
        yield
    except loading.InvalidRows as invalid:
        for problem in invalid.problems:
            click.echo(str(problem), err=True)
        click.echo(f"nothing was loaded: {len(invalid.problems)} problems in {invalid.row_count} rows", err=True)
        sys.exit(1)
    except ServiceError as error:
        click.echo(str(error), err=True)
        sys.exit(1)


def _print(counts: dict[str, int]) -> None:
    for kind, number in counts.items():
        click.echo(f"{kind:<14}{number:>10,}")
