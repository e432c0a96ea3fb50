"""Backup, restore, upgrade and rollback with a Docker engine, as an operator does it by make.

Where no engine is reachable these are skipped, loudly. They bring up the whole installation under a
name of its own, which takes some minutes, and remove it.
"""

import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from servers import free_port

from tests.conftest import ROOT

MIGRATION = """
revision = "later_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    from alembic import op
    op.execute("CREATE TABLE half (id integer)")
    op.execute("SELECT pg_sleep({seconds})")
    op.execute("{last}")
"""
# Seconds without an answer that a subscriber may see while the web server is replaced.
LONGEST_GAP = 5.0


class Machine:
    """A folder with the repository's files, and the containers that are started from it."""

    def __init__(self, folder: Path) -> None:
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.folder, self.port = folder, free_port()
        self.environment = os.environ | {
            "COMPOSE_PROJECT_NAME": f"nightshift-test-{uuid4().hex[:8]}",
            "WEB_PORT": str(self.port),
            "FLOWER_PORT": str(free_port()),
            "MAILPIT_PORT": str(free_port()),
            "DESK_PORT": str(free_port()),
        }

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def make(self, *words: str, code: int = 0) -> str:
        return self.run("make", *words, code=code)

    def celery(self, *words: str) -> str:
        celery = ("celery", "--quiet", "-A", "project", *words)
        return self.run("docker", "compose", "exec", "--no-TTY", "worker", *celery)

    def read_files(self) -> str:
        """Return the sum of each calendar's bytes."""
        sums = "cd var/feeds && find . -name '*.ics' | sort | xargs sha256sum"
        return self.run("docker", "compose", "exec", "--no-TTY", "worker", "sh", "-c", sums)

    def images(self) -> set[str]:
        found = self.run("docker", "compose", "ps", "--format", "{{.Service}} {{.Image}}")
        lines = [line.split() for line in found.splitlines()]
        ours = ("worker", "beat", "web", "flower")
        return {image.partition(":")[2] for service, image in lines if service in ours}

    def settings(self) -> str:
        return (self.folder / ".env").read_text(encoding="utf-8")

    @contextmanager
    def subscriber(self, path: str) -> Iterator[list[float]]:
        """Ask for a calendar four times a second; the longest gap is the list's only element."""
        gaps, stopping = [0.0], threading.Event()

        def ask() -> None:
            good = time.monotonic()
            while not stopping.wait(0.25):
                try:
                    url = f"http://127.0.0.1:{self.port}{path}"
                    urllib.request.urlopen(url, timeout=2).close()
                except OSError:
                    continue
                gaps[0], good = max(gaps[0], time.monotonic() - good), time.monotonic()

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield gaps
        finally:
            stopping.set()
            thread.join()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    asked = ["docker", "info"]
    if (
        shutil.which("docker") is None
        or subprocess.run(asked, capture_output=True, check=False).returncode
    ):
        pytest.skip("NO DOCKER ENGINE IS REACHABLE: start it, or name it in DOCKER_HOST")
    made = Machine(tmp_path_factory.mktemp("machine"))
    try:
        made.make("up")
        made.celery("school", "load", "examples/school")
        made.celery("feeds", "sync")
        yield made
    finally:
        made.run("docker", "compose", "down", "--volumes", "--remove-orphans")


def test_one_command_restores_on_an_empty_machine(machine: Machine) -> None:
    before, settings = machine.read_files(), machine.settings()
    machine.make("backup", "FILE=backups/kept.tar")
    machine.run("docker", "compose", "down", "--volumes")
    (machine.folder / ".env").unlink()

    machine.make("restore", "FILE=backups/kept.tar")

    assert (machine.read_files(), machine.settings()) == (before, settings)
    assert machine.celery("feeds", "verify").endswith(" feeds checked, 0 differ\n")


def test_upgrades_that_fail_and_succeed_and_the_way_back(machine: Machine) -> None:
    name = machine.celery("feeds", "list", "--kind", "class", "--json").split('"owner": "')[1]
    url = machine.celery("feeds", "url", "class", name.partition('"')[0]).strip()
    later = machine.folder / "migrations" / "versions" / "later_0001.py"
    later.parent.mkdir(exist_ok=True)
    column = "ALTER TABLE job ADD colour text"
    with machine.subscriber(f"/f/{url.rpartition('/')[2]}") as gaps:
        machine.make("upgrade", "RELEASE=r1")
        assert machine.images() == {"r1"}

        later.write_text(MIGRATION.format(seconds=1, last="SELECT no_such_column"))
        assert "no_such_column" in machine.make("upgrade", "RELEASE=r2", code=2)
        assert machine.images() == {"r1"}

        later.write_text(MIGRATION.format(seconds=40, last=column))
        machine.make("upgrade", "RELEASE=r3")
        assert machine.images() == {"r3"}

        machine.make("rollback")
        assert machine.images() == {"r1"}
        # The release before, on the tables of the next one.
        machine.celery("feeds", "sync")
        assert machine.celery("feeds", "verify").endswith(" feeds checked, 0 differ\n")

        right = machine.settings()
        wrong = [
            "POSTGRES_PASSWORD=not-the-right-one" if line.startswith("POSTGRES_PASSWORD=") else line
            for line in right.splitlines()
        ]
        (machine.folder / ".env").write_text("\n".join(wrong), encoding="utf-8")
        assert "password" in machine.make("upgrade", "RELEASE=r4", code=2)
        (machine.folder / ".env").write_text(right, encoding="utf-8")
        assert machine.images() == {"r1"}
    assert gaps[0] < LONGEST_GAP
