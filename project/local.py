"""`make dev`: all processes of this project on one machine, without a server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from project.settings import ProjectSettings

CELERY = [sys.executable, "-m", "celery", "-A", "project"]

# A worker ends when its job has; one that does not is killed.
STOP_SECONDS = 15


@contextmanager
def running(
    *commands: Sequence[str], log: Path | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start commands, and stop them at the end: warm first, then for good."""
    output = None if log is None else log.open("ab")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            # A session of its own: Ctrl-C reaches us only, and we stop them in order.
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
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
            except subprocess.TimeoutExpired:
                process.kill()
        if output is not None:
            output.close()


def migrate() -> None:
    """Bring the database's tables up to date."""
    subprocess.run([sys.executable, "-m", "alembic", "upgrade", "heads"], check=True)


def dev() -> int:
    """Run worker, beat, web server and Flower by the environment's settings.

    They run until Ctrl-C, or until one of them ends.
    """
    migrate()
    settings = ProjectSettings()
    worker = [*CELERY, "worker", "--task-events"]
    # kwargs: a job's arguments travel by name.
    columns = "--tasks-columns=name,uuid,state,kwargs,received,started,runtime,worker"
    flower = [*CELERY, "flower", "--address=127.0.0.1", "--port=5555", columns]
    # Flower reads its login from the environment only.
    os.environ.setdefault("FLOWER_BASIC_AUTH", settings.flower_basic_auth.get_secret_value())
    # `make dev` ends like its processes do: with TERM as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    web = [sys.executable, "-m", "project.web"]
    with running(worker, [*CELERY, "beat"], web, flower) as processes:
        for line in (
            "Flower: http://127.0.0.1:5555 (login: FLOWER_BASIC_AUTH, admin:change-me by default)",
            f"Web server: {settings.public_url}",
            "Ctrl-C stops everything.",
        ):
            Console().print(line, soft_wrap=True)
        try:
            while all(process.poll() is None for process in processes):
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(dev())
