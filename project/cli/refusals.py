"""How a command of the school ends that a service refuses."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from services.errors import ServiceError
from services.school import loading


@contextmanager
def refusals() -> Iterator[None]:
    """End with exit code 1 and what was wrong on stderr; bad input is no reason for a traceback."""
    try:
        yield
    except loading.InvalidRows as invalid:
        for problem in invalid.problems:
            click.echo(str(problem), err=True)
        click.echo(f"nothing was loaded: {len(invalid.problems)} problems in {invalid.row_count} rows", err=True)
        sys.exit(1)
    except ServiceError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
