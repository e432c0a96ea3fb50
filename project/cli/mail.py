"""`celery -A project mail …`: see the outbox, and take care of it."""

import json
import re
import sys
from collections.abc import Callable
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP, default
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import Any

import click
from email_validator import EmailNotValidError, validate_email
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import select

from project.bootstrap import bootstrap
from services.database import Session
from services.errors import ServiceError
from services.mail import outbox
from services.mail.examples import EXAMPLES, example
from services.mail.models import Mail, MailState
from services.mail.transport import SmtpTransport, Verdict
from services.school.models import Locale

LISTED = ("id", "kind", "state", "recipient", "subject", "attempt", "repeats", "due_at", "ended_at", "reply")

as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
ids_argument = click.argument("ids", nargs=-1, required=True, type=int, metavar="ID…")


@click.group()
def mail() -> None:
    """See the outbox's messages, and take care of them."""


@mail.command("list")
@click.option("--state", type=click.Choice([state.value for state in MailState]), help="Only messages in this state.")
@click.option("--kind", help="Only messages of this kind.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1))
@as_json_option
def list_mails(state: str | None, kind: str | None, limit: int, as_json: bool) -> None:
    """List messages, newest first, without what they say."""
    with bootstrap().read_only() as session:
        wanted = None if state is None else MailState(state)
        rows = [_columns(row, LISTED) for row in outbox.listed(session, state=wanted, kind=kind, limit=limit)]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(*LISTED)
    for row in rows:
        table.add_row(*(escape(_short(row[name])) for name in LISTED))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@mail.command()
@click.argument("mail_id", type=int, metavar="ID")
@as_json_option
def show(mail_id: int, as_json: bool) -> None:
    """Show one message with what it says, unless that is sensitive or was erased."""
    with bootstrap().read_only() as session:
        row = session.execute(select(Mail).where(Mail.id == mail_id)).scalar_one_or_none()
        if row is None:
            click.echo(f"there is no mail {mail_id}", err=True)
            sys.exit(1)
        about = _columns(row, tuple(name for name in row.__table__.columns.keys() if name != "body"))  # noqa: SIM118 - no dict
        if row.sensitive:
            about["body"] = "(sensitive: not shown)"
        else:
            about["body"] = "(none)" if row.body is None else _text(row.body)
    if as_json:
        click.echo(json.dumps(about, indent=1))
        return
    for name, value in about.items():
        click.echo(f"\n{value}" if name == "body" else f"{name:<12} {_short(value)}")


def _text(body: bytes) -> str:
    """Return the text that a message says, without the secret address of its reader's calendar."""
    part = message_from_bytes(body, policy=default).get_body(("plain",))
    return "(no text)" if part is None else re.sub(r"/f/[\w-]+\.ics", "/f/….ics", str(part.get_content()).replace("\r\n", "\n"))


@mail.command()
@click.argument("kind", type=click.Choice(list(EXAMPLES)))
@click.option("--locale", type=click.Choice([locale.value for locale in Locale]), default=Locale.ENGLISH.value, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("var/preview"), show_default=True)
@click.option("--open/--no-open", "opening", default=True, help="Open the page in a browser.")
def preview(kind: str, locale: str, out: Path, opening: bool) -> None:
    """Write a mail with example data to a folder, as an .eml file and as a page, and open the page. Nothing is sent."""
    content = example(kind, Locale(locale), bootstrap().mail_rules)
    page = content.get_body(("html",))
    assert page is not None
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{kind}.{locale}{suffix}" for suffix in (".eml", ".html")]
    for file, data in zip(files, (content.as_bytes(policy=SMTP), page.get_content().encode()), strict=True):
        file.write_bytes(data)
        click.echo(file)
    if opening:
        click.launch(str(files[1]))


@mail.command()
@ids_argument
def retry(ids: tuple[int, ...]) -> None:
    """Send failed messages once more, or unknown ones, which may then arrive twice."""
    _change_each(ids, "queued", lambda session, mail_id: outbox.retry(session, mail_id, now=bootstrap().now()))


@mail.command()
@ids_argument
def hold(ids: tuple[int, ...]) -> None:
    """Keep queued messages from being sent until they are released."""
    _change_each(ids, "held", outbox.hold)


@mail.command()
@ids_argument
def release(ids: tuple[int, ...]) -> None:
    """Let held messages be sent."""
    _change_each(ids, "released", lambda session, mail_id: outbox.release(session, mail_id, now=bootstrap().now()))


@mail.command()
@click.argument("address")
@click.option("--remove", is_flag=True, help="Send to it again.")
def suppress(address: str, remove: bool) -> None:
    """Send nothing to an address any more."""
    boot = bootstrap()
    with boot.unit_of_work() as session:
        if not remove:
            outbox.suppress(session, address, now=boot.now())
        found = remove and outbox.unsuppress(session, address)
    click.echo("suppressed" if not remove else "removed" if found else "it was not on the list")


@mail.command()
@click.argument("address")
def test(address: str) -> None:
    """Send one message at once, past the outbox, and say step by step what the server answered. Exit code 1: it did not take it."""
    boot = bootstrap()
    try:
        recipient = validate_email(address, check_deliverability=False)
    except EmailNotValidError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    content = EmailMessage(policy=SMTP)
    content["From"], content["To"] = boot.settings.mail_from, f"{recipient.local_part}@{recipient.ascii_domain}"
    content["Subject"], content["Date"] = f"A test of {boot.settings.school_name}'s mail", format_datetime(boot.now())
    content["Message-ID"] = make_msgid(domain=boot.settings.mail_sender.partition("@")[2])
    content.set_content("This message was sent by `celery -A project mail test`. It arrived.\n")
    mailer = boot.mailer
    click.echo(f"{'transport':<10} {mailer.name}")
    if isinstance(mailer, SmtpTransport):
        mailer.tell = lambda step, answer: click.echo(f"{step:<10} {', '.join(answer.splitlines())}")
    utf8 = SMTP.clone(utf8=not recipient.local_part.isascii())
    answer = mailer.send(boot.settings.mail_sender, content["To"], content.as_bytes(policy=utf8))
    mailer.close()
    click.echo(f"{answer.verdict.name.lower():<10} {answer.reply}")
    sys.exit(answer.verdict is not Verdict.SENT)


def _change_each(ids: tuple[int, ...], done: str, change: Callable[[Session, int], None]) -> None:
    """Change one message after the other, each in its own transaction: one that is refused does not stop the others."""
    refused = False
    for mail_id in ids:
        try:
            with bootstrap().unit_of_work() as session:
                change(session, mail_id)
            click.echo(f"{mail_id} {done}")
        except ServiceError as error:
            click.echo(str(error), err=True)
            refused = True
    sys.exit(int(refused))


def _columns(row: Mail, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in names}
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value if isinstance(value, int) else value and str(value)
        for name, value in values.items()
    }


def _short(value: Any) -> str:
    """Return a value for a line: instants in UTC, to the second."""
    text = "" if value is None else str(value)
    return f"{text[:19]}Z" if text.endswith("+00:00") else text
