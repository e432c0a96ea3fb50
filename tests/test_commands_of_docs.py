"""Every block of commands in the documentation: run, or listed here with the reason.

A command of a component (`celery -A project jobs …`) runs in this process, on an installation with
the example school. A block with anything else is one script for bash, on the same installation.
"""

import os
import re
import shlex
import subprocess
import sysconfig
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from nightshift.component import load as load_command
from nightshift.jobs import care, enqueue
from sqlalchemy import select, update

from examples.school_dates import write_around
from project.school.settings import SchoolSettings
from project.timetable.settings import TimetableSettings
from services.letters import accounts
from services.mail import outbox
from services.mail.jobs import PruneMail
from services.mail.models import Mail, MailState
from services.school.loading import load
from services.school.models import KeyPurpose, Semester, User
from tests.conftest import COMPOSITION, ROOT
from tests.serving import sync

pytestmark = pytest.mark.proofs

# Pages whose blocks another test runs, or none can.
PAGES_ELSEWHERE = {
    "docs/components.md": "it needs the edits that the page describes: tests/project/test_app.py",
    "docs/deployment.md": "it needs Docker: tests/test_compose.py reads the file",
    "docs/engine.md": "a project of its own: test_page_on_the_engine_runs_as_it_stands, below",
    "docs/first-job.md": "a project of its own: tests/test_first_job.py",
    "docs/migrations.md": "it writes migrations: engine/tests/migrations/test_branches.py",
    "docs/updating.md": "it makes a project, and needs a release to come: tests/template",
}

# Lines that are not run, by how they begin.
LINES_NOT_RUN = {
    "git clone": "the repository is here",
    ". .venv/bin/activate": "the test's PATH has what it would add",
    "copier copy": "tests/template makes projects",
    "make new": "tests/template/test_update.py",
    "make demo": "tests/examples/test_demo.py",
    "make dev": "it runs until Ctrl-C",
    "celery -A project beat": "it runs until Ctrl-C",
    "celery -A project jobs stats --watch": "it shows them until Ctrl-C",
    "celery -A project desk hash": "it asks for a password: engine/tests/desk/test_logins.py",
    "celery -A project mail settle -": "it reads a mail: tests/project/mail/test_bounces.py",
    "curl --fail --data-binary": "it asks a web server: tests/project/mail/test_bounces.py",
    "make check": "CI runs it before this test",
    "make test": "CI runs it before this test",
    "make proofs": "this is one of its tests",
    "make messages": "it writes the catalogues: tests/services/test_translation.py",
    "python -m benchmarks": "it takes an hour, and measures only where nothing else runs",
    "make lock": "it asks the package index",
    "make .venv/.dev": "it installs what this test runs in",
    "pre-commit install": "it changes the repository's hooks",
    "PYTHONPATH=engine/tests python -m tests.services.letters.test_examples": (
        "it writes the golden files, which that test compares"
    ),
    "rabbitmqctl": "it changes this machine's RabbitMQ",
    "OTEL_EXPORTER_OTLP_ENDPOINT=": "a worker, which runs until Ctrl-C",
}

# What is added to a command here, and why.
ADDED = {
    "feeds sync": "--inline",  # there is no worker beside it
    "letters preview": "--no-open",  # nor a browser
}

# A command that finds something says so by its exit code.
EXIT_CODES = {"doctor": {0, 1, 2}, "mail test": {0, 1}}

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PROJECT = "celery -A project "
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# A comment that shows the id which the command prints: 9b2f64c1-…
SHOWN_ID = re.compile(r"#.*?\b([0-9a-f]{6})[0-9a-f]{2}-…")


@dataclass(frozen=True)
class Block:
    """A block of commands: its page, its first line there, and its lines."""

    page: str
    line: int
    lines: tuple[str, ...]


def pages() -> list[Path]:
    """Return the pages that ship."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(found)


def read_blocks(path: Path) -> list[Block]:
    """Return the blocks of commands of a page."""
    text = path.read_text(encoding="utf-8")
    blocks = []
    for found in FENCE.finditer(text):
        if found[2] not in ("", "sh", "bash", "console"):
            continue
        lines = found[3].replace("\\\n", " ").splitlines()
        if any(line.strip().startswith("$ ") for line in lines):
            # The others are what the commands print.
            lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        page = str(path.relative_to(ROOT))
        blocks.append(Block(page, text.count("\n", 0, found.start()) + 1, tuple(lines)))
    return blocks


BLOCKS = [block for path in pages() for block in read_blocks(path)]
RUN = {
    page: [block for block in BLOCKS if block.page == page]
    for page in sorted({block.page for block in BLOCKS} - PAGES_ELSEWHERE.keys())
}


class Reader:
    """A reader of one page, who types its commands."""

    def __init__(self, app, folder: Path) -> None:
        self.app, self.runtime, self.folder = app, app.runtime, folder
        self.commands = {
            name: path for one in COMPOSITION.components for name, path in one.commands.items()
        }
        # By what a page shows: what it is here.
        self.ids: dict[str, str] = {}

    def type(self, block: Block) -> None:
        """Run a block; fail when a command fails."""
        lines = [line for line in block.lines if line.strip() and not is_not_run(line)]
        if all(self.is_ours(line) for line in lines):
            for line in lines:
                self.call(block, line)
        else:
            self.bash(block, "\n".join(lines))

    def is_ours(self, line: str) -> bool:
        """Return whether a line is a command of a component, and nothing else."""
        words = shlex.split(line, comments=True)
        ours = line.startswith(PROJECT) and words[3] in self.commands
        return ours and not {"|", "&&", ";", ">", "<"} & set(words)

    def call(self, block: Block, line: str) -> None:
        """Run a command of a component in this process."""
        words = shlex.split(self.replace_ids(line), comments=True)[3:]
        name = " ".join(words[:2])
        words += shlex.split(ADDED.get(name, ""))
        command = load_command(self.commands[words[0]])
        context = SimpleNamespace(app=self.app)
        result = CliRunner().invoke(command, words[1:], obj=context)
        allowed = EXIT_CODES.get(words[0]) or EXIT_CODES.get(name) or {0}
        said = f"{block.page}:{block.line}: {line}\n{result.output}"
        assert result.exception is None or isinstance(result.exception, SystemExit), said
        assert result.exit_code in allowed, said
        if (shown := SHOWN_ID.search(line)) and (printed := UUID.search(result.output)):
            self.ids.setdefault(shown[1], printed[0])

    def bash(self, block: Block, script: str) -> None:
        """Run a block as one script."""
        path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        said = f"{block.page}:{block.line}:\n{script}\n{ran.stdout}{ran.stderr}"
        assert ran.returncode == 0, said

    def replace_ids(self, line: str) -> str:
        """Put the ids of this installation in place of those that the page shows."""
        with self.runtime.unit_of_work() as session:
            if "3f2a" in line:
                job_id = enqueue(
                    session, PruneMail(), now=self.runtime.now(), delay=timedelta(days=1)
                )
                if " retry " in line:
                    care.cancel(session, [job_id])
                line = line.replace("3f2a", str(job_id))
            if "4711" in line:
                line = line.replace("4711", str(self.queue_mail(session, line)))
        for shown, printed in self.ids.items():
            line = re.sub(rf"\b{shown}\b", printed, line)
        return line

    def queue_mail(self, session, line: str) -> int:
        """Queue a message in the state that a command is for."""
        content = EmailMessage()
        content["From"], content["Subject"] = "School <noreply@school.example>", "Grüezi"
        content.set_content("…")
        now = self.runtime.now()
        message = outbox.Message(
            kind="greeting",
            dedupe_key=line,
            recipient="anna@school.example",
            content=content,
            expires_at=now + timedelta(days=1),
        )
        mail_id = outbox.queue(session, message, now=now)
        if " retry " in line:
            failed = update(Mail).where(Mail.id == mail_id)
            session.execute(failed.values(state=MailState.FAILED, ended_at=now))
        return mail_id


def is_not_run(line: str) -> bool:
    return any(line.strip().startswith(start) for start in LINES_NOT_RUN)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder like the project's, without the developer's `.env` and `var`."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("alembic.ini", "examples", "migrations", "project", "services", "tasks"):
        (here / name).symlink_to(ROOT / name)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def reader(job_app, folder, tmp_path):
    """Return a reader on an installation with the example school and its calendars."""
    runtime = job_app.runtime
    zone, now = runtime[SchoolSettings].school_timezone, runtime.now()
    write_around(tmp_path / "school", now.astimezone(zone).date())
    with runtime.unit_of_work() as session:
        load(session, tmp_path / "school", zone=zone, now=now)
    sync(job_app)
    return Reader(job_app, folder)


def prepare_readme(reader, monkeypatch):
    """Write the file that the first screen shows."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n# hello\.py\n(.*?)```", text, re.DOTALL)
    (reader.folder / "hello.py").write_text(code, encoding="utf-8")


def prepare_accounts(reader, monkeypatch):
    """Issue the key that a mail's link would have."""
    with reader.runtime.unit_of_work() as session:
        user = session.scalars(select(User).where(User.email.startswith("helene."))).one()
        key, _ = accounts.issue(session, user, KeyPurpose.RESET_PASSWORD, now=reader.runtime.now())
    monkeypatch.setenv("KEY", key)


def prepare_timetable(reader, monkeypatch):
    """Name a source with a lesson."""
    runtime = reader.runtime
    with runtime.read_only() as session:
        semester = session.scalars(select(Semester.name).order_by(Semester.ends_on.desc())).first()
    folder = reader.folder / "timetable"
    folder.mkdir()
    (folder / "lessons.csv").write_text(
        f"id,semester,weekday,starts,ends,subject\nnew,{semester},mon,8:00,9:00,Chor\n",
        encoding="utf-8",
    )
    settings = TimetableSettings(_env_file=None, timetable_sources=f"main={folder}")
    runtime._given[TimetableSettings] = settings


PREPARE = {
    "README.md": prepare_readme,
    "docs/accounts.md": prepare_accounts,
    "docs/timetable.md": prepare_timetable,
}


@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run(page, reader, monkeypatch):
    if page in PREPARE:
        PREPARE[page](reader, monkeypatch)

    for block in RUN[page]:
        reader.type(block)


def test_reasons_are_for_what_is_there():
    lines = [line.strip() for block in BLOCKS for line in block.lines]
    unused = [one for one in LINES_NOT_RUN if not any(line.startswith(one) for line in lines)]
    assert unused == []


def test_page_on_the_engine_runs_as_it_stands(tmp_path):
    text = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    for kind, name, code in re.findall(r"```(python|ini)\n(?:# (\S+)\n)?(.*?)```", text, re.DOTALL):
        file = tmp_path / (name or ("alembic.ini" if kind == "ini" else "enqueue.py"))
        file.parent.mkdir(exist_ok=True)
        file.write_text(code, encoding="utf-8")
    (tmp_path / "migrations" / "versions").mkdir()
    mako = (ROOT / "migrations" / "script.py.mako").read_bytes()
    (tmp_path / "migrations" / "script.py.mako").write_bytes(mako)
    _install, *blocks = [block for block in BLOCKS if block.page == "docs/engine.md"]
    # A worker and a beat run until Ctrl-C; doctor says that there is none.
    endless = re.compile(r"celery -A orders (worker|beat|doctor)")
    lines = [line for block in blocks for line in block.lines if not endless.match(line)]
    environment = {
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "HOME": str(tmp_path),
    }

    ran = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )

    assert (ran.returncode, "orders.send_invoice  succeeded" in ran.stdout) == (0, True), (
        ran.stdout + ran.stderr
    )
