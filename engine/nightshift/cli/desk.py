"""`celery -A project desk`: the ledger as pages, and the hash of a password for it."""

import click

from nightshift.cli.boundary import refusals
from nightshift.cli.output import pass_runtime
from nightshift.runtime import Runtime


@click.group(invoke_without_command=True)
@click.pass_context
def desk(context: click.Context) -> None:
    """Serve the ledger as pages at DESK_BIND, until Ctrl-C: jobs, queues, what recurs.

    DESK_USERS says who may look, and who may act.
    """
    if context.invoked_subcommand is not None:
        return
    # Not above: Celery imports the commands in every process.
    from nightshift.desk.server import serve  # noqa: PLC0415

    with refusals():
        serve(context.obj.app.runtime)


@desk.command("hash")
@click.password_option(help="Asked for where it is not given: then no history keeps it.")
@pass_runtime
def make_password_hash(_runtime: Runtime, password: str) -> None:
    """Print the hash of a password, for DESK_USERS=NAME:act:HASH."""
    from nightshift.desk.logins import make_hash  # noqa: PLC0415 - as above

    click.echo(make_hash(password))
