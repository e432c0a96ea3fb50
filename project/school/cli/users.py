"""`celery -A project school user …`: users one by one, and the mails about their accounts.

docs/accounts.md tells more.
"""

import sys

import click
from nightshift.cli.output import pass_runtime
from nightshift.runtime import Runtime
from sqlalchemy import select

from services.letters import accounts
from services.school import users
from services.school.models import KeyPurpose, Role, User
from services.translation import Locale

# Bytes. No key is nearly as long.
LONGEST_KEY = 1_000

PURPOSES = {"verify": KeyPurpose.VERIFY_ADDRESS, "reset": KeyPurpose.RESET_PASSWORD}


@click.group()
def user() -> None:
    """Add users, and send them mail about their accounts."""


@user.command()
@click.argument("email")
@click.option("--first", "first_name", required=True, help="First name.")
@click.option("--last", "last_name", required=True, help="Last name.")
@click.option("--role", required=True, type=click.Choice([role.value for role in Role]))
@click.option("--class", help="A student's class.")
@click.option(
    "--locale",
    type=click.Choice([locale.value for locale in Locale]),
    help="The language of their mails.",
)
@click.option("--untis-id", help="Who they are in the timetable.")
@pass_runtime
def add(runtime: Runtime, **values: str | None) -> None:
    """Add a user, who is then welcomed by mail."""
    with runtime.unit_of_work() as session:
        user_id = users.register(session, users.read_details(values), now=runtime.now())
    click.echo(f"user {user_id} added; the welcome is on its way")


@user.command()
@click.argument("emails", nargs=-1, required=True, metavar="EMAIL…")
@pass_runtime
def welcome(runtime: Runtime, emails: tuple[str, ...]) -> None:
    """Welcome users, such as those loaded from CSV files, who were sent no mail.

    When an address is wrong, no user is welcomed.
    """
    with runtime.unit_of_work() as session:
        for email in emails:
            users.welcome(session, email, now=runtime.now())
    click.echo(f"on their way: {len(emails)}")


@user.command()
@click.argument("email")
@pass_runtime
def verify(runtime: Runtime, email: str) -> None:
    """Ask a user to confirm their address."""
    _request(runtime, email, KeyPurpose.VERIFY_ADDRESS)


@user.command()
@click.argument("email")
@pass_runtime
def reset(runtime: Runtime, email: str) -> None:
    """Send a user a link to choose a new password."""
    _request(runtime, email, KeyPurpose.RESET_PASSWORD)


@user.command()
@click.argument("purpose", type=click.Choice(list(PURPOSES)))
@pass_runtime
def redeem(runtime: Runtime, purpose: str) -> None:
    """Use up the key on standard input, and print its user's address.

    Exit code 1: the key does not work.
    """
    # Not an argument: all users of a machine see the arguments of its processes.
    key = sys.stdin.buffer.read(LONGEST_KEY).decode(errors="replace").strip()
    with runtime.unit_of_work() as session:
        user_id = accounts.redeem(session, key, PURPOSES[purpose], now=runtime.now())
        email = session.scalar(select(User.email).where(User.id == user_id))
    click.echo(email)


def _request(runtime: Runtime, email: str, purpose: KeyPurpose) -> None:
    with runtime.unit_of_work() as session:
        users.request_key(session, email, purpose, now=runtime.now())
    click.echo("on its way")
