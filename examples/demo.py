"""`make demo`: the example school on one machine, without a server.

It loads the school, with dates around today, into the installation that the settings name; lets a
real worker build its calendars and send two mails; and shows both. `make dev` then serves them.
"""

import subprocess
import sys
import time
from pathlib import Path

from nightshift.cli.output import refusals
from nightshift.component import Composition
from nightshift.database import Session
from nightshift.runtime import Runtime
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from examples.school_dates import write_around
from project.app import COMPONENTS
from project.calendars.settings import CalendarSettings
from project.local import CELERY, migrate, running
from project.school.settings import SchoolSettings
from services.calendars import feeds, sync
from services.mail import outbox
from services.mail.models import Mail, MailState
from services.mail.runtime import Mailer
from services.mail.transport import FolderTransport
from services.school import users
from services.school.models import User

FOLDER = Path("var/demo")

# Two of the example school's users, who read German and French.
WELCOMED = ("peter.zuercher@kantonsschule.example", "francois.favre@kantonsschule.example")
MAIL_SECONDS = 60  # a keeper on a busy machine takes a while to start


def demo() -> int:
    """Load the example school, let a worker build its calendars and send two mails; show both.

    Return the sync's exit code. A second run finds nothing to do.
    """
    runtime = Composition(COMPONENTS).runtime()
    mails = _require_development(runtime)
    began = time.monotonic()
    migrate()
    _require_no_other_school(runtime)
    today = runtime.now().astimezone(runtime[SchoolSettings].school_timezone).date()
    write_around(FOLDER / "school", today)
    subprocess.run([*CELERY, "school", "load", str(FOLDER / "school")], check=True)
    worker = [*CELERY, "worker", "--concurrency=2"]
    with running(worker, log=FOLDER / "worker.log"):
        code = subprocess.run([*CELERY, "feeds", "sync"], check=False).returncode
        sent = _welcome(runtime)
    _show_feeds(runtime, time.monotonic() - began)
    _show_mails(sent, mails)
    _say(f"See them: run `make dev`, and open {runtime.settings.public_url}")
    return code


def _require_development(runtime: Runtime) -> Path:
    """Return the folder that takes the mails; end where the demo could do harm."""
    transport = runtime[Mailer].transport
    if runtime.settings.environment != "development" or not isinstance(transport, FolderTransport):
        sys.exit(
            "make demo loads an example school and sends mails: it needs ENVIRONMENT=development"
            " and MAIL_URL=folder://…"
        )
    return transport.folder


def _require_no_other_school(runtime: Runtime) -> None:
    with runtime.read_only() as session:
        there = session.scalar(select(func.count()).select_from(User))
        ours = session.scalar(select(User.id).where(User.email == WELCOMED[0]))
    if there and ours is None:
        sys.exit(
            f"the database holds another school, of {there} users, which the demo does not touch;"
            " use another one: DATABASE_URL=sqlite:///var/demo/school.db make demo"
        )


def _welcome(runtime: Runtime) -> list[Mail]:
    """Welcome two users, unless an earlier demo has; return their mails once they are sent."""
    with runtime.unit_of_work() as session:
        if outbox.find_mails(session, kind="welcome", limit=1):
            return []
        for email in WELCOMED:
            users.welcome(session, email, now=runtime.now())
    give_up = time.monotonic() + MAIL_SECONDS
    while time.monotonic() < give_up:
        with runtime.read_only() as session:
            if len(sent := _find_sent(session)) >= len(WELCOMED):
                return sent
        time.sleep(0.1)
    _say(f"The worker has not sent the mails within {MAIL_SECONDS} s: they are still queued.")
    return []


def _find_sent(session: Session) -> list[Mail]:
    return outbox.find_mails(session, kind="welcome", state=MailState.SENT)


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
    Console().print(table)
    _say(
        f"The calendars are in {runtime[CalendarSettings].feed_store}/, the worker's log in"
        f" {FOLDER}/worker.log; all of it took {seconds:.0f} s."
    )


def _show_mails(sent: list[Mail], folder: Path) -> None:
    if sent:
        _say("The mails that the worker sent are files, for any mail program:")
    for mail in sent:
        # A folder's reply is the name of the file.
        _say(f"  {folder}/{mail.reply}  {mail.subject}  to {mail.recipient}")


def _say(line: str) -> None:
    Console().out(line, highlight=False)


if __name__ == "__main__":
    try:
        with refusals():
            sys.exit(demo())
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)  # It has said why.
