"""`celery -A project school event …`: an event's life, from the shell. docs/events.md shows it."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any, TypeVar
from uuid import UUID

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from project.bootstrap import bootstrap
from project.cli.refusals import refusals
from services.database import Session, resolve
from services.school import events
from services.school.models import Event

# Fewer digits than this are as easily another event's.
DIGITS = 6

Command = TypeVar("Command", bound=Callable[..., Any])

id_argument = click.argument("event_id", metavar="ID")


def content(command: Command) -> Command:
    """Give a command the options that say what an event says."""
    options = (
        click.option("--title"),
        click.option("--description"),
        click.option("--location"),
        click.option("--starts", help='"2026-12-01 08:00" on the school\'s clock, with an offset, or a date: all day.'),
        click.option("--ends", help="As --starts: the same for a deadline; the last day of an event by days."),
        click.option("--audience", help="teachers, class_teachers, students (default) or all."),
        click.option("--teaching", "teaching_affected", help="Whether lessons are affected: yes, partial or no (default)."),
        click.option("--class", "classes", multiple=True, help="A class's name. This and those below may be given several times."),
        click.option("--group", "class_groups", multiple=True, help="The first three characters of classes, as 27G."),
        click.option("--department", "departments", multiple=True, help="A department's name."),
        click.option("--user", "users", multiple=True, metavar="EMAIL", help="A person whom the event names."),
        click.option("--author", metavar="EMAIL", help="Who writes this."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def event() -> None:
    """Write, review and publish events. An ID may be given by its first digits, six or more."""


@event.command()
@content
def add(author: str | None, **values: Any) -> None:
    """Write a draft, and print its id."""
    boot = bootstrap()
    with refusals(), boot.unit_of_work() as session:
        new = events.details(_given(values), zone=boot.settings.school_timezone)
        written = events.create(session, new, author=author, now=boot.now())
    click.echo(f"{written.id} draft")


@event.command()
@id_argument
@content
def edit(event_id: str, author: str | None, **values: Any) -> None:
    """Change only what is given; "" empties, as in --class "". Of a published event, which stays as it is, a new version is drafted."""
    zone = bootstrap().settings.school_timezone
    with _changing(event_id) as (session, found, now):
        written = events.edit(session, found, _given(values), author=author, zone=zone, now=now)
    click.echo(f"{written.id} {written.state}" + (f", a version of {found}" if written.id != found else ""))


@event.command()
@id_argument
def submit(event_id: str) -> None:
    """Ask for a draft to be reviewed."""
    with _changing(event_id) as (session, found, now):
        events.submit(session, found, now=now)
    click.echo(f"{found} review")


@event.command()
@id_argument
def publish(event_id: str) -> None:
    """Publish what was reviewed. A version replaces what its event says; the event's id stays."""
    with _changing(event_id) as (session, found, now):
        published = events.publish(session, found, now=now)
    click.echo(f"{published.id} published")


@event.command()
@id_argument
@click.option("--reason", required=True, help="Why, for its author.")
def refuse(event_id: str, reason: str) -> None:
    """Refuse what was to be reviewed; its author may mend and submit it again."""
    with _changing(event_id) as (session, found, now):
        events.refuse(session, found, reason, now=now)
    click.echo(f"{found} refused")


@event.command()
@id_argument
def cancel(event_id: str) -> None:
    """Cancel a published event. Calendars show it as cancelled until it has passed."""
    with _changing(event_id) as (session, found, now):
        events.cancel(session, found, now=now)
    click.echo(f"{found} cancelled")


@event.command()
@id_argument
def delete(event_id: str) -> None:
    """Delete an event. A draft is gone for good, anything else can be restored; a published one counts as cancelled."""
    with _changing(event_id) as (session, found, now):
        kept = events.delete(session, found, now=now)
    click.echo(f"{found} {'deleted' if kept else 'removed'}")


@event.command()
@id_argument
def restore(event_id: str) -> None:
    """Undo a deletion, or else a cancellation."""
    with _changing(event_id) as (session, found, now):
        restored = events.restore(session, found, now=now)
    click.echo(f"{found} {'cancelled' if restored.cancelled_at else restored.state}")


@event.command("list")
@click.option("--state", type=click.Choice([standing.value for standing in events.Standing]), help="Only events in this state.")
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), help="Only events on this day or later.")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), help="Only events on this day or earlier.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_events(state: str | None, first: datetime | None, last: datetime | None, as_json: bool) -> None:
    """List events by their start, on the school's clock."""
    boot = bootstrap()
    with boot.read_only() as session:
        rows = events.listed(
            session,
            zone=boot.settings.school_timezone,
            standing=None if state is None else events.Standing(state),
            first=first and first.date(),
            last=last and last.date(),
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False, default=_text))
        return
    table = Table("id", "state", "starts", "ends", "title", "audience", "for", "author", "version of")
    for row in rows:
        named = [*row["classes"], *row["class_groups"], *row["departments"], *row["users"]]
        table.add_row(
            row["id"].hex[:8],
            row["state"],
            _shown(row["starts"]),
            _shown(row["ends"]),
            escape(row["title"]),
            row["audience"],
            escape(", ".join(named)) or ("nobody" if row["addressed"] else "the whole school"),
            escape(row["author"] or ""),
            row["version_of"] and row["version_of"].hex[:8],
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@contextmanager
def _changing(prefix: str) -> Iterator[tuple[Session, UUID, datetime]]:
    """Give a transaction, the id that begins so, and the time; what is refused ends with exit code 1."""
    boot = bootstrap()
    with refusals(), boot.unit_of_work() as session:
        yield session, resolve(session, Event, prefix, digits=DIGITS), boot.now()


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    given = {name: value for name, value in values.items() if value not in (None, ())}
    return given | {name: _first_of_two(name, given[name]) for name in ("starts", "ends") if ":" in given.get(name, "")}


def _first_of_two(name: str, text: str) -> str:
    """Return a time with its offset when the clocks show it twice: the first is taken, and said. What is wrong is refused elsewhere."""
    try:
        local = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = bootstrap().settings.school_timezone
    first, second = (local.replace(tzinfo=local.tzinfo or zone, fold=fold) for fold in (0, 1))
    if first.timestamp() >= second.timestamp():
        return text
    click.echo(f"{name}: {text} happens twice, the first is taken; the second is {second.isoformat(timespec='minutes')}", err=True)
    return first.isoformat()


def _shown(moment: date) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if isinstance(moment, datetime) else f"{moment}"


def _text(value: date | UUID) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)
