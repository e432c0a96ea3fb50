"""What one row of a school says: times, lessons, identities."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.school.models import (
    Event,
)
from services.school.rows import YEARS, EventRow, make_event_id
from services.school.sheets import Problem
from tests.services.school.builders import bring, problems, write


@pytest.mark.parametrize(
    ("starts", "reason"),
    [
        (
            "2027-03-28T02:30",
            (
                "2027-03-28T02:30 does not exist, the clocks skip it in Europe/Zurich; "
                "write it with an offset: 2027-03-28T02:30+01:00 or 2027-03-28T02:30+02:00"
            ),
        ),
        (
            "2026-10-25T02:30",
            (
                "2026-10-25T02:30 happens twice, the clocks go back in Europe/Zurich; "
                "write it with an offset: 2026-10-25T02:30+01:00 or 2026-10-25T02:30+02:00"
            ),
        ),
        ("2026-13-01T08:00", "2026-13-01 is not in the calendar (month must be in 1..12)"),
        ("0206-05-04T08:00", "0206-05-04: the year must lie between 1900 and 2199"),
        ("2026-05-04T24:30", "2026-05-04T24:30 is no time of day (hour must be in 0..23)"),
        ("4/5/2026", "must be a date such as 2026-05-04, not '4/5/2026'"),
        (
            "4/5/2026 08:00",
            (
                "must be a time such as 2026-05-04T08:15 or 2026-05-04T08:15+02:00,"
                " not '4/5/2026 08:00'"
            ),
        ),
    ],
)
def test_times_that_name_no_one_instant_are_refused_with_the_fix(
    session: Session, tmp_path: Path, starts: str, reason: str
) -> None:
    row = f"a,published,A,{starts},2028-01-01T00:00\n"
    folder = write(tmp_path, {"events.csv": f"id,state,title,starts,ends\n{row}"})

    assert problems(session, folder) == [Problem("events.csv", 2, "starts", reason)]


def test_ambiguous_time_with_an_offset_is_taken(session: Session, tmp_path: Path) -> None:
    row = "a,published,A,2026-10-25T02:30+02:00,2026-10-25T01:30Z\n"

    bring(session, write(tmp_path, {"events.csv": f"id,state,title,starts,ends\n{row}"}))

    stored = session.scalars(select(Event)).one()
    assert stored.starts_at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert stored.ends_at == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cells", "column", "reason"),
    [
        (
            "x,Herbst,8,08:00,09:00,M,",
            "weekday",
            "must be 1 (Monday) to 7 or mon, tue, wed, thu, fri, sat, sun, not '8'",
        ),
        ("x,Herbst,SUN,08:00,08:00,M,", "ends", "is not after starts (08:00 <= 08:00)"),
        ("x,Herbst,1,8 Uhr,09:00,M,", "starts", "must be a time such as 08:15, not '8 Uhr'"),
        ("x,Herbst,1,08:00,09:00,M,true", "class_teacher", "must be yes or no, not 'true'"),
        ("x,Herbst,1,08:00,09:00,,", "subject", "is empty; it needs a value"),
    ],
)
def test_lesson_that_cannot_be_is_refused(
    session: Session, folder: Path, cells: str, column: str, reason: str
) -> None:
    write(
        folder, {"lessons.csv": f"id,semester,weekday,starts,ends,subject,class_teacher\n{cells}\n"}
    )

    assert problems(session, folder) == [Problem("lessons.csv", 2, column, reason)]


LOCAL = st.datetimes(
    datetime.fromisoformat(f"{YEARS[0]}-01-02"), datetime.fromisoformat(f"{YEARS[-1]}-12-30")
)


@given(
    LOCAL,
    st.sampled_from(["Europe/Zurich", "America/St_Johns", "UTC"]),
)
def test_wall_clock_time_means_one_instant_or_is_refused(local: datetime, name: str) -> None:
    local, zone = local.replace(second=0, microsecond=0, fold=0), ZoneInfo(name)
    cells = {
        "id": "x",
        "state": "draft",
        "title": "X",
        "starts": local.isoformat(timespec="minutes"),
    }
    instants = {
        moment
        for fold in (0, 1)
        if (moment := local.replace(tzinfo=zone, fold=fold).astimezone(UTC))
        .astimezone(zone)
        .replace(tzinfo=None, fold=0)
        == local
    }
    try:
        row = EventRow.model_validate(cells | {"ends": cells["starts"]}, context=zone)
    except ValueError:
        assert len(instants) != 1
    else:
        assert {row.starts} == instants


@given(st.text())
def test_event_id_is_stable_and_keeps_uuids(key: str) -> None:
    identity = make_event_id(key)

    assert make_event_id(key) == identity
    assert make_event_id(str(identity)) == make_event_id(str(identity).upper()) == identity


def test_event_id_of_text_never_changes() -> None:
    assert make_event_id("sporttag") == UUID("86ec7eec-855e-5721-84a3-661ce8de0b0e")
