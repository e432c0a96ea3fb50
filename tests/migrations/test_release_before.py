"""The code before the newest migration works on its tables: `make rollback` relies on that."""

import os
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pytest
from servers import postgres_database

from tests.conftest import ROOT, migrate

MIGRATIONS = ("engine/nightshift/migrations/versions/*.py", "migrations/*/*.py")
EXAMPLE = str(ROOT / "examples" / "school")


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


def run(code: Path, environment: dict[str, str], *words: str, shell: str = "") -> str:
    """Run a command of the project, or a line of Python, by the code in a folder."""
    command = ["-c", shell] if shell else ["-m", "celery", "--quiet", "-A", "project", *words]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=code,
        env=os.environ | {"PYTHONPATH": f"{code}{os.pathsep}{code}/engine"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)  # six processes, one after the other
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
        shell = "import nightshift, project; print(nightshift.__file__, project.__file__)"
        used = run(code_before, environment, shell=shell)
        run(code_before, environment, "school", "load", EXAMPLE)
        synced = run(code_before, environment, "feeds", "sync", "--inline")
        stats = run(code_before, environment, "jobs", "stats")
        verified = run(ROOT, environment, "feeds", "verify")

    assert used.count(str(code_before)) == 2
    assert "complete" in synced
    assert "succeeded" in stats
    assert verified == "32 feeds checked, 0 differ\n"
