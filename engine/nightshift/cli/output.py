"""What all commands share: tables, `--json`, a service's errors, and the runtime."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from functools import wraps
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import click
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from nightshift.celery.app import App
from nightshift.cli.boundary import end_with, exit_code, refusals, refuse_unusable_text
from nightshift.errors import ServiceError

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


def make_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], **options: Any) -> Table:
    """Return a table of plain values, each as `show` returns it."""
    table = Table(*headers, **options)
    for row in rows:
        table.add_row(*(escape(show(value)) for value in row))
    return table


def show(value: Any) -> str:
    """Return a value as text: None is empty, an instant is in UTC to the second."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    if INSTANT.fullmatch(text):
        return f"{text[:19]}Z"
    # Half a character, as file names may hold, goes to no terminal.
    return text.encode(errors="replace").decode()


def print_json(value: Any, *, indent: int | None = 1) -> None:
    """Print a value as JSON."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_to_json)
    # A file's name may hold bytes that are not UTF-8; a terminal does not accept those.
    click.echo(text.encode(errors="replace"))


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows as a table of these columns, or with all their columns as a JSON array."""
    if as_json:
        print_json(rows)
    else:
        print_table(make_table(columns, ([row[name] for name in columns] for row in rows)))


def print_table(table: RenderableType) -> None:
    """Print a table."""
    make_console().print(table)


def _to_json(value: date | UUID) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)
