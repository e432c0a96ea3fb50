"""What all commands share: tables, `--json`, a service's errors, and the runtime."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, NoReturn, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from nightshift.celery.app import App
from nightshift.cli.boundary import end_with, exit_code, refusals, refuse_unusable_text
from nightshift.errors import ServiceError
from nightshift.observe.words import show_age, show_span

__all__ = [
    "as_json_option",
    "change_each",
    "end_with",
    "pass_app",
    "pass_runtime",
    "print_json",
    "print_rows",
    "refusals",
]

Command = TypeVar("Command", bound=Callable[..., Any])
Id = TypeVar("Id")

# An instant in JSON, which is in UTC always.
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00")

# Columns of a table that is written to a file or a pipe: wide enough that no line is folded.
WIDE = 200
# Between two columns; and what a column keeps while others give way.
GAP, NARROW = 2, 32

as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


def pass_app(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the project's app, which `celery -A` found, as its first argument.

    What a person can cause becomes a line on standard error: see boundary.py.
    """

    @wraps(command)
    def call(*args: Any, **options: Any) -> Any:
        context = click.get_current_context()
        refuse_unusable_text(context)
        with refusals():
            return command(context.obj.app, *args, **options)

    return call


def pass_runtime(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the process's runtime as its first argument."""

    @wraps(command)
    def call(app: App, *args: Any, **options: Any) -> Any:
        return command(app.runtime, *args, **options)

    return pass_app(call)


def change_each(ids: Iterable[Id], change: Callable[[Id], str]) -> NoReturn:
    """Change the things one by one, and print what `change` returns for each.

    Go on after one that is refused; the exit code is 1 then, and 2 after one that cannot exist.
    """
    code = 0
    for one in ids:
        try:
            click.echo(change(one))
        except ServiceError as error:
            click.echo(str(error), err=True)
            code = max(code, exit_code(error))
    sys.exit(code)


def make_console() -> Console:
    """Return a console as wide as the terminal; where there is none, WIDE."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


def make_table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], *, gives_way: Sequence[str] = ()
) -> Table:
    """Return a table of plain values, each as `show` returns it, that fits the console.

    A column without a value is left out. Where there is no room, first the columns of `gives_way`
    are left out, in that order; then the widest are cut.
    """
    cells = [[show(value) for value in row] for row in rows]
    widths = {
        header: max(cell_len(line) for line in [header, *column])
        for header, *column in zip(headers, *cells, strict=True)
        if not cells or any(column)
    }
    _fit(widths, make_console().width, gives_way)
    table = Table(box=None, padding=(0, GAP, 0, 0))
    for header, width in widths.items():
        table.add_column(header, width=width, no_wrap=True, overflow="ellipsis")
    for row in cells:
        named = zip(headers, row, strict=True)
        table.add_row(*(escape(_join_lines(text)) for header, text in named if header in widths))
    return table


def _fit(widths: dict[str, int], room: int, gives_way: Iterable[str]) -> None:
    """Leave out columns, and narrow the widest, until a line has no more than `room` characters."""

    def count_excess(most: int) -> int:
        return sum(min(width, most) + GAP for width in widths.values()) - room

    for header in gives_way:
        if count_excess(NARROW) > 0:
            widths.pop(header, None)
    while widths and count_excess(max(widths.values())) > 0 and max(widths.values()) > 1:
        widest = max(widths, key=widths.__getitem__)
        widths[widest] -= 1


def _join_lines(text: str) -> str:
    return " ".join(text.splitlines())


def make_pairs(pairs: Iterable[tuple[str, Any]]) -> Table:
    """Return a page of names and their values, which may take several lines."""
    table = Table(box=None, show_header=False, padding=(0, GAP, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, escape(show(value)))
    return table


def show(value: Any) -> str:
    """Return a value as text: None is empty, an instant is in the local zone to the second."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, timedelta):
        return show_span(value)
    text = str(value)
    if INSTANT.fullmatch(text):
        return show(datetime.fromisoformat(text))
    # Half a character, as file names may hold, goes to no terminal.
    return text.encode(errors="replace").decode()


def print_json(value: Any, *, indent: int | None = 1) -> None:
    """Print a value as JSON. Instants are in UTC: 2026-05-04T06:15:00Z."""
    text = json.dumps(to_plain(value), indent=indent, ensure_ascii=False)
    # A file's name may hold bytes that are not UTF-8; a terminal does not accept those.
    click.echo(text.encode(errors="replace"))


def to_plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(name): to_plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, str) and INSTANT.fullmatch(value):
        return value.replace("+00:00", "Z")
    return value if isinstance(value, str | int | float | None) else str(value)


def print_rows(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    *,
    as_json: bool,
    gives_way: Sequence[str] = (),
) -> None:
    """Print rows as a table of these columns, or with all their columns as a JSON array.

    In the table an instant is its age. `gives_way` names the columns that it leaves out first
    where there is no room.
    """
    if as_json:
        print_json(rows)
        return
    now = datetime.now(UTC)
    cells = (
        [show_age(one, now) if isinstance(one, datetime) else one for one in map(row.get, columns)]
        for row in rows
    )
    headers = [name.removesuffix("_at").replace("_", " ") for name in columns]
    narrow = [headers[columns.index(name)] for name in gives_way]
    print_table(make_table(headers, cells, gives_way=narrow))


def print_table(table: RenderableType) -> None:
    """Print a table."""
    make_console().print(table)
