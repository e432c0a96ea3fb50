"""`celery -A project school user …`: users one by one, and the mails about their accounts. docs/accounts.md tells more."""

import sys

import click
from sqlalchemy import select

from project.bootstrap import bootstrap
from project.cli.refusals import refusals
from services.mail import accounts
from services.school import users
from services.school.models import KeyPurpose, Locale, Role, User

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
@click.option("--locale", type=click.Choice([locale.value for locale in Locale]), help="The language of their mails.")
@click.option("--untis-id", help="Who they are in the timetable.")
def add(**values: str | None) -> None:
    """Add a user, who is then welcomed by mail."""
    boot = bootstrap()
    with refusals(), boot.unit_of_work() as session:
        user_id = users.register(session, users.details(values), now=boot.now())
    click.echo(f"user {user_id} added; the welcome is on its way")


@user.command()
@click.argument("emails", nargs=-1, required=True, metavar="EMAIL…")
def welcome(emails: tuple[str, ...]) -> None:
    """Welcome users, as those who were loaded from CSV files have not been; all of them or, when an address is wrong, nobody."""
    boot = bootstrap()
    with refusals(), boot.unit_of_work() as session:
        for email in emails:
            users.welcome(session, email, now=boot.now())
    click.echo(f"on their way: {len(emails)}")


@user.command()
@click.argument("email")
def verify(email: str) -> None:
    """Ask a user to confirm their address."""
    _request(email, KeyPurpose.VERIFY_ADDRESS)


@user.command()
@click.argument("email")
def reset(email: str) -> None:
    """Send a user a link to choose a new password."""
    _request(email, KeyPurpose.RESET_PASSWORD)


@user.command()
@click.argument("purpose", type=click.Choice(list(PURPOSES)))
def redeem(purpose: str) -> None:
    """Use up the key on standard input, and print the address of its user. Exit code 1: it does not work."""
    boot = bootstrap()
    # Not an argument: every user of a machine sees those.
    key = sys.stdin.read().strip()
    with refusals(), boot.unit_of_work() as session:
        user_id = accounts.redeem(session, key, PURPOSES[purpose], now=boot.now())
        email = session.scalar(select(User.email).where(User.id == user_id))
    click.echo(email)


def _request(email: str, purpose: KeyPurpose) -> None:
    boot = bootstrap()
    with refusals(), boot.unit_of_work() as session:
        users.request_key(session, email, purpose, now=boot.now())
    click.echo("on its way")
