"""`celery -A project doctor`: what is wrong with an installation."""

import sys

import click
from rich.markup import escape
from rich.table import Table

from nightshift.cli.output import as_json_option, pass_runtime, print_json, print_table
from nightshift.component import SEVERITY, Status
from nightshift.observe.probes import examine
from nightshift.runtime import Runtime

STYLES = {
    Status.OK: "green",
    Status.SKIP: "dim",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
}


@click.command()
@as_json_option
@pass_runtime
def doctor(runtime: Runtime, as_json: bool) -> None:
    """Check this installation. Change nothing, and show no secret.

    Exit code 0: all is well; 1: there are warnings; 2: a check fails. While the database is away,
    the checks that read it are skipped.
    """
    found = examine(runtime)
    worst = max((one.status for one in found), key=SEVERITY.__getitem__)
    if as_json:
        print_json(
            {
                "status": worst,
                "checks": [
                    {
                        "check": one.probe,
                        "status": one.status,
                        "detail": one.detail,
                        "remedy": one.remedy,
                    }
                    for one in found
                ],
            }
        )
    else:
        table = Table(box=None, pad_edge=False)
        remedies = ["what to do"] if any(one.remedy for one in found) else []
        for header in ("check", "", "found", *remedies):
            table.add_column(header, overflow="fold")
        for one in found:
            status = f"[{STYLES[one.status]}]{one.status}[/]"
            cells = [one.probe, status, escape(one.detail), escape(one.remedy)]
            table.add_row(*cells[: len(table.columns)])
        print_table(table)
    sys.exit(SEVERITY[worst])
