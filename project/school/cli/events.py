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
    "id", "state", "starts", "ends", "repeats", "title", "for", "audience", "author", "version of"
)  # fmt: skip
GIVES_WAY = ("version of", "repeats", "author", "audience", "ends", "for")

Command = TypeVar("Command", bound=Callable[..., Any])

id_argument = click.argument("event_id", metavar="ID")
on_option = click.option(
    "--on", type=DAY, help="One date of a repeated event, by the day that its rule has."
)

# What one date of a repeated event may have of its own.
OF_A_DATE = {"starts", "ends", "title", "description", "location"}


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
        click.option(
            "--repeats",
            metavar="RULE",
            help='An RRULE that ends, as "FREQ=WEEKLY;BYDAY=MO;UNTIL=20270131".',
        ),
        click.option(
            "--without",
            multiple=True,
            metavar="DATE",
            help="A date that the rule has and the event leaves out.",
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
def add(runtime: Runtime, author: str | None, without: tuple[str, ...], **values: Any) -> None:
    """Write a draft, and print its id."""
    zone = _zone(runtime)
    with runtime.unit_of_work() as session:
        new = events.read_details(
            _given(runtime, values), zone=zone, session=session, author=author
        )
        written = events.create(
            session,
            new,
            author=author,
            zone=zone,
            now=runtime.now(),
            without=_read_dates(without),
        )
    click.echo(f"{written.id} draft")


@event.command()
@id_argument
@content
@on_option
@click.option("--as-usual", is_flag=True, help="With --on: make that date as every date.")
@pass_runtime
def edit(
    runtime: Runtime,
    event_id: str,
    *,
    author: str | None,
    without: tuple[str, ...],
    on: date | None,
    as_usual: bool,
    **values: Any,
) -> None:
    """Change only what is given; "" empties, as in --class "".

    A published event stays as it is: the change is the draft of a new version. With --on, change
    --starts, --ends, --title, --description or --location of one date of a repeated event.
    """
    zone = _zone(runtime)
    given = _given(runtime, values)
    if on is not None and (
        wrong := sorted({*given, *(["without"] if without else [])} - OF_A_DATE)
    ):
        raise click.UsageError(f"--on changes one date, which has no {', '.join(wrong)}")
    if as_usual and (on is None or given):
        raise click.UsageError("--as-usual needs --on, and nothing else")
    with _changing(runtime, event_id) as (session, found, now):
        if on is None:
            written = events.edit(
                session,
                found,
                given,
                author=author,
                without=_read_dates(without) if without else None,
                zone=zone,
                now=now,
            )
        else:
            written = events.edit_date(
                session, found, on, None if as_usual else given, author=author, zone=zone, now=now
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
@on_option
@pass_runtime
def cancel(runtime: Runtime, event_id: str, on: date | None) -> None:
    """Cancel a published event. Calendars show it as cancelled until it has passed."""
    with _changing(runtime, event_id) as (session, found, now):
        if on is None:
            events.cancel(session, found, now=now)
        else:
            events.cancel_date(session, found, on, zone=_zone(runtime), now=now)
    click.echo(f"{found} cancelled" + (f" on {on}" if on else ""))


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
@on_option
@pass_runtime
def restore(runtime: Runtime, event_id: str, on: date | None) -> None:
    """Undo a deletion, or else a cancellation."""
    with _changing(runtime, event_id) as (session, found, now):
        if on is not None:
            events.restore_date(session, found, on, zone=_zone(runtime), now=now)
            click.echo(f"{found} takes place on {on}")
            return
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
        return ", ".join(map(_show_member, value))
    return _show(value) if isinstance(value, date) else value


def _show_member(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    # One date of a repeated event.
    said = (f"{name} {_show_value(one)}" for name, one in value.items() if name in OF_A_DATE)
    return f"{value['on']} {' '.join([value['state'].replace('_', ' '), *said])}"


def _read_dates(texts: tuple[str, ...]) -> list[date]:
    """Return the days of an option that may be given several times; "" is none."""
    return [DAY.convert(text, None, None) for text in texts if text]


def _line(row: dict[str, Any]) -> tuple[Any, ...]:
    named = [*row["classes"], *row["class_groups"], *row["departments"], *row["users"]]
    return (
        row["id"].hex[:8],
        row["state"],
        _show(row["starts"]),
        _show(row["ends"]),
        row["repeats"],
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
