"""`make demo`: two reminders on one machine, without a server.

It adds them, lets a real worker mail them, and shows the mails.
"""

import os
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
from services.mail import outbox
from services.mail.models import MailState
from services.reminders import reminders

FOLDER = Path("var/demo")
DEMO = {
    "DATABASE_URL": f"sqlite:///{FOLDER}/demo.db",
    "BROKER_URL": f"filesystem://{FOLDER}/broker",
    "MAIL_URL": f"folder://{FOLDER}/mail",
    "WORKER_CONCURRENCY": "2",
}
TEXTS = ("Order paper", "Water the plants")
SECONDS = 60  # a keeper on a busy machine takes a while to start


def demo() -> int:
    """Add two reminders, let a worker mail them, and show the mails. Return the exit code."""
    os.environ.update(DEMO)
    FOLDER.mkdir(parents=True, exist_ok=True)
    migrate()
    runtime = Composition(COMPONENTS).runtime()
    with running([*CELERY, "worker"], log=FOLDER / "worker.log"):
        now = runtime.now()
        with runtime.unit_of_work() as session:
            earlier = outbox.count_mails(session).get(("reminder", MailState.SENT), 0)
            for text in TEXTS:
                reminders.add(session, "anna@example.com", text, due_at=now, now=now)
        sent = _wait(runtime, earlier + len(TEXTS))
    _show(FOLDER / "mail")
    return 0 if sent else 1


def _wait(runtime: Runtime, number: int) -> bool:
    """Wait until so many mails are sent, and return whether they are."""
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        with runtime.read_only() as session:
            if outbox.count_mails(session).get(("reminder", MailState.SENT), 0) >= number:
                return True
        time.sleep(0.1)
    Console().print(f"The worker has not sent the mails within {SECONDS} s: they are still queued.")
    return False


def _show(folder: Path) -> None:
    files = sorted(folder.glob("*.eml"), key=lambda file: file.stat().st_mtime)[-len(TEXTS) :]
    table = Table("to", "subject", "file")
    for file in files:
        mail = BytesParser(policy=policy.default).parsebytes(file.read_bytes(), headersonly=True)
        table.add_row(mail["To"], mail["Subject"], f"{file.name[:8]}….eml")
    console = Console()
    console.print(f"The worker sent these mails; they are files in {folder}/:")
    console.print(table)
    console.print("Next: `make dev`, and in another terminal, with .venv activated,")
    console.print('  celery -A project reminders add you@example.com "Order ink"')


if __name__ == "__main__":
    sys.exit(demo())
