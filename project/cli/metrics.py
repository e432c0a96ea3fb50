"""`celery -A project metrics`: the ledger's numbers in Prometheus's text format."""

import sys

import click
from sqlalchemy.exc import SQLAlchemyError

from project.bootstrap import bootstrap


@click.command()
def metrics() -> None:
    """Print the ledger's metrics in Prometheus's text format. Exit code 1: the database cannot be read."""
    from project.metrics import exposition  # noqa: PLC0415 - makes the app, which the other commands do not need

    try:
        text = exposition(bootstrap())
    except SQLAlchemyError as error:
        click.echo(f"the ledger cannot be read: {str(error).partition(chr(10))[0]}", err=True)
        sys.exit(1)
    click.echo(text, nl=False)
