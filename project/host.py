"""What `make` does with the containers beyond starting them: `python3 -m project.host WORD`.

    ports            refuse when another program listens where a service shall
    failures         show the last lines of the services that are not well
    backup [FILE]    write a backup
    restore FILE     put a backup in the place of the database
    upgrade          take the code of this folder, while the present release serves
    rollback         go back to the release before

Only Python's own library is used: a host with Docker has no more.
"""

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from project import backups
from project.backups import Refused
from project.containers import (
    PATIENCE,
    SETTINGS,
    Containers,
    check_ports,
    compose,
    read_config,
    say,
    show_failures,
)
from project.upgrade import roll_back, upgrade


def back_up(target: str = "") -> None:
    """Write a backup; without a name, into the folder backups/ under the time of day."""
    installation = Containers()
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path = Path(target or f"backups/{installation.project}-{stamp}.tar")
    made = backups.make(path, installation, env=SETTINGS)
    say(f"{path}: release {made['version']}, at {', '.join(made['at'])}")


def restore(source: str) -> None:
    """Put a backup in the place of the database; on an empty machine, also its .env."""
    backup = backups.read(Path(source))
    if not SETTINGS.exists():
        if backup.env is None:
            raise Refused(f"{source} has no .env: copy yours here, or let `make .env` make one")
        SETTINGS.touch(0o600)
        SETTINGS.write_bytes(backup.env)
        say(".env is the one of the backup")
    elif backup.env is not None:
        _tell_differences(backup.env)
    installation = Containers()
    say("building the image, and starting the database")
    compose("build", "--quiet", "migrate")
    compose("up", "--detach", "--wait", f"--wait-timeout={PATIENCE}", "postgres")
    failed = backups.restore(backup, installation)
    say("restored; starting the services")
    try:
        installation.start()
    except Refused:
        show_failures()
        say("restored, but not all services are well")
        sys.exit(1)
    for command in failed:
        say(f"this failed, run it again: docker compose exec worker celery -A project {command}")
    if failed:
        sys.exit(1)


def _tell_differences(given: bytes) -> None:
    ours, theirs = (
        dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")
        for text in (SETTINGS.read_text(encoding="utf-8"), given.decode())
    )
    names = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if names:
        say(f".env here stays; it differs from the backup's in {', '.join(names)}")


def look_at_ports() -> None:
    """Refuse when another program listens where a service shall."""
    check_ports(read_config())


WORDS: dict[str, Callable[..., None]] = {
    "ports": look_at_ports,
    "failures": show_failures,
    "backup": back_up,
    "restore": restore,
    "upgrade": upgrade,
    "rollback": roll_back,
}


def main(word: str, *arguments: str) -> None:
    """Do what the word says. What is refused is one line, and exit code 2."""
    os.umask(0o077)
    try:
        WORDS[word](*filter(None, arguments))
    except Refused as error:
        said = {"upgrade": "not upgraded", "rollback": "not rolled back", "ports": "not started"}
        say(f"{said.get(word, 'nothing was changed')}: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
