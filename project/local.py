"""`make demo` and `make dev`: the whole of Nightshift on one machine, without a server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email import policy
from email.parser import BytesParser
from pathlib import Path

from rich.console import Console
from rich.table import Table

from project.settings import Settings

CELERY = [sys.executable, "-m", "celery", "-A", "project"]

# A worker ends when its job has; one that does not is killed.
STOP_SECONDS = 15

DEMO = {
    "DATABASE_URL": "sqlite:///var/demo/nightshift.db",
    "BROKER_URL": "filesystem://var/demo/broker",
    "FEED_STORE": "var/demo/feeds",
    "MAIL_URL": "folder://var/demo/mail",
    "SCHOOL_NAME": "Kantonsschule Seefeld",
    "WORKER_CONCURRENCY": "2",
}

# Two of the example school's users, who read German and French.
WELCOMED = ("peter.zuercher@kantonsschule.example", "francois.favre@kantonsschule.example")
MAIL_SECONDS = 15


@contextmanager
def running(*commands: Sequence[str], log: Path | None = None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start commands and stop them at the end, however it comes: warm first, then for good."""
    output = None if log is None else log.open("ab")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            # A session of its own: Ctrl-C reaches us only, and we stop them in order.
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
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
    subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], check=True)


def demo() -> int:
    """Load the example school, let a real worker build its calendars and send two mails, and show what there is now.

    Return the sync's exit code.
    """
    os.environ.update(DEMO)
    folder = Path("var/demo")
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    migrate()
    subprocess.run([*CELERY, "school", "load", "examples/school"], check=True)
    with running([*CELERY, "worker"], log=folder / "worker.log"):
        code = subprocess.run([*CELERY, "feeds", "sync"], check=False).returncode
        _welcome()
    _show_feeds(time.monotonic() - began)
    _show_mails(folder / "mail")
    return code


def _welcome() -> None:
    """Have two users welcomed, unless an earlier demo has, and wait until the worker has sent their mails."""
    from project.bootstrap import bootstrap  # noqa: PLC0415 - reads the settings, which `demo` has just made
    from services.mail import outbox  # noqa: PLC0415
    from services.mail.models import MailState  # noqa: PLC0415
    from services.school import users  # noqa: PLC0415

    boot = bootstrap()
    with boot.unit_of_work() as session:
        if not outbox.listed(session, kind="welcome", limit=1):
            for email in WELCOMED:
                users.welcome(session, email, now=boot.now())
    give_up = time.monotonic() + MAIL_SECONDS
    while time.monotonic() < give_up:
        with boot.read_only() as session:
            if outbox.counts(session).get(("welcome", MailState.SENT), 0) >= len(WELCOMED):
                return
        time.sleep(0.1)


def _show_feeds(seconds: float) -> None:
    from project.bootstrap import bootstrap  # noqa: PLC0415 - reads the settings, which `demo` has just made
    from services.calendars import sync  # noqa: PLC0415
    from services.calendars.models import FeedKind  # noqa: PLC0415

    boot = bootstrap()
    with boot.read_only() as session:
        totals = sync.totals(session)
        run = sync.summary(sync.last_runs(session)[0])
    table = Table("kind", "feeds", "events", "bytes", "seconds")
    for row in totals:
        table.add_row(row["kind"], f"{row['feeds']:,}", f"{row['events']:,}", f"{row['bytes']:,}", "")
    table.add_row("sync", "", "", "", f"{run['seconds']:.2f}", style="bold")
    console = Console()
    console.print(table)
    example = boot.feed_store.path(FeedKind.CLASS, 1)
    console.print(
        f"The calendars are in {boot.feed_store.root}/, the worker's log in var/demo/worker.log; all of it took {seconds:.0f} s.",
        soft_wrap=True,
    )
    console.print(f"Open one: import {example} into any calendar program, or look at it with `less {example}`.", soft_wrap=True)


def _show_mails(folder: Path) -> None:
    console = Console()
    console.out("The mails that the worker sent are files, for any mail program:")
    for file in sorted(folder.glob("*.eml")):
        mail = BytesParser(policy=policy.default).parsebytes(file.read_bytes(), headersonly=True)
        console.out(f"  {file}  {mail['Subject']}  to {mail['To']}", highlight=False)


def dev() -> int:
    """Run worker, beat, feed server and Flower with the settings of the environment until Ctrl-C, or until one of them ends."""
    migrate()
    settings = Settings()
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
            "Flower: http://127.0.0.1:5555 (login: FLOWER_BASIC_AUTH, admin:change-me by default). Ctrl-C stops everything.",
            f"Calendars: {settings.public_url}; `celery -A project feeds url class NAME` prints an address.",
            f"Mail: {settings.mail_url}",
        ):
            Console().print(line, soft_wrap=True)
        try:
            while all(process.poll() is None for process in processes):
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit({"demo": demo, "dev": dev}[sys.argv[1]]())
