"""docs/first-job.md, block by block, in a copy of this repository.

Nothing is edited or written that the page does not name.
"""

import os
import re
import subprocess
import sysconfig
from pathlib import Path
from shutil import copytree

import pytest

from tests.copies import ROOT, copy_repository, make_environment

PAGE = (ROOT / "docs" / "first-job.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

# The commands of the environment, as Python modules: an installed script would use the outer one.
MODULES = ("alembic", "celery", "mypy")
BINARIES = ("hadolint", "ruff")
SCRIPTS = {
    "lint-imports": "from importlinter.cli import lint_imports_command as run",
    "check-jsonschema": "from check_jsonschema import main as run",
    "zensical": "from zensical.main import cli as run",
}
UNWATCHED = {
    ".cache",
    ".venv",
    "build",
    "var",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".import_linter_cache",
    "__pycache__",
}


def read_all(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and not UNWATCHED & set(path.relative_to(folder).parts)
        and ".egg-info" not in str(path)
    }


def add_commands(copy):
    """Write the environment's commands, and tell make that it is complete."""
    python, scripts = copy / ".venv/bin/python", copy / ".venv/bin"
    for name in MODULES:
        (scripts / name).write_text(f'#!/bin/sh\nexec {python} -m {name} "$@"\n')
    for name, statement in SCRIPTS.items():
        (scripts / name).write_text(f"#!{python}\n{statement}\nrun()\n")
    for name in (*MODULES, *SCRIPTS):
        (scripts / name).chmod(0o755)
    for name in BINARIES:
        (scripts / name).symlink_to(Path(sysconfig.get_path("scripts")) / name)
    for name in (".installer", ".run", ".dev"):
        (copy / ".venv" / name).touch()
    # Without this, mypy reads all packages again.
    if (ROOT / ".mypy_cache").is_dir():
        copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return a copy of this repository with an environment, as the page asks for."""
    copy = tmp_path_factory.mktemp("first") / "shop"
    copy_repository(copy)
    make_environment(copy)
    (copy / ".venv/bin/activate").write_text(f"PATH={copy}/.venv/bin:$PATH\n")
    add_commands(copy)
    return copy


def run(copy, script):
    """Run a block as a shell does, until its first command that fails; return what it said."""
    servers = {name: value for name, value in os.environ.items() if name.startswith("TEST_")}
    own = {"PATH": f"{copy}/.venv/bin:{os.environ['PATH']}", "HOME": str(copy), **servers}
    # In a group of its own, and not for ever: what hangs must not outlive the test.
    command = ["timeout", "120", "sh", "-e", "-c", script]
    done = subprocess.run(command, cwd=copy, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.timeout(300)
def test_first_job_by_the_page_alone(project):
    before = read_all(project)
    said = []
    for language, block in BLOCKS:
        if language == "sh":
            said.append(run(project, block))
        else:
            name, _, code = block.partition("\n")
            (project / name.removeprefix("# ")).write_text(code, encoding="utf-8")

    after = read_all(project)
    changed = sorted(name for name in after if before.get(name) != after[name])
    [migration] = [name for name in changed if name.startswith("migrations/versions/")]
    assert migration.endswith("_add_report.py")
    assert [name for name in changed if name != migration and f"`{name}`" not in PAGE] == []
    assert before.keys() <= after.keys()
    # The job ran, and `jobs list` shows it.
    assert ["reports.weekly  succeeded" in one for one in said].count(True) == 1
    assert run(project, "celery -A project jobs stats --json").count('"reports.weekly"') >= 1
    assert run(project, "alembic check")
