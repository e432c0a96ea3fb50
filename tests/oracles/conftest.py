"""Other programs read the feeds of three schools: `make oracles`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nightshift.database import Base, Session

from examples import made_up_school
from services.school.loading import load
from tests.conftest import ZONE, make_runtime
from tests.oracles import hostile

ROOT = Path(__file__).parents[2]
TABLE = pytest.StashKey[list[tuple[str, str, str]]]()


def made_up(session: Session) -> None:
    now = datetime.now(UTC)
    today = now.astimezone(ZONE).date()
    made_up_school.generate(
        session,
        users=500,
        classes=20,
        departments=4,
        events=100,
        seed=1,
        zone=ZONE,
        now=now,
        today=today,
    )


def example_school(session: Session) -> None:
    load(session, ROOT / "examples" / "school", zone=ZONE, now=datetime.now(UTC))


SCHOOLS: dict[str, Callable[[Session], None]] = {
    "demo": made_up,
    "example": example_school,
    "hostile": hostile.fill,
}


@pytest.fixture(scope="session")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of every feed of the three schools, by name, as a sync writes them."""
    found = {}
    for school, fill in SCHOOLS.items():
        folder = tmp_path_factory.mktemp(school)
        values = {
            "DATABASE_URL": f"sqlite:///{folder}/nightshift.db",
            "BROKER_URL": f"filesystem://{folder}/broker",
            "FEED_STORE": f"{folder}/feeds",
            "MAIL_URL": f"folder://{folder}/mail",
            # The example school's events keep their dates: none may leave the window.
            "FEED_DAYS_PAST": "10000",
            "FEED_DAYS_AHEAD": "10000",
        }
        runtime = make_runtime(database_url=values["DATABASE_URL"])
        Base.metadata.create_all(runtime.engine.execution_options(sqlite_begin="IMMEDIATE"))
        with runtime.unit_of_work() as session:
            fill(session)
        runtime.close()
        words = ["feeds", "sync", "--inline", "--json"]
        run = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "project", *words],
            cwd=folder,
            env=os.environ | values,
            stdout=subprocess.PIPE,
            check=True,
            timeout=300,
        )
        files = sorted((folder / "feeds").rglob("*.ics"))
        summary = json.loads(run.stdout)
        assert (summary["state"], summary["built"]) == ("complete", len(files))
        found |= {f"{school}/{path.relative_to(folder / 'feeds')}": path for path in files}
    return found


@pytest.fixture
def table(request: pytest.FixtureRequest) -> list[tuple[str, str, str]]:
    """Return the rows (oracle, feeds checked, findings) that are printed at the end."""
    return request.config.stash.setdefault(TABLE, [])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/oracles/" in str(item.path):
            item.add_marker(pytest.mark.oracles)
            item.add_marker(pytest.mark.timeout(1800))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash.get(TABLE, [])
    for oracle, checked, findings in (
        [("oracle", "feeds checked", "findings"), *rows] if rows else []
    ):
        terminalreporter.write_line(f"{oracle:<24}{checked:>14}  {findings:>10}")
