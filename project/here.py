"""Back up and restore an installation without Docker.

    python -m project.here backup FILE
    python -m project.here restore FILE

SQLite needs nothing more; Postgres needs pg_dump, pg_restore and psql on the PATH, as new as its
server. docs/deployment.md says what is in a backup. With Docker it is `make backup`.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from nightshift.cli.output import refusals
from sqlalchemy import make_url

from project import backups
from project.celery import app
from project.facts import read_facts

SETTINGS = Path(".env")


class Here:
    """The installation of this folder's settings. Its processes are started by others."""

    def __init__(self) -> None:
        self.database = _find_database()

    def read_facts(self, *, database: bool) -> dict[str, Any]:
        """Return what project/facts.py says."""
        return read_facts(database=database)

    def migrate(self) -> None:
        """Bring the database's tables up to date."""
        self._disconnect()
        backups.run([sys.executable, "-m", "alembic", "upgrade", "heads"])

    def stop(self) -> None:
        """Raise Refused while a worker lives: it would go on with the database that is replaced."""
        workers = _count_workers()
        self._disconnect()
        if workers:
            raise backups.Refused(
                f"{workers} workers run: stop all processes of this project first"
            )

    def start(self) -> None:
        """Do nothing: who runs the processes starts them."""

    def run_command(self, command: str) -> bool:
        """Run one of the project's commands. Return whether it succeeded."""
        celery = [sys.executable, "-m", "celery", "-A", "project"]
        return not subprocess.run([*celery, *shlex.split(command)], check=False).returncode

    def _disconnect(self) -> None:
        app.runtime.disconnect()


def _count_workers() -> int:
    try:
        return int(read_facts(database=True)["workers"])
    except Exception:  # noqa: BLE001 - a database that is missing or damaged has no worker
        return 0


def _find_database() -> backups.Database:
    url = make_url(app.runtime.settings.database_url)
    if url.get_backend_name() == "sqlite":
        return backups.Sqlite(Path(str(url.database)))
    if app.runtime.settings.database_pooler != "none":
        raise backups.Refused(
            "a backup needs Postgres itself: let DATABASE_URL lead to it, with DATABASE_POOLER=none"
        )
    named = {"--host": url.host, "--port": url.port, "--username": url.username}
    asked = {key: str(value) for key, value in url.query.items() if key.startswith("ssl")}
    tls = app.runtime.settings.database_tls | asked
    # psycopg has the password of POSTGRES_PASSWORD too, where the URL has none.
    password = url.password or app.runtime.settings.postgres_password.get_secret_value()
    environment = {f"PG{key.upper()}": value for key, value in tls.items()}
    if password:
        environment |= {"PGPASSWORD": str(password), "PGCONNECT_TIMEOUT": "5"}
    return backups.Postgres(
        str(url.database),
        options=[f"{option}={value}" for option, value in named.items() if value],
        environment=environment,
    )


@click.group()
def main() -> None:
    """Back up and restore this installation."""


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Write a backup of this installation into FILE."""
    with refusals():
        made = backups.make(file, Here(), env=SETTINGS)
        click.echo(f"{file}: release {made['version']}, at {', '.join(made['at'])}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def restore(file: Path) -> None:
    """Put the backup in FILE in the place of this installation's database."""
    with refusals():
        failed = backups.restore(backups.read(file), Here())
    click.echo("restored; start the processes again")
    for command in failed:
        click.echo(f"this failed, run it again: celery -A project {command}", err=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    try:
        main()
    except backups.Refused as error:
        click.echo(f"nothing was changed: {error}", err=True)
        sys.exit(2)
