"""A school that was written is loaded without a change, on both databases."""

import csv
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nightshift.errors import InvalidInput
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from services.school.exporting import export
from services.school.loading import TARGETS
from services.school.models import Event, User
from tests.services.school.builders import bring, contents

EXAMPLE = Path(__file__).parents[3] / "examples" / "school"


def read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_written_school_is_loaded_without_a_change(session: Session, tmp_path: Path) -> None:
    bring(session, EXAMPLE)
    cancelled = update(Event).where(Event.cancelled_at.is_not(None))
    assert session.execute(
        cancelled.values(cancelled_at=datetime(2026, 5, 1, 8, 0, 1, 25, UTC))
    ).rowcount
    before = contents(session)
    counts = export(session, tmp_path / "out")
    loaded = bring(session, tmp_path / "out")
    assert {name: tuple(rows) for name, rows in loaded.items()} == {
        name: (rows, 0) for name, rows in counts.items()
    }
    assert contents(session) == before
    assert all(counts.values())


def test_written_school_makes_the_same_school_elsewhere(session: Session, tmp_path: Path) -> None:
    bring(session, EXAMPLE)
    counts = export(session, tmp_path / "one")
    for target in reversed(TARGETS.values()):
        session.execute(delete(target.table))
    assert {
        name: written for name, (_, written) in bring(session, tmp_path / "one").items()
    } == counts
    export(session, tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        # In another order: who subscribes has no key but the user's id.
        again = (tmp_path / "two" / file.name).read_bytes()
        assert sorted(file.read_bytes().splitlines()) == sorted(again.splitlines())


def test_deleted_event_is_left_out_with_its_versions_and_who_ignores_it(
    session: Session, tmp_path: Path
) -> None:
    bring(session, EXAMPLE)
    origin = session.execute(
        select(Event.version_of_id).where(Event.version_of_id.is_not(None)).limit(1)
    ).scalar_one()
    session.execute(update(Event).where(Event.id == origin).values(deleted_at=datetime.now(UTC)))
    export(session, tmp_path)
    rows = read(tmp_path, "events.csv")
    assert str(origin) not in {row["id"] for row in rows} | {row["version_of"] for row in rows}
    assert not any(written for _, written in bring(session, tmp_path).values())


def test_school_all_of_whose_events_are_deleted_has_none(session: Session, tmp_path: Path) -> None:
    bring(session, EXAMPLE)
    session.execute(update(Event).values(deleted_at=datetime.now(UTC)))
    assert export(session, tmp_path)["events"] == 0
    assert read(tmp_path, "events.csv") == []


def test_many_rows_are_written_once_each(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.school.exporting.CHUNK", 2)
    bring(session, EXAMPLE)
    export(session, tmp_path)
    emails = [row["email"] for row in read(tmp_path, "users.csv")]
    assert sorted(emails) == sorted(session.execute(select(User.email)).scalars())


def test_file_that_is_there_is_not_overwritten(session: Session, tmp_path: Path) -> None:
    (tmp_path / "users.csv").touch()
    with pytest.raises(InvalidInput, match=r"users.csv would be overwritten; name an empty folder"):
        export(session, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["users.csv"]
    with pytest.raises(InvalidInput, match="File exists"):
        export(session, tmp_path / "users.csv")
