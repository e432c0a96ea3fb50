"""`celery -A project doctor`: what could be wrong here."""

import json
import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from project.settings import Settings

EXIT_CODES = {"ok": 0, "skip": 0, "warn": 1, "fail": 2}
STYLES = {"ok": "green", "skip": "dim", "warn": "yellow", "fail": "bold red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: status, and check, status, detail and remedy of each.")
def doctor(as_json: bool) -> None:
    """Look for what could be wrong, without changing anything and without showing secrets.

    Exit code 0: all is well; 1: there are warnings; 2: something fails. What cannot be looked at while the database is away is skipped.
    """
    from project.doctor import examine  # noqa: PLC0415 - makes the app, which the other commands do not need

    found = examine(Settings())
    worst = max((one["status"] for one in found), key=EXIT_CODES.__getitem__)
    if as_json:
        click.echo(json.dumps({"status": worst, "checks": found}, indent=1))
    else:
        table = Table("check", "", "found", "what to do", box=None)
        for one in found:
            status = f"[{STYLES[one['status']]}]{one['status']}[/]"
            table.add_row(one["check"], status, escape(one["detail"]), escape(one["remedy"]))
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    sys.exit(EXIT_CODES[worst])
