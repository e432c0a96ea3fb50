"""docs/first-job.md, block by block, in a project that was made from this repository.

Nothing is edited or written that the page does not name.
"""

import os
import re
import subprocess

import pytest

from tests.conftest import ROOT
from tests.making import make_environment, make_project

pytestmark = pytest.mark.proofs

PAGE = (ROOT / "docs" / "first-job.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

UNWATCHED = {
    ".cache",
    ".venv",
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


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return the folder of a made project with an environment, as the page asks for."""
    made = make_project(tmp_path_factory.mktemp("first") / "shop", school=False)
    make_environment(made)
    return made.folder


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
