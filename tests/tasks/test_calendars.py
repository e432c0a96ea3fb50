"""A school in the database and a running worker: the files follow by themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from installations import Installation
from sqlalchemy import func, select, text

from services.calendars.models import ChangeLog, FeedKind
from services.calendars.store import FeedStore
from services.calendars.sync import Rules
from services.school.loading import load
from services.school.models import SchoolClass
from tests.conftest import NOW
from tests.tasks.conftest import Install

pytestmark = pytest.mark.worker

FEEDS = 4 + 6 + 22


@pytest.fixture(params=["embedded", "servers"])
def installation(
    request: pytest.FixtureRequest, install: Install, tmp_path: Path
) -> Iterator[Installation]:
    """Yield an installation whose window is wide enough for the example school on any day."""
    days = {"feed_days_past": "10000", "feed_days_ahead": "10000"}
    with install(request.param, tmp_path, **days) as installation:
        yield installation


def test_files_follow_what_is_written_into_the_database(
    installation: Installation, example_school
) -> None:
    runtime, store = installation.runtime, installation.runtime[FeedStore]
    with runtime.unit_of_work() as session:
        load(session, example_school, zone=runtime[Rules].zone, now=NOW)
        of_class = dict(session.execute(select(SchoolClass.name, SchoolClass.id)).all())
    # Two, of which either may start the refresh.
    installation.worker()
    installation.worker()
    installation.until(
        lambda: len(list(store.root.rglob("*.ics"))) == FEEDS and not left(installation)
    )
    other = store.path(FeedKind.CLASS, of_class["28Ba"]).stat().st_mtime_ns

    with runtime.unit_of_work() as session:
        of_one = "SELECT event_id FROM event_class WHERE class_id = :id"
        renaming = f"UPDATE event SET title = 'Am Nachmittag' WHERE id IN ({of_one})"
        session.execute(text(f"{renaming} AND starts_on IS NULL"), {"id": of_class["27GA"]})

    installation.until(lambda: b"Am Nachmittag" in store.read(FeedKind.CLASS, of_class["27GA"]))
    installation.until(lambda: not left(installation))
    assert store.path(FeedKind.CLASS, of_class["28Ba"]).stat().st_mtime_ns == other


def left(installation: Installation) -> int:
    with installation.runtime.read_only() as session:
        return session.execute(select(func.count()).select_from(ChangeLog)).scalar_one()
