"""What all commands share: tables, `--json`, a service's errors, and the runtime."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from functools import wraps
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import click
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import OperationalError, ProgrammingError

from nightshift.celery.app import App
from nightshift.errors import ServiceError, first_line

Command = TypeVar("Command", bound=Callable[..., Any])
Id = TypeVar("Id")

# An instant in JSON, which is in UTC always.
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00")

# Columns of a table that is written to a file or a pipe: wide enough that no line is folded.
WIDE = 200

as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


def pass_app(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the project's app, which `celery -A` found, as its first argument."""

    @wraps(command)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return command(click.get_current_context().obj.app, *args, **options)
        except (OperationalError, ProgrammingError) as error:
            end_with(
                f"the database cannot be used: {first_line(error)}; `doctor` says what is wrong,"
                " `alembic upgrade heads` makes the tables"
            )

    return call


def pass_runtime(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the process's runtime as its first argument."""

    @wraps(command)
    def call(app: App, *args: Any, **options: Any) -> Any:
        return command(app.runtime, *args, **options)

    return pass_app(call)


def end_with(message: str) -> NoReturn:
    """Write a message to standard error, and end with exit code 1."""
    click.echo(message, err=True)
    sys.exit(1)


@contextmanager
def refusals() -> Iterator[None]:
    """When a service raises ServiceError, end with its message and exit code 1."""
    try:
        yield
    except ServiceError as error:
        end_with(str(error))


def change_each(ids: Iterable[Id], change: Callable[[Id], str]) -> NoReturn:
    """Change the things one by one, and print what `change` returns for each.

    Go on after one that is refused; the exit code is 1 then.
    """
    refused = False
    for one in ids:
        try:
            click.echo(change(one))
        except ServiceError as error:
            click.echo(str(error), err=True)
            refused = True
    sys.exit(int(refused))


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
