"""`celery -A project mail …`: show the outbox and change messages in it."""

import sys
from collections.abc import Callable, Iterable
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP, default
from email.utils import format_datetime, make_msgid
from functools import partial
from pathlib import Path
from typing import Any

import click
from email_validator import EmailNotValidError, validate_email
from nightshift.cli.boundary import LIMIT, ROW_NUMBER, FilePath
from nightshift.cli.output import (
    as_json_option,
    change_each,
    end_with,
    pass_runtime,
    print_json,
    print_rows,
    show as show_value,
)
from nightshift.database import Session
from nightshift.observe.masks import mask_links
from nightshift.runtime import Runtime
from sqlalchemy import select

from project.mail.settings import MailSettings
from services.mail import bounces, outbox
from services.mail.models import Mail, MailBounce, MailState
from services.mail.runtime import BounceDesk, Mailer
from services.mail.transport import SmtpTransport, Verdict

COLUMNS = (
    "id", "kind", "state", "recipient", "subject", "attempt", "repeats", "due_at", "ended_at",
    "reply",
)  # fmt: skip
LISTED = (*COLUMNS, "came_back")
SHOWN = (
    "id", "state", "came_back", "when", "recipient", "subject", "kind", "attempt", "repeats",
    "reply",
)  # fmt: skip
BOUNCES = ("id", "received_at", "mail_id", "kind", "status", "reply")
GIVES_WAY = ("repeats", "attempt", "reply", "kind")

ids_argument = click.argument("ids", nargs=-1, required=True, type=ROW_NUMBER, metavar="ID…")


@click.group()
def mail() -> None:
    """Show the messages in the outbox and change them."""


@mail.command("list")
@click.option(
    "--state",
    type=click.Choice(MailState, case_sensitive=False),
    help="Only messages in this state.",
)
@click.option("--kind", help="Only messages of this kind.")
@click.option("--limit", default=50, show_default=True, type=LIMIT)
@as_json_option
@pass_runtime
def list_mails(
    runtime: Runtime, *, state: MailState | None, kind: str | None, limit: int, as_json: bool
) -> None:
    """List messages, newest first, without their bodies. When: they ended, or are due."""
    with runtime.read_only() as session:
        found = outbox.find_mails(session, state=state, kind=kind, limit=limit)
        back = bounces.find_of(session, [row.id for row in found])
        rows = [
            _columns(row, COLUMNS) | {"came_back": _describe(back.get(row.id))} for row in found
        ]
    if not as_json:
        rows = [row | {"when": row["ended_at"] or row["due_at"]} for row in rows]
    print_rows(rows, SHOWN, as_json=as_json, gives_way=GIVES_WAY)


@mail.command()
@click.argument("mail_id", type=ROW_NUMBER, metavar="ID")
@as_json_option
@pass_runtime
def show(runtime: Runtime, mail_id: int, as_json: bool) -> None:
    """Show one message with its text, unless that is sensitive or was erased."""
    with runtime.read_only() as session:
        row = session.execute(select(Mail).where(Mail.id == mail_id)).scalar_one_or_none()
        if row is None:
            end_with(f"there is no mail {mail_id}")
        names = [column.key for column in row.__table__.columns if column.key != "body"]
        about = _columns(row, names)
        about["came_back"] = _describe(bounces.find_of(session, [mail_id]).get(mail_id))
        if row.sensitive:
            about["body"] = "(sensitive: not shown)"
        else:
            about["body"] = "(none)" if row.body is None else _read_text(row.body)
    if as_json:
        print_json(about)
        return
    for name, value in about.items():
        click.echo(f"\n{value}" if name == "body" else f"{name:<12} {show_value(value)}")


def _describe(bounce: MailBounce | None) -> str | None:
    """Return what came back for a message: failed 5.1.1."""
    return None if bounce is None else f"{bounce.kind} {bounce.status}".strip()


def _read_text(body: bytes) -> str:
    """Return a message's text, without the secrets in its links."""
    part = message_from_bytes(body, policy=default).get_body(("plain",))
    if part is None:
        return "(no text)"
    return mask_links(str(part.get_content()).replace("\r\n", "\n"))


@mail.command()
@ids_argument
@pass_runtime
def retry(runtime: Runtime, ids: tuple[int, ...]) -> None:
    """Send failed messages again, or unknown ones, which may then arrive twice."""
    _change_each(runtime, ids, "queued", partial(outbox.retry, now=runtime.now()))


@mail.command()
@ids_argument
@pass_runtime
def hold(runtime: Runtime, ids: tuple[int, ...]) -> None:
    """Hold queued messages until they are released."""
    _change_each(runtime, ids, "held", outbox.hold)


@mail.command()
@ids_argument
@pass_runtime
def release(runtime: Runtime, ids: tuple[int, ...]) -> None:
    """Release held messages."""
    _change_each(runtime, ids, "released", partial(outbox.release, now=runtime.now()))


@mail.command()
@click.argument("address")
@click.option("--remove", is_flag=True, help="Send to it again.")
@pass_runtime
def suppress(runtime: Runtime, address: str, remove: bool) -> None:
    """Stop sending to an address."""
    with runtime.unit_of_work() as session:
        if not remove:
            outbox.suppress(session, address, now=runtime.now())
        found = remove and outbox.unsuppress(session, address)
    click.echo("suppressed" if not remove else "removed" if found else "it was not on the list")


@mail.command("bounces")
@click.option("--limit", default=50, show_default=True, type=LIMIT)
@as_json_option
@pass_runtime
def list_bounces(runtime: Runtime, limit: int, as_json: bool) -> None:
    """List what other servers reported of messages that they took, newest first.

    One without a number in the column mail answers no message of ours, and changed nothing.
    """
    with runtime.read_only() as session:
        rows = [_columns(row, BOUNCES) for row in bounces.find_bounces(session, limit=limit)]
    print_rows(rows, BOUNCES, as_json=as_json)


@mail.command()
@click.argument("file", type=FilePath(exists=True, dir_okay=False, allow_dash=True))
@pass_runtime
def settle(runtime: Runtime, file: Path) -> None:
    """Settle a report that another server sent: the mail in FILE, or - for standard input.

    For a mail server on this machine, as the command of an alias.
    """
    with click.open_file(str(file), "rb") as source:
        raw = source.read(bounces.LARGEST)
    settled = runtime[BounceDesk].settle(runtime.unit_of_work, raw, now=runtime.now())
    of = "no message of ours" if settled.mail_id is None else f"mail {settled.mail_id}"
    said = f"{settled.kind} {settled.status}".strip()
    click.echo(f"{said}, of {of}" + ("" if settled.is_new else "; it was settled before"))


@mail.command()
@click.argument("address")
@pass_runtime
def test(runtime: Runtime, address: str) -> None:
    """Send one message at once, without the outbox, and show each answer of the server.

    Exit code 1: the server did not take it.
    """
    settings, transport = runtime[MailSettings], runtime[Mailer].transport
    try:
        recipient = validate_email(address, check_deliverability=False)
    except EmailNotValidError as error:
        end_with(f"ADDRESS: {error}", code=2)
    content = EmailMessage(policy=SMTP)
    content["From"] = settings.mail_from
    content["To"] = f"{recipient.local_part}@{recipient.ascii_domain}"
    content["Subject"] = f"A test of {content['From'].addresses[0].display_name}'s mail"
    content["Date"] = format_datetime(runtime.now())
    content["Message-ID"] = make_msgid(domain=settings.mail_sender.partition("@")[2])
    content.set_content("This message was sent by `celery -A project mail test`. It arrived.\n")
    click.echo(f"{'transport':<10} {transport.name}")
    if isinstance(transport, SmtpTransport):
        transport.tell = _print_step
    utf8 = SMTP.clone(utf8=not recipient.local_part.isascii())
    answer = transport.send(settings.mail_sender, content["To"], content.as_bytes(policy=utf8))
    transport.close()
    click.echo(f"{answer.verdict.name.lower():<10} {answer.reply}")
    sys.exit(answer.verdict is not Verdict.SENT)


def _print_step(step: str, answer: str) -> None:
    click.echo(f"{step:<10} {', '.join(answer.splitlines())}")


def _change_each(
    runtime: Runtime, ids: Iterable[int], done: str, change: Callable[[Session, int], None]
) -> None:
    """Change messages one after the other, each in its own transaction."""

    def one(mail_id: int) -> str:
        with runtime.unit_of_work() as session:
            change(session, mail_id)
        return f"{mail_id} {done}"

    change_each(ids, one)


def _columns(row: Mail | MailBounce, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}
