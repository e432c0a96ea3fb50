"""The code before the newest migration works on its tables: `make rollback` relies on that."""

import os
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pytest
from forking import run_forked
from servers import postgres_database

from tests.conftest import ROOT, migrate

MIGRATIONS = ("engine/nightshift/migrations/versions/*.py", "migrations/*/*.py")


def git(*words: str) -> bytes:
    # Where this is no repository, it says nothing.
    return subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True).stdout


@pytest.fixture(scope="module")
def code_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the code as it was before the newest migration was added."""
    added = git("log", "-1", "--diff-filter=A", "--format=%H", "--", *MIGRATIONS).decode().strip()
    # The first commit of a project from the template has all migrations.
    parents = git("show", "--no-patch", "--format=%P", added).split() if added else []
    if not parents:
        pytest.skip("THE HISTORY BEFORE THE NEWEST MIGRATION IS NOT HERE: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=BytesIO(git("archive", f"{added}^"))) as archive:
        archive.extractall(folder, filter="data")
    newest = git("show", "--name-only", "--format=", added).decode().split()
    assert not any((folder / name).exists() for name in newest if "/versions/" in name)
    return folder


# One process for all commands: each would import for two seconds.
COMMANDS = """
import sys

import nightshift
import project
from celery.bin.celery import celery

print(nightshift.__file__, project.__file__, flush=True)
for words in (["school", "load", sys.argv[1]], ["feeds", "sync", "--inline"], ["jobs", "stats"]):
    try:
        failed = celery(["--quiet", "-A", "project", *words], standalone_mode=False)
    except SystemExit as end:
        failed = end.code
    if failed:
        sys.exit(f"{words} failed: {failed}")
"""


def run_before(code: Path, environment: dict[str, str]) -> str:
    """Load its example school, sync its feeds and show its jobs, by the code in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(code / "examples" / "school")],
        cwd=code,
        env=os.environ | {"PYTHONPATH": f"{code}{os.pathsep}{code}/engine"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_code_before_the_newest_migration_works_on_its_tables(
    kind, code_before, tmp_path, job_environment
):
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/test.db"
        if kind == "postgres":
            url = stack.enter_context(postgres_database())
        environment = job_environment | {
            "DATABASE_URL": migrate(url),
            "BROKER_URL": f"filesystem://{tmp_path}/broker",
        }
        said = run_before(code_before, environment)
        words = ["-A", "project", "feeds", "verify"]
        checked = run_forked("celery", *words, environment=os.environ | environment, folder=ROOT)

    assert said.partition("\n")[0].count(str(code_before)) == 2
    assert "complete" in said
    assert "succeeded" in said
    assert (checked.returncode, checked.stdout) == (0, "32 feeds checked, 0 differ\n")
