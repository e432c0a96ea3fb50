"""`make demo`: the example school on one machine, without a server.

It loads the school, lets a real worker build its calendars and send two mails, and shows both.
"""

import os
import subprocess
import sys
import time
from email import policy
from email.parser import BytesParser
from pathlib import Path

from nightshift.component import Composition
from nightshift.runtime import Runtime
from rich.console import Console
from rich.table import Table

from project.app import COMPONENTS
from project.local import CELERY, migrate, running
from services.calendars import feeds, sync
from services.calendars.models import FeedKind
from services.calendars.store import FeedStore
from services.mail import outbox
from services.mail.models import MailState
from services.school import users

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
MAIL_SECONDS = 60  # a keeper on a busy machine takes a while to start


def demo() -> int:
    """Load the example school, let a worker build its calendars and send two mails; show both.

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
        runtime = Composition(COMPONENTS).runtime()
        _welcome(runtime)
    _show_feeds(runtime, time.monotonic() - began)
    _show_mails(folder / "mail")
    return code


def _welcome(runtime: Runtime) -> None:
    """Welcome two users, unless an earlier demo has, and wait until their mails are sent."""
    with runtime.unit_of_work() as session:
        if not outbox.find_mails(session, kind="welcome", limit=1):
            for email in WELCOMED:
                users.welcome(session, email, now=runtime.now())
    give_up = time.monotonic() + MAIL_SECONDS
    while time.monotonic() < give_up:
        with runtime.read_only() as session:
            if outbox.count_mails(session).get(("welcome", MailState.SENT), 0) >= len(WELCOMED):
                return
        time.sleep(0.1)
    late = f"The worker has not sent the mails within {MAIL_SECONDS} s: they are still queued."
    Console().print(late)


def _show_feeds(runtime: Runtime, seconds: float) -> None:
    with runtime.read_only() as session:
        counts = feeds.count_feeds(session)
        run = sync.find_last_run(session)
    table = Table("kind", "feeds", "events", "bytes", "seconds")
    for kind, (number, _failed, events, size) in counts.items():
        table.add_row(kind, f"{number:,}", f"{events:,}", f"{size:,}", "")
    if run is not None:
        seconds_of_run = sync.summarise(run)["seconds"]
        table.add_row("sync", "", "", "", f"{seconds_of_run:.2f}", style="bold")
    console = Console()
    console.print(table)
    store = runtime[FeedStore]
    example = store.path(FeedKind.CLASS, 1)
    console.print(
        f"The calendars are in {store.root}/, the worker's log in var/demo/worker.log;"
        f" all of it took {seconds:.0f} s.",
        soft_wrap=True,
    )
    console.print(
        f"Open one: import {example} into any calendar program, or look at it with"
        f" `less {example}`.",
        soft_wrap=True,
    )


def _show_mails(folder: Path) -> None:
    console = Console()
    console.out("The mails that the worker sent are files, for any mail program:")
    for file in sorted(folder.glob("*.eml")):
        mail = BytesParser(policy=policy.default).parsebytes(file.read_bytes(), headersonly=True)
        console.out(f"  {file}  {mail['Subject']}  to {mail['To']}", highlight=False)


if __name__ == "__main__":
    sys.exit(demo())
