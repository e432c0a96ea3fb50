"""`celery -A project school event …`: an event's life, from the shell. docs/events.md shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import click
from nightshift.cli.boundary import DAY
from nightshift.cli.output import (
    as_json_option,
    make_pairs,
    make_table,
    pass_runtime,
    print_json,
    print_table,
)
from nightshift.database import Session, resolve
from nightshift.runtime import Runtime

from project.school.settings import SchoolSettings
from services.school import events
from services.school.models import Event

# With fewer digits, a mistyped id is too easily that of another event.
DIGITS = 6

HEADERS = (
    "id", "state", "starts", "ends", "title", "for", "audience", "author", "version of"
)  # fmt: skip
GIVES_WAY = ("version of", "author", "audience", "ends", "for")

Command = TypeVar("Command", bound=Callable[..., Any])

id_argument = click.argument("event_id", metavar="ID")


def content(command: Command) -> Command:
    """Add the options for an event's content to a command."""
    options = (
        click.option("--title"),
        click.option("--description"),
        click.option("--location"),
        click.option(
            "--starts",
            help='"2026-12-01 08:00" on the school\'s clock, with an offset, or a date: all day.',
        ),
        click.option(
            "--ends", help="As --starts: the same for a deadline; the last day of an event by days."
        ),
        click.option("--audience", help="teachers, class_teachers, students (default) or all."),
        click.option(
            "--teaching",
            "teaching_affected",
            help="Whether lessons are affected: yes, partial or no (default).",
        ),
        click.option(
            "--class",
            "classes",
            multiple=True,
            help="A class's name. This and those below may be given several times.",
        ),
        click.option(
            "--group",
            "class_groups",
            multiple=True,
            help="The first three characters of classes, as 27G.",
        ),
        click.option("--department", "departments", multiple=True, help="A department's name."),
        click.option(
            "--user", "users", multiple=True, metavar="EMAIL", help="A person whom the event names."
        ),
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
@pass_runtime
def add(runtime: Runtime, author: str | None, **values: Any) -> None:
    """Write a draft, and print its id."""
    with runtime.unit_of_work() as session:
        new = events.read_details(
            _given(runtime, values), zone=_zone(runtime), session=session, author=author
        )
        written = events.create(session, new, author=author, now=runtime.now())
    click.echo(f"{written.id} draft")


@event.command()
@id_argument
@content
@pass_runtime
def edit(runtime: Runtime, event_id: str, author: str | None, **values: Any) -> None:
    """Change only what is given; "" empties, as in --class "".

    A published event stays as it is: the change is the draft of a new version.
    """
    zone = _zone(runtime)
    with _changing(runtime, event_id) as (session, found, now):
        written = events.edit(
            session, found, _given(runtime, values), author=author, zone=zone, now=now
        )
    click.echo(
        f"{written.id} {written.state}" + (f", a version of {found}" if written.id != found else "")
    )


@event.command()
@id_argument
@pass_runtime
def submit(runtime: Runtime, event_id: str) -> None:
    """Ask for a draft to be reviewed."""
    with _changing(runtime, event_id) as (session, found, now):
        events.submit(session, found, now=now)
    click.echo(f"{found} review")


@event.command()
@id_argument
@pass_runtime
def publish(runtime: Runtime, event_id: str) -> None:
    """Publish what was reviewed. A version replaces its event's content; the event's id stays."""
    with _changing(runtime, event_id) as (session, found, now):
        published = events.publish(session, found, now=now)
    click.echo(f"{published.id} published")


@event.command()
@id_argument
@click.option("--reason", required=True, help="Why, for its author.")
@pass_runtime
def refuse(runtime: Runtime, event_id: str, reason: str) -> None:
    """Refuse an event in review; its author may correct and submit it again."""
    with _changing(runtime, event_id) as (session, found, now):
        events.refuse(session, found, reason, now=now)
    click.echo(f"{found} refused")


@event.command()
@id_argument
@pass_runtime
def cancel(runtime: Runtime, event_id: str) -> None:
    """Cancel a published event. Calendars show it as cancelled until it has passed."""
    with _changing(runtime, event_id) as (session, found, now):
        events.cancel(session, found, now=now)
    click.echo(f"{found} cancelled")


@event.command()
@id_argument
@pass_runtime
def delete(runtime: Runtime, event_id: str) -> None:
    """Delete an event. Any but a draft can be restored.

    Calendars show a deleted event that was published as cancelled.
    """
    with _changing(runtime, event_id) as (session, found, now):
        kept = events.delete(session, found, now=now)
    click.echo(f"{found} {'deleted' if kept else 'removed'}")


@event.command()
@id_argument
@pass_runtime
def restore(runtime: Runtime, event_id: str) -> None:
    """Undo a deletion, or else a cancellation."""
    with _changing(runtime, event_id) as (session, found, now):
        restored = events.restore(session, found, now=now)
    click.echo(f"{found} {'cancelled' if restored.cancelled_at else restored.state}")


@event.command("list")
@click.option(
    "--state",
    type=click.Choice([standing.value for standing in events.Standing]),
    help="Only events in this state.",
)
@click.option("--from", "first", type=DAY, help="Only events on this day or later.")
@click.option("--to", "last", type=DAY, help="Only events on this day or earlier.")
@as_json_option
@pass_runtime
def list_events(
    runtime: Runtime,
    state: str | None,
    first: date | None,
    last: date | None,
    as_json: bool,
) -> None:
    """List events by their start, on the school's clock."""
    with runtime.read_only() as session:
        rows = events.list_events(
            session,
            zone=_zone(runtime),
            standing=None if state is None else events.Standing(state),
            first=first,
            last=last,
        )
    if as_json:
        print_json(rows)
        return
    print_table(make_table(HEADERS, map(_line, rows), gives_way=GIVES_WAY))


@event.command()
@id_argument
@as_json_option
@pass_runtime
def show(runtime: Runtime, event_id: str, as_json: bool) -> None:
    """Show all that an event says, and its versions."""
    with runtime.read_only() as session:
        found = resolve(session, Event, event_id, digits=DIGITS)
        rows = events.list_versions(session, found, zone=_zone(runtime))
    shown = next(row for row in rows if row["id"] == found)
    others = [row for row in rows if row["id"] != found]
    if as_json:
        print_json(shown | {"versions": others})
        return
    pairs = [
        (name, _show_value(value)) for name, value in shown.items() if value not in ("", [], None)
    ]
    print_table(make_pairs(pairs))
    if others:
        click.echo(
            "\nIts versions:" if found == rows[0]["id"] else "\nThe event, and its other versions:"
        )
        print_table(make_table(HEADERS, map(_line, others), gives_way=GIVES_WAY))


def _show_value(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(value)
    return _show(value) if isinstance(value, date) else value


def _line(row: dict[str, Any]) -> tuple[Any, ...]:
    named = [*row["classes"], *row["class_groups"], *row["departments"], *row["users"]]
    return (
        row["id"].hex[:8],
        row["state"],
        _show(row["starts"]),
        _show(row["ends"]),
        row["title"],
        ", ".join(named) or ("nobody" if row["addressed"] else "the whole school"),
        row["audience"],
        row["author"],
        row["version_of"] and row["version_of"].hex[:8],
    )


@contextmanager
def _changing(runtime: Runtime, prefix: str) -> Iterator[tuple[Session, UUID, datetime]]:
    """Yield a transaction, the id that begins with `prefix`, and the time.

    End with exit code 1 when a service refuses.
    """
    with runtime.unit_of_work() as session:
        yield session, resolve(session, Event, prefix, digits=DIGITS), runtime.now()


def _given(runtime: Runtime, values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    given = {name: value for name, value in values.items() if value not in (None, ())}
    return given | {
        name: _first_of_two(runtime, name, given[name])
        for name in ("starts", "ends")
        if ":" in given.get(name, "")
    }


def _first_of_two(runtime: Runtime, name: str, text: str) -> str:
    """Return a time with its offset when the clocks show it twice: take the first, and say so.

    Return other text as it is; the service refuses what is wrong.
    """
    try:
        local = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = _zone(runtime)
    first, second = (local.replace(tzinfo=local.tzinfo or zone, fold=fold) for fold in (0, 1))
    if first.timestamp() >= second.timestamp():
        return text
    click.echo(
        f"{name}: {text} happens twice, the first is taken; the second is"
        f" {second.isoformat(timespec='minutes')}",
        err=True,
    )
    return first.isoformat()


def _show(moment: date) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if isinstance(moment, datetime) else f"{moment}"


def _zone(runtime: Runtime) -> ZoneInfo:
    return runtime[SchoolSettings].school_timezone
