"""What an operator is told within a minute of a fault: by `/ready`, `doctor`, metrics and alerts.

Each test starts a whole installation that is well, breaks one thing, waits for a minute, and
compares what is said with the table in docs/faults.md. With TRUTH=FILE the rows are written there.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import httpx
import pytest
from forking import ForkedProcess
from installations import Installation, installed
from nightshift.jobs import enqueue
from nightshift.jobs.models import Job
from proxies import Proxy
from receiving import Received, receiving
from servers import free_port, postgres_database, redis_database
from sqlalchemy import text, update
from web_servers import WebServer

from project.calendars.settings import CalendarSettings
from services.calendars.jobs import SyncCalendars
from services.calendars.models import FeedKind
from services.calendars.store import FOLDERS
from services.letters.jobs import SendWelcome
from services.mail import outbox
from tests.conftest import ROOT, metric
from tests.installing import migrate_installation
from tests.serving import load_example, serve, sync

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

PAGE = ROOT / "docs" / "faults.md"
MINUTE = 60
# The tests' Redis keeps nothing on its disk; and a slot of the schedule may pass in this minute.
NOT_THE_FAULTS = {("broker", "warn"), ("recurring jobs", "warn")}
TOKEN = "one of our own"


@dataclass
class Whole:
    """An installation with worker, beat and web server, its servers behind proxies."""

    installation: Installation
    web: WebServer
    database: Proxy
    broker: Proxy
    worker: ForkedProcess
    beat: ForkedProcess
    hook: Received

    def run(self, statement: str) -> None:
        """Run a statement as the database's owner does."""
        with self.installation.runtime.unit_of_work() as session:
            session.execute(text(statement))


@contextmanager
def whole(folder: Path) -> Iterator[Whole]:
    """Yield an installation that is well."""
    with ExitStack() as stack:
        database = stack.enter_context(Proxy(stack.enter_context(postgres_database())))
        broker = stack.enter_context(Proxy(stack.enter_context(redis_database())))
        hook = stack.enter_context(receiving())
        settings = {
            "alerts_to": hook.url,
            "feed_store": str(folder / "feeds"),
            "mail_url": f"smtp://127.0.0.1:{free_port()}?tls=none",
            "metrics_token": TOKEN,
        }
        installation = stack.enter_context(
            installed(
                "project.celery",
                folder,
                database.url,
                broker.url,
                prepare=migrate_installation,
                **settings,
            )
        )
        load_example(installation.app)
        sync(installation.app)
        beat = installation.start("beat")
        installation.until(lambda: has_fired(installation), seconds=200)
        worker = installation.worker(wait=False)
        installation.until(lambda: is_kept(installation), seconds=200)
        web = stack.enter_context(serve(folder))
        yield Whole(installation, web, database, broker, worker, beat, hook)


def has_fired(installation: Installation) -> bool:
    with installation.runtime.read_only() as session:
        return session.execute(text("select count(*) from schedule")).scalar_one() >= 5


def is_kept(installation: Installation) -> bool:
    return any(one.heartbeat_at > one.started_at for one in installation.workers())


# --- the faults ---


def fill_disk(it: Whole) -> None:
    folder = it.installation.runtime[CalendarSettings].feed_store
    room = os.statvfs(folder)
    with (folder / "filling").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)


def queue_mail(it: Whole) -> None:
    content = EmailMessage()
    content["From"], content["Subject"] = "School <noreply@school.example>", "Hello"
    content.set_content("Hello\n")
    runtime = it.installation.runtime
    with runtime.unit_of_work() as session:
        message = outbox.Message(
            kind="test",
            dedupe_key="test",
            recipient="anna@school.example",
            content=content,
            expires_at=runtime.now().replace(year=2199),
        )
        outbox.queue(session, message, now=runtime.now())


def end_beat(it: Whole) -> None:
    it.beat.kill()


def end_worker(it: Whole) -> None:
    it.worker.kill()


def stop_main_process(it: Whole) -> None:
    it.worker.send_signal(signal.SIGSTOP)


def block_feeds(it: Whole) -> None:
    folder = it.installation.runtime[CalendarSettings].feed_store / FOLDERS[FeedKind.CLASS]
    folder.rename(folder.with_name("away"))
    folder.write_text("not a folder")
    runtime = it.installation.runtime
    with runtime.unit_of_work() as session:
        enqueue(session, SyncCalendars(), now=runtime.now())


def end_broker(it: Whole) -> None:
    it.broker.__exit__()


def end_database(it: Whole) -> None:
    it.database.__exit__()


def lose_revisions(it: Whole) -> None:
    it.run("delete from alembic_version")


def shift_clock(it: Whole) -> None:
    """Let the database's clock go ten minutes ahead, for all who connect from now on."""
    it.run("create schema shifted")
    it.run(
        "create function shifted.statement_timestamp() returns timestamptz stable language sql as"
        " $$ select pg_catalog.statement_timestamp() + interval '10 minutes' $$"
    )
    it.run(
        "do $$ begin execute format('alter database %I set search_path = public, shifted,"
        " pg_catalog', current_database()); end $$"
    )
    it.run(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


def pause_queue(it: Whole) -> None:
    command(it, "jobs", "pause", "mail")


def spoil_job(it: Whole) -> None:
    runtime = it.installation.runtime
    with runtime.unit_of_work() as session:
        job = enqueue(session, SendWelcome(user_id=1), now=runtime.now())
        session.execute(update(Job).where(Job.id == job).values(args={"user_id": "nobody"}))


FAULTS: dict[str, Callable[[Whole], None]] = {
    "the disk of the feeds is full": fill_disk,
    "the mail server is away, and a mail is due": queue_mail,
    "beat is gone": end_beat,
    "the worker is gone": end_worker,
    "the worker's main process hangs": stop_main_process,
    "feeds cannot be written": block_feeds,
    "the broker is away": end_broker,
    "the database is away": end_database,
    "the tables are older than the code": lose_revisions,
    "the database's clock is ten minutes ahead": shift_clock,
    "a queue is paused": pause_queue,
    "a job fails for good": spoil_job,
}


# --- what is said ---


def command(it: Whole, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "project", *words],
        cwd=ROOT,
        env=os.environ | it.installation.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    return done.stdout


def ask_ready(it: Whole) -> str:
    try:
        answer = it.web.client.get("/ready", timeout=30)
    except httpx.TransportError:
        return "no answer"
    probes = answer.json()["probes"]
    named = [name for name, status in probes.items() if status in ("warn", "fail")]
    return f"{answer.status_code}, {answer.json()['status']}" + (
        f": {', '.join(named)}" if named else ""
    )


def ask_doctor(it: Whole) -> str:
    found = json.loads(command(it, "doctor", "--json"))["checks"]
    parts = []
    for status in ("fail", "warn"):
        names = [
            one["check"]
            for one in found
            if one["status"] == status and (one["check"], status) not in NOT_THE_FAULTS
        ]
        if names:
            parts.append(f"{status}: {', '.join(names)}")
    return "; ".join(parts) or "ok"


def ask_metrics(it: Whole) -> str:
    try:
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = it.web.client.get("/metrics", headers=headers, timeout=30)
    except httpx.TransportError:
        return "no scrape"
    if answer.status_code != 200:
        return "no scrape"
    values = re.findall(rf"^{metric('')}(\w+)(?:{{(.*)}})? (\S+)$", answer.text, re.MULTILINE)
    said = []
    for level, word in ((2.0, "fail"), (1.0, "warn")):
        probes = [
            labels.removeprefix('probe="').rstrip('"')
            for name, labels, value in values
            if name == "probe" and float(value) == level and "recurring jobs" not in labels
        ]
        if probes:
            said.append(f"`probe` {word}: {', '.join(probes)}")
    for name, text_ in (
        ("mail_server_failing_seconds", "`mail_server_failing_seconds`"),
        ("failed_feeds", "`failed_feeds`"),
    ):
        if any(one == name and float(value) > 0 for one, _, value in values):
            said.append(text_)
    if all(float(value) == 0 for name, _, value in values if name == "workers"):
        said.append("`workers` 0")
    bad = r'state="(failed|discarded)"'
    if any(
        name == "jobs" and re.search(bad, labels) and float(value) for name, labels, value in values
    ):
        said.append("`jobs` failed")
    return "; ".join(said) or "nothing"


def ask_hook(it: Whole) -> str:
    lines = [line for body in it.hook.bodies for line in json.loads(body)["lines"]]
    said = [re.sub(r"(fails|failed for good): .*", r"\1", line) for line in lines]
    if "clock fails" in said or {"beat fails", "workers fails"} <= set(said):
        # With a jump the last signs of life are old until the next ones come; what fails at that
        # moment is told first, and the rest with the next alert.
        return "some of: beat, clock, workers fail"
    return "; ".join(said) or "nothing"


def row_of(page: str, fault: str) -> list[str]:
    [line] = [line for line in page.splitlines() if line.startswith(f"| {fault} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_tells_of_a_fault(tmp_path: Path, fault: str) -> None:
    with ExitStack() as stack:
        if fault == "the disk of the feeds is full":
            stack.enter_context(small_disk(tmp_path / "feeds"))
        it = stack.enter_context(whole(tmp_path))
        FAULTS[fault](it)
        began = time.monotonic()
        time.sleep(MINUTE - 15)
        # They take some seconds, and the hook has the whole minute.
        ready, metrics, doctor = ask_ready(it), ask_metrics(it), ask_doctor(it)
        time.sleep(max(0.0, MINUTE - (time.monotonic() - began)))
        said = [ready, doctor, metrics, ask_hook(it)]
        if it.worker.poll() is None:
            it.worker.send_signal(signal.SIGCONT)
    if "TRUTH" in os.environ:
        with Path(os.environ["TRUTH"]).open("a", encoding="utf-8") as file:
            file.write(f"| {fault} | {' | '.join(said)} |\n")
        return

    assert said == row_of(PAGE.read_text(encoding="utf-8"), fault)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of 300 MB in memory. Skip, loudly, where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("NO RIGHT TO MOUNT: a full disk is not tried")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_every_fault_has_a_row() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert all(len(row_of(page, fault)) == 4 for fault in FAULTS)
