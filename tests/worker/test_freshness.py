"""A school in the database and a running worker: the files follow by themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from services.calendars.models import ChangeLog, FeedKind
from services.school.loading import load
from services.school.models import SchoolClass
from tests.conftest import NOW
from tests.worker.conftest import Installation, any_installation

pytestmark = pytest.mark.worker

FEEDS = 4 + 6 + 22


@pytest.fixture(params=["embedded", "servers"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """Give an installation whose window is wide enough for the example school on any day."""
    with any_installation(request.param, tmp_path, feed_days_past="10000", feed_days_ahead="10000") as installation:
        yield installation


def test_files_follow_what_is_written_into_the_database(installation: Installation, example_school) -> None:
    boot = installation.boot
    with boot.unit_of_work() as session:
        load(session, example_school, zone=boot.rules.zone, now=NOW)
        of_class = dict(session.execute(select(SchoolClass.name, SchoolClass.id)).all())
    # Two, of which either may start the refresh.
    installation.worker()
    installation.worker()
    installation.until(lambda: len(list(boot.feed_store.root.rglob("*.ics"))) == FEEDS and not left(installation))
    other = boot.feed_store.stamp(FeedKind.CLASS, of_class["28Ba"])

    with boot.unit_of_work() as session:
        session.execute(
            text(
                "UPDATE event SET title = 'Am Nachmittag' WHERE id IN (SELECT event_id FROM event_class WHERE class_id = :id)"
                " AND starts_on IS NULL"
            ),
            {"id": of_class["27GA"]},
        )

    installation.until(lambda: b"Am Nachmittag" in boot.feed_store.read(FeedKind.CLASS, of_class["27GA"]))
    installation.until(lambda: not left(installation))
    assert boot.feed_store.stamp(FeedKind.CLASS, of_class["28Ba"]) == other


def left(installation: Installation) -> int:
    with installation.boot.read_only() as session:
        return session.execute(select(func.count()).select_from(ChangeLog)).scalar_one()
