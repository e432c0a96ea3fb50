"""`celery -A project school user …`: users one by one, and the mails about their accounts.

docs/accounts.md tells more.
"""

import json
import sys
from pathlib import Path

import click
from nightshift.cli.boundary import FilePath
from nightshift.cli.output import pass_runtime
from nightshift.errors import InvalidInput
from nightshift.runtime import Runtime
from sqlalchemy import select

from services.calendars import feeds
from services.calendars.models import FeedKind
from services.calendars.store import FeedStore
from services.letters import accounts, persons
from services.mail.runtime import Mailer
from services.mail.transport import FolderTransport
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


@user.command()
@click.argument("email")
@click.argument("folder", type=FilePath())
@pass_runtime
def export(runtime: Runtime, email: str, folder: Path) -> None:
    """Write all that is kept about a user into FOLDER: JSON, their mails and their calendar."""
    with runtime.read_only() as session:
        user_id = users.find(session, email)
        person = persons.collect(session, user_id)
    calendar = runtime[FeedStore].read(FeedKind.USER, user_id)
    files = {"person.json": json.dumps(person.rows, indent=2, ensure_ascii=False).encode()}
    files |= {f"mail-{number}.eml": body for number, body in person.messages.items()}
    if calendar is not None:
        files["calendar.ics"] = calendar
    try:
        # What is in them is not for this machine's other users.
        folder.mkdir(0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InvalidInput(f"{folder} is not empty; name a new folder")
        for name, content in files.items():
            (folder / name).touch(0o600)
            (folder / name).write_bytes(content)
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from error
    for name, rows in sorted(person.rows.items()):
        click.echo(f"{name:<24}{len(rows):>8,}")
    click.echo(f"{len(files)} files in {folder}")


@user.command()
@click.argument("email")
@click.option("--yes", is_flag=True, help="Really do it.")
@pass_runtime
def forget(runtime: Runtime, email: str, yes: bool) -> None:
    """Remove a user and all that is kept about them; say what stays, and why."""
    with runtime.unit_of_work() as session:
        user_id = users.find(session, email)
        if not yes:
            raise InvalidInput("nothing was removed: there is no way back; repeat this with --yes")
        done = persons.forget(session, user_id)
        theirs = {FeedKind.USER: {user_id}}
        _, errors = feeds.remove_orphans(session, runtime[FeedStore], theirs)
    transport = runtime[Mailer].transport
    if isinstance(transport, FolderTransport) and (letters := transport.forget(done.addresses)):
        done.removed["letters on disk"] = letters
    for name, rows in sorted(done.removed.items()):
        click.echo(f"{name:<24}{rows:>8,} removed")
    for error in errors:
        click.echo(f"the next sync removes the calendar: {error['error']}")
    click.echo("\n".join(["These stay:", *(f"- {one}" for one in done.stays)]))


def _request(runtime: Runtime, email: str, purpose: KeyPurpose) -> None:
    with runtime.unit_of_work() as session:
        users.request_key(session, email, purpose, now=runtime.now())
    click.echo("on its way")
