"""The example school around any day has the calendars that the README shows."""

import re
from datetime import UTC, date, datetime, time
from uuid import UUID

import pytest
from nightshift.settings import ComponentSettings
from sqlalchemy import select

from examples.school_dates import SCHOOL, write_around
from project.calendars.settings import CalendarSettings
from project.school.settings import SchoolSettings
from services.calendars import feeds, revisions
from services.calendars.folders import FolderStore
from services.calendars.models import Feed
from services.calendars.window import Window
from services.school.loading import load
from tests.conftest import ROOT

# A week day by day; both changes of the clocks, a leap day, and the turn of the year.
DAYS = [
    *(date(2026, 11, day) for day in range(23, 30)),
    date(2026, 3, 29),
    date(2026, 10, 25),
    date(2026, 12, 31),
    date(2027, 1, 1),
    date(2027, 7, 15),
    date(2028, 2, 29),
    date(2032, 2, 29),
]
ROW = re.compile(r"^│ (class|department|user) +│ (\d+) +│ (\d+) +│ ([\d,]+) ", re.MULTILINE)


def settings(kind: type[ComponentSettings]) -> ComponentSettings:
    return kind(_env_file=None)


def read_readme() -> dict[str, tuple[int, int, int, int]]:
    """Return what the README shows: by kind, feeds, failed ones, events and bytes."""
    rows = ROW.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return {
        kind: (int(number), 0, int(events), int(size.replace(",", "")))
        for kind, number, events, size in rows
    }


@pytest.mark.parametrize("today", DAYS, ids=str)
def test_calendars_are_those_of_the_readme_on_any_day(session, tmp_path, today):
    school, calendars = settings(SchoolSettings), settings(CalendarSettings)
    zone = school.school_timezone
    now = datetime.combine(today, time(12), zone).astimezone(UTC)
    window = Window.around(
        now, zone, days_past=calendars.feed_days_past, days_ahead=calendars.feed_days_ahead
    )
    write_around(tmp_path / "school", today)
    load(session, tmp_path / "school", zone=zone, now=now)
    revisions.record(session, window, [], domain=school.school_domain, now=now)
    feeds.add_missing(session)
    feeds.build(
        session,
        window,
        FolderStore(tmp_path / "feeds"),
        school_name=school.school_name,
        feed_ids=session.scalars(select(Feed.id).order_by(Feed.id)).all(),
        run_id=UUID(int=1),
        now=now,
    )

    assert feeds.count_feeds(session) == read_readme()


def test_readme_shows_every_kind():
    assert list(read_readme()) == ["class", "department", "user"]


def test_dates_move_by_whole_weeks(tmp_path):
    write_around(tmp_path, date(2027, 1, 3))

    lines = (tmp_path / "semesters.csv").read_text(encoding="utf-8").splitlines()
    assert lines[2] == "Herbst 2026,2026-08-29,2027-02-28"


def test_dates_stay_in_the_week_that_the_files_are_written_for(tmp_path):
    write_around(tmp_path, date(2026, 12, 6))

    for file in SCHOOL.glob("*.csv"):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
