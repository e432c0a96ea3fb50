"""`celery -A project metrics`: the metrics in Prometheus's text format."""

import click

from nightshift.cli.output import pass_runtime
from nightshift.observe.metrics import render_metrics
from nightshift.runtime import Runtime


@click.command()
@pass_runtime
def metrics(runtime: Runtime) -> None:
    """Print the metrics in Prometheus's text format. Exit code 2: the database cannot be read."""
    click.echo(render_metrics(runtime), nl=False)
