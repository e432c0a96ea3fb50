"""The engine as a library: its wheel, in an environment with what it depends on and nothing else.

The dependencies are not installed again, which would take a minute and an index: the environment
links to those of the running interpreter that the wheel's metadata names, and theirs.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ENGINE = Path(__file__).parent.parent

SHOP = """
from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.jobs import JobArgs, Outcome, Run
from nightshift.ledger import ledger


class SendInvoice(JobArgs, kind="shop.send_invoice"):
    order: int


@job(SendInvoice)
def send_invoice(session: Session, args: SendInvoice, run: Run) -> Outcome:
    return f"invoice of order {args.order}"


shop = Component(name="shop", kinds=(SendInvoice,), tasks=("shop",))
app = App("shop", Composition([ledger, shop]))
"""

ORDER = """
from datetime import UTC, datetime

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from nightshift.jobs import enqueue
from shop import SendInvoice

with Session(create_engine("sqlite:///var/nightshift.db")) as session:
    print(enqueue(session, SendInvoice(order=7), now=datetime.now(UTC)).hex)
    session.commit()
"""

FILES = {
    "shop.py": SHOP,
    "order.py": ORDER,
    "alembic.ini": """
[alembic]
script_location = %(here)s/migrations
prepend_sys_path = .
path_separator = newline
version_locations =
    nightshift:migrations/versions
    %(here)s/migrations/versions
""",
    "migrations/env.py": """
from nightshift.migrations import run_migrations
from shop import app

run_migrations(app.runtime, app.composition.table_branches())
""",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the engine's wheel, built from a copy: setuptools leaves `build` beside its source."""
    source, made = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(ENGINE, source, ignore=ignored, dirs_exist_ok=True)
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run_pip(*command, "--wheel-dir", str(made), str(source))
    [path] = made.iterdir()
    return path


def run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=100)


def find_dependencies(requires: list[str], found: dict[str, Distribution]) -> None:
    """Add to `found` the distributions that these requirements name, with theirs."""
    for requirement in map(Requirement, requires):
        for extra in ("", *requirement.extras):
            key = f"{requirement.name.lower()}[{extra}]"
            if key not in found:
                found[key] = distribution(requirement.name)
                needed = [
                    one
                    for one in found[key].requires or []
                    if (marker := Requirement(one).marker) is None
                    or marker.evaluate({"extra": extra})
                ]
                find_dependencies(needed, found)


def link(dependency: Distribution, folder: Path) -> None:
    """Let a folder have what a distribution has installed."""
    for name in {path.parts[0] for path in dependency.files or []} - {"..", "__pycache__"}:
        target = folder / name
        if not target.exists():
            target.symlink_to(Path(str(dependency.locate_file(name))))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    run_pip("--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    [packages] = folder.glob("lib/python3*/site-packages")
    found: dict[str, Distribution] = {}
    installed = Distribution.at(next(packages.glob("celery_nightshift-*.dist-info")))
    find_dependencies([one for one in installed.requires or [] if "extra ==" not in one], found)
    for dependency in found.values():
        link(dependency, packages)
    return python


@pytest.fixture(scope="module")
def migrated(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a project with one job, and the tables."""
    folder = tmp_path_factory.mktemp("shop")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    run(python, folder, "-m", "alembic", "upgrade", "heads")
    return folder


@pytest.fixture
def shop(migrated: Path, tmp_path: Path) -> Path:
    """Return the folder of such a project that is the test's own."""
    return shutil.copytree(migrated, tmp_path, dirs_exist_ok=True)


# No variable is a setting: the shop runs on the defaults.
ENVIRONMENT = {name: os.environ[name] for name in ("HOME", "LANG", "PATH") if name in os.environ}


def run(python: Path, shop: Path, *arguments: str) -> str:
    """Run Python in the shop's folder and return what it prints."""
    command = [str(python), *arguments]
    options = {"cwd": shop, "env": ENVIRONMENT, "text": True, "timeout": 100}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, check=False, **streams, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_wheel_has_the_package_and_no_tests(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ENGINE / "nightshift"
    desk = [*package.glob("desk/static/*"), *package.glob("desk/templates/*")]
    source = [*package.rglob("*.py"), package / "py.typed", *desk]
    assert names == {path.relative_to(ENGINE).as_posix() for path in source}


def test_wheel_has_the_migrations(wheel):
    with ZipFile(wheel) as archive:
        assert "nightshift/migrations/versions/ns_0001_job_ledger.py" in archive.namelist()


def test_every_module_is_importable_with_the_dependencies_alone(python, tmp_path):
    program = (
        "import importlib, pkgutil, nightshift\n"
        "for one in pkgutil.walk_packages(nightshift.__path__, 'nightshift.'):\n"
        "    if not one.name.startswith(('nightshift.testing', 'nightshift.migrations.v')):\n"
        "        importlib.import_module(one.name)\n"
        "print(nightshift.__file__)"
    )
    printed = run(python, tmp_path, "-c", program)
    assert Path(printed.strip()).is_relative_to(python.parent.parent)


def test_upgrade_makes_the_tables(shop):
    with sqlite3.connect(shop / "var" / "nightshift.db") as database:
        rows = database.execute("select name from sqlite_master where type = 'table'")
        tables = {name for (name,) in rows if not name.startswith("sqlite_")}
    database.close()
    assert tables == {
        "alembic_version", "desk_action", "job", "job_log", "job_start", "paused_entry",
        "paused_queue", "schedule", "worker",
    }  # fmt: skip


@pytest.mark.worker
def test_job_from_a_plain_session_is_run_by_a_real_worker(python, shop):
    job_id = run(python, shop, "order.py").strip()
    command = [str(python), "-m", "celery", "-A", "shop", "worker", "--concurrency=1"]
    with (shop / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=shop, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        row = wait_for_success(shop, job_id)
    finally:
        worker.terminate()
        exit_code = worker.wait(100)
    assert row == ("succeeded", '"invoice of order 7"')
    assert exit_code == 0, (shop / "worker.log").read_text()


def wait_for_success(shop: Path, job_id: str) -> tuple[str, str]:
    """Wait until a job has succeeded and return its state and result."""
    give_up = time.monotonic() + 60
    database = sqlite3.connect(shop / "var" / "nightshift.db")
    while True:
        row = database.execute("select state, result from job where id = ?", [job_id]).fetchone()
        if row[0] == "succeeded" or time.monotonic() > give_up:
            database.close()
            return row
        time.sleep(0.1)


def test_commands_are_beside_celerys_own(python, shop):
    job_id = run(python, shop, "order.py").strip()
    assert "succeeded" in run(python, shop, "-m", "celery", "-A", "shop", "jobs", "work-off")
    printed = run(python, shop, "-m", "celery", "-A", "shop", "jobs", "list")
    assert "shop.send_invoice" in printed
    assert job_id[:8] in printed
