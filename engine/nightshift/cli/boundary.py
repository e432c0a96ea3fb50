"""Where an error becomes a line: what a person typed, or set, ends in no traceback.

Exit code 1: a service refused, because of the state that it met. Exit code 2: an argument, a
setting or a file is wrong, or the database cannot be used.
"""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from sqlalchemy.exc import SQLAlchemyError

from nightshift.database import explain
from nightshift.errors import InvalidInput, ServiceError
from nightshift.jobs.args import UNSTORABLE

LONGEST_TEXT = 100_000

# What a command accepts as a number of rows, and as a row's number: databases count to 2^63.
LIMIT = click.IntRange(1, 100_000)
ROW_NUMBER = click.IntRange(1, 2**63 - 1)


class FilePath(click.Path):
    """A path without control characters: NUL raises in click's own type, others break lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if re.search(r"[\0-\x1f\x7f]", str(value)):
            self.fail(f"{str(value)!r} holds a control character.", param, ctx)
        return super().convert(value, param, ctx)


class Day(click.ParamType[date]):
    """A date as 2026-05-04, of a year in which a day's begin and end are times in every zone."""

    name = "date"
    years = range(1900, 2200)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """Return the date."""
        if isinstance(value, date):
            return value
        try:
            day = datetime.strptime(value, "%Y-%m-%d").date()  # noqa: DTZ007 - no time of day
        except ValueError:
            self.fail(f"{value!r} is not a date such as 2026-05-04.", param, ctx)
        if day.year not in self.years:
            self.fail(f"{value!r}: the year must be {min(self.years)} to {max(self.years)}.")
        return day


DAY = Day()


def end_with(message: str, *, code: int = 1) -> NoReturn:
    """Write a message to standard error, and end with an exit code."""
    # A path or a driver's message may hold bytes that are not UTF-8.
    click.echo(message.encode(errors="replace"), err=True)
    sys.exit(code)


def exit_code(error: ServiceError) -> int:
    """Return the exit code that a service's refusal ends with."""
    return 2 if isinstance(error, InvalidInput) else 1


@contextmanager
def refusals() -> Iterator[None]:
    """End with the error's message when a service, a setting, the database or a file refuses."""
    try:
        yield
    except ServiceError as error:
        end_with(str(error), code=exit_code(error))
    except SQLAlchemyError as error:
        end_with(f"the database cannot be used: {explain(error)}", code=2)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # click ends quietly: `jobs list | head -1`
        where = f"{error.filename}: " if error.filename else ""
        end_with(f"{where}{error.strerror or error}", code=2)


def refuse_unusable_text(context: click.Context) -> None:
    """Raise click.BadParameter, which names the argument, for text that nothing could hold."""
    for parameter in context.command.params:
        given = context.params.get(parameter.name or "")
        for value in given if isinstance(given, tuple) else (given,):
            if reason := _find_unusable(value):
                raise click.BadParameter(reason, ctx=context, param=parameter)


def _find_unusable(value: Any) -> str:
    if not isinstance(value, str | Path):
        return ""
    text = str(value)
    if len(text) > LONGEST_TEXT:
        return f"it has {len(text)} characters; at most {LONGEST_TEXT} are read."
    # Half a character is a byte that was not UTF-8: the name of a file may hold it.
    if "\0" in text or (isinstance(value, str) and UNSTORABLE.search(text)):
        return "it holds a NUL character, or bytes that are not UTF-8."
    return ""
