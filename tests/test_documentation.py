"""The examples of docs/testing.md, as a user would copy them."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from nightshift.jobs.jobs import PruneJobs

ROOT = Path(__file__).parent.parent


def test_examples_of_the_page_on_testing_run(tmp_path):
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in blocks] == [
        "tests/conftest.py",
        "tests/test_prune.py",
        "tests/test_worker.py",
    ]
    for name, code in blocks:
        (tmp_path / Path(name).name).write_text(code)
    [addopts] = re.findall(r"^addopts = \[(.*)\]$", page, re.MULTILINE)
    options = addopts.replace('"', "").replace(",", "")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = {options}\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--rootdir", tmp_path, "-c", tmp_path / "pytest.ini", tmp_path]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=90)
    assert (ran.returncode, "4 passed" in ran.stdout) == (0, True), ran.stdout + ran.stderr


def test_entries_of_the_page_on_schedules_are_due_as_it_says():
    page = (ROOT / "docs" / "scheduling.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(# project/reports/component.py\n.*?)```", page, re.DOTALL)
    module = {"Weekly": PruneJobs}
    exec(block.replace("from services.reports.jobs import Weekly\n", ""), module)
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

    slots = {
        entry.name: f"{entry.after(now):%Y-%m-%d %H:%M}" for entry in module["make_schedule"](None)
    }

    rows = re.findall(r"^\| `([\w.]+)` \| (\d{4}-\S+ \S+) \|", page, re.MULTILINE)
    assert slots == dict(rows)


def test_each_fault_is_tried_by_a_test_that_is_there():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    assert named
    folders = (ROOT / "engine" / "tests", ROOT)
    assert [one for one in named if not any((path / one).is_file() for path in folders)] == []


def test_pages_link_only_to_what_is_there():
    pages = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    ]
    assert [link for link in links if not (link[0].parent / link[1]).exists()] == []
