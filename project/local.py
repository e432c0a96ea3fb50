"""`make dev`: all processes of this project on one machine, without a server."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Thread
from typing import IO

import click
from celery.app.utils import find_app
from nightshift.cli.output import refusals
from nightshift.component import Composition
from nightshift.desk.logins import USUAL_NAME
from nightshift.jobs import rescue, schedule
from nightshift.runtime import Runtime
from nightshift.settings import PLACEHOLDER
from nightshift.web.server import read_bind, require_free_port
from sqlalchemy.exc import SQLAlchemyError

CELERY = [sys.executable, "-m", "celery", "-A", "project"]

# A worker ends when its job has; one that does not is killed.
STOP_SECONDS = 15

POLL_SECONDS, SETTLE_SECONDS = 0.5, 2.0

DESK_LOGIN = f"{USUAL_NAME}:{PLACEHOLDER}"
FLOWER_LOGIN = f"admin:{PLACEHOLDER}"
COLOURS = {
    "worker": "cyan",
    "beat": "magenta",
    "web": "green",
    "desk": "bright_blue",
    "flower": "yellow",
    "dev": "blue",
}


@contextmanager
def running(
    *commands: Sequence[str], log: Path | None = None, piped: bool = False
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start commands, and stop them at the end: warm first, then for good.

    What they write goes to `log`, or is `piped` to us, or else to where our own output goes.
    """
    processes: list[subprocess.Popen[bytes]] = []
    sink: AbstractContextManager[IO[bytes] | int | None]
    sink = nullcontext(subprocess.PIPE if piped else None) if log is None else log.open("ab")
    errors = None if log is None and not piped else subprocess.STDOUT
    try:
        with sink as output:
            for command in commands:
                # A session of its own: Ctrl-C reaches us only, and we stop them in order.
                process = subprocess.Popen(
                    command, stdout=output, stderr=errors, start_new_session=True
                )
                processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.terminate()
        give_up = time.monotonic() + STOP_SECONDS
        for process in processes:
            try:
                process.wait(max(0.1, give_up - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # or a second Ctrl-C
                process.kill()
                process.wait()


def migrate() -> None:
    """Bring the database's tables up to date. End with Alembic's exit code when it fails."""
    upgrade = [sys.executable, "-m", "alembic", "--quiet", "upgrade", "heads"]
    done = subprocess.run(upgrade, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why


def dev() -> int:
    """Run worker, beat, web server, desk and Flower by the environment's settings.

    They run until Ctrl-C, or until one of them ends.
    """
    runtime: Runtime = find_app("project").runtime
    settings = runtime.settings
    with refusals():
        require_free_port("WEB_BIND", *read_bind(settings.web_bind))
        require_free_port("DESK_BIND", *read_bind(settings.desk_bind))
        require_free_port("FLOWER_PORT", "127.0.0.1", settings.flower_port)
    migrate()
    # kwargs: a job's arguments travel by name.
    columns = "--tasks-columns=name,uuid,state,kwargs,received,started,runtime,worker"
    commands = {
        "worker": [*CELERY, "worker", "--task-events"],
        "beat": [*CELERY, "beat"],
        "web": [sys.executable, "-m", "project.web"],
        "desk": [*CELERY, "desk"],
        "flower": [*CELERY, "flower", columns],
    }
    # A pipe's lines must not wait for others.
    os.environ["PYTHONUNBUFFERED"] = "1"
    # `make dev` ends like its processes do: with TERM as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(*commands.values(), piped=True) as processes:
            started = dict(zip(commands, processes, strict=True))
            for name, process in started.items():
                Thread(target=_copy_lines, args=(name, process.stdout), daemon=True).start()
            ended = _watch(runtime, started)
            _say("dev", f"{ended} has ended, and its last lines say why: the others are stopped")
    except KeyboardInterrupt:
        _say("dev", "all processes are stopped")
        return 0
    return 1


def _watch(runtime: Runtime, started: dict[str, subprocess.Popen[bytes]]) -> str:
    """Wait until a process ends, and return its name. Print the addresses when all are ready."""
    ready_for, told = 0.0, False
    while True:
        for name, process in started.items():
            if process.poll() is not None:
                return name
        ready_for += POLL_SECONDS if not told and _are_ready(runtime) else 0.0
        # They write some lines more when they are ready; the addresses come after these.
        if not told and ready_for > SETTLE_SECONDS:
            told = True
            _say("dev", f"Web server: http://{runtime.settings.web_bind}")
            _say("dev", f"Desk:       http://{runtime.settings.desk_bind}")
            _say("dev", f"            its login is {DESK_LOGIN} until DESK_USERS names others")
            _say("dev", f"Flower:     http://127.0.0.1:{runtime.settings.flower_port}")
            _say("dev", f"            its login is FLOWER_BASIC_AUTH, {FLOWER_LOGIN} by default")
            _say("dev", "Ctrl-C stops everything.")
        time.sleep(POLL_SECONDS)


def _are_ready(runtime: Runtime) -> bool:
    """Return whether worker and beat have written to the database, and the others listen."""
    settings, entries = runtime.settings, runtime[Composition].schedule(runtime)
    try:
        with runtime.read_only() as session:
            fired = schedule.read_last_fires(session)
            living = rescue.find_living_workers(session, silent_after=settings.worker_silent_after)
        for address in (
            read_bind(settings.web_bind),
            read_bind(settings.desk_bind),
            ("127.0.0.1", settings.flower_port),
        ):
            socket.create_connection(address, timeout=1).close()
    except (OSError, SQLAlchemyError):
        return False
    return bool(living) and all(entry.name in fired for entry in entries)


def _copy_lines(name: str, lines: IO[bytes]) -> None:
    """Print what a process writes, each line with the process's name before it."""
    for line in lines:
        _say(name, line.decode(errors="replace").rstrip())


def _say(name: str, line: str) -> None:
    # Without a terminal click leaves the colour out.
    click.echo(f"{click.style(f'{name:<6} |', fg=COLOURS[name])} {line}")


if __name__ == "__main__":
    sys.exit(dev())
