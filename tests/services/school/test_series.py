"""Repeated events through their life, and their dates in tables, on both databases."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from nightshift.errors import Conflict, InvalidInput
from nightshift.jobs.models import Job
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.letters.jobs import NoticeEvent
from services.school import events
from services.school.models import DateState, Event
from services.school.recurrences import DateChange
from services.school.rows import make_event_id
from services.school.series import read_changes
from tests.services.school.builders import NOW, SCHOOL, ZURICH, bring, problems, write

WEEKLY = "FREQ=WEEKLY;UNTIL=20261222"
TUESDAYS = [date(2026, 12, day) for day in (1, 8, 15, 22)]


def draft(session: Session, *, without: tuple[date, ...] = (), **values: Any) -> Event:
    said = {
        "title": "Chor",
        "starts": "2026-12-01T19:00",
        "ends": "2026-12-01T20:00",
        "repeats": WEEKLY,
    } | values
    new = events.read_details(said, zone=ZURICH)
    return events.create(session, new, author=None, zone=ZURICH, now=NOW, without=without)


def publish(session: Session, event: Event) -> Event:
    events.submit(session, event.id, now=NOW)
    return events.publish(session, event.id, now=NOW)


def states(session: Session, event: Event) -> dict[int, str]:
    changes = read_changes(session, Event.id == event.id).get(event.id, ())
    return {change.on.day: str(change.state) for change in changes}


def span(event: Event) -> tuple[date | None, date | None]:
    return event.first_on, event.last_on


def test_a_series_keeps_the_days_that_it_takes(session: Session) -> None:
    event = draft(session, without=(TUESDAYS[3],))
    assert (event.rrule, span(event)) == (WEEKLY, (TUESDAYS[0], TUESDAYS[2]))
    assert states(session, event) == {22: "left_out"}

    events.edit(session, event.id, {"repeats": ""}, zone=ZURICH, now=NOW)
    assert (event.rrule, span(event), states(session, event)) == ("", (None, None), {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repeats": "FREQ=WEEKLY"}, "repeats: never ends"),
        ({"repeats": "FREQ=DAILY;COUNT=2001"}, "repeats: COUNT=2001: the limit is 2,000 dates"),
        ({"repeats": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;COUNT=1"}, "repeats: .* has no date"),
        ({"ends": "2026-12-01T18:00"}, "ends: is before starts"),
    ],
)
def test_what_no_series_can_be_is_refused_by_field(
    session: Session, values: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        draft(session, **values)


def test_a_day_that_the_rule_does_not_have_cannot_be_left_out(session: Session) -> None:
    with pytest.raises(InvalidInput, match="date: 2026-12-02 is no date of the event"):
        draft(session, without=(date(2026, 12, 2),))
    with pytest.raises(InvalidInput, match="repeats: every date is left out"):
        draft(session, without=tuple(TUESDAYS))


def test_a_version_has_the_dates_and_publishing_swaps_them(session: Session) -> None:
    event = publish(session, draft(session, without=(TUESDAYS[1],)))

    version = events.edit_date(
        session, event.id, TUESDAYS[2], {"location": "Kirche"}, zone=ZURICH, now=NOW
    )
    before = states(session, event)
    of_version = states(session, version)
    published = publish(session, version)

    assert published.id == event.id
    assert before == {8: "left_out"}
    assert of_version == {8: "left_out", 15: "changed"}
    assert states(session, event) == of_version
    past = session.scalars(select(Event).where(Event.version_of_id == event.id)).one()
    assert states(session, past) == before


def test_publishing_another_rule_swaps_rule_and_span(session: Session) -> None:
    event = publish(session, draft(session))
    longer = {"repeats": "FREQ=WEEKLY;COUNT=6"}
    version = events.edit(session, event.id, longer, zone=ZURICH, now=NOW)
    publish(session, version)
    session.refresh(event)
    assert (event.rrule, event.last_on) == ("FREQ=WEEKLY;COUNT=6", date(2027, 1, 5))


def test_one_date_is_changed_and_made_usual_again(session: Session) -> None:
    event = draft(session)
    moved = {"starts": "2026-12-09 18:00", "ends": "2026-12-09 19:00", "title": "Hauptprobe"}
    events.edit_date(session, event.id, TUESDAYS[1], moved, zone=ZURICH, now=NOW)
    events.edit_date(session, event.id, TUESDAYS[1], {"location": "Aula"}, zone=ZURICH, now=NOW)
    starts = datetime(2026, 12, 9, 17, tzinfo=UTC)
    assert read_changes(session, Event.id == event.id)[event.id] == (
        DateChange(
            TUESDAYS[1],
            DateState.CHANGED,
            starts,
            starts + timedelta(hours=1),
            "Hauptprobe",
            None,
            "Aula",
        ),
    )
    events.edit_date(session, event.id, TUESDAYS[1], None, zone=ZURICH, now=NOW)
    assert states(session, event) == {}


@pytest.mark.parametrize(
    ("on", "changes", "message"),
    [
        (date(2026, 12, 2), {"title": "x"}, "date: 2026-12-02 is no date of the event"),
        (TUESDAYS[1], {"starts": "2026-12-08T10:00"}, "ends: goes with starts"),
        (TUESDAYS[1], {"starts": "2026-12-08", "ends": "2026-12-08"}, "of the same kind"),
        (TUESDAYS[1], {"starts": "x", "ends": "y"}, "starts: must be a date"),
        (TUESDAYS[1], {"title": "a\x00"}, "title: contains the control character"),
    ],
)
def test_a_wrong_change_of_a_date_is_refused(
    session: Session, on: date, changes: dict[str, str], message: str
) -> None:
    event = draft(session)
    with pytest.raises(InvalidInput, match=message):
        events.edit_date(session, event.id, on, changes, zone=ZURICH, now=NOW)


def test_a_date_of_a_published_event_is_cancelled_and_restored(session: Session) -> None:
    event = publish(session, draft(session))

    events.cancel_date(session, event.id, TUESDAYS[1], zone=ZURICH, now=NOW)
    cancelled = states(session, event)
    with pytest.raises(Conflict, match="2026-12-08 is already cancelled"):
        events.cancel_date(session, event.id, TUESDAYS[1], zone=ZURICH, now=NOW)
    events.restore_date(session, event.id, TUESDAYS[1], zone=ZURICH, now=NOW)

    assert (cancelled, states(session, event)) == ({8: "cancelled"}, {})
    versions = events.list_versions(session, event.id, zone=ZURICH)
    assert [row["state"] for row in versions] == ["published", "past", "past"]
    kinds = session.scalars(select(Job.kind).where(Job.kind == NoticeEvent.policy.kind)).all()
    assert len(kinds) == 1


def test_a_date_of_a_draft_or_none_cannot_be_cancelled(session: Session) -> None:
    event = draft(session)
    with pytest.raises(Conflict, match="its state is draft"):
        events.cancel_date(session, event.id, TUESDAYS[1], zone=ZURICH, now=NOW)
    publish(session, event)
    with pytest.raises(InvalidInput, match="is no date of the event"):
        events.cancel_date(session, event.id, date(2026, 12, 2), zone=ZURICH, now=NOW)
    with pytest.raises(Conflict, match="2026-12-08 is not cancelled"):
        events.restore_date(session, event.id, TUESDAYS[1], zone=ZURICH, now=NOW)


def test_a_series_is_listed_on_the_days_of_its_dates(session: Session) -> None:
    draft(session)
    [row] = events.list_events(session, zone=ZURICH, first=date(2026, 12, 20))
    assert (row["repeats"], row["dates"]) == (WEEKLY, [])
    assert events.list_events(session, zone=ZURICH, first=date(2026, 12, 23)) == []


# --- tables ---

FILES = {
    **SCHOOL,
    "events.csv": (
        "id,state,title,starts,ends,repeats\n"
        "chor,published,Chor,2026-12-01T19:00,2026-12-01T20:00,FREQ=WEEKLY;COUNT=4\n"
        "tag,published,Tag,2026-12-01,2026-12-01,FREQ=WEEKLY;COUNT=4\n"
        "einmal,published,Einmal,2026-12-01,2026-12-01,\n"
    ),
    "subscriptions.csv": "email\n",
}
HEAD = "event,date,state,starts,ends,title,location\n"
CHOR = make_event_id("chor")


def load_dates(session: Session, folder: Path, rows: str) -> dict[UUID, Any]:
    bring(session, write(folder, {**FILES, "event_dates.csv": HEAD + rows}))
    return read_changes(session, Event.id.is_not(None))


def test_dates_are_loaded_and_loaded_again(session: Session, tmp_path: Path) -> None:
    rows = (
        "chor,2026-12-08,left_out,,,,\n"
        "chor,2026-12-15,changed,2026-12-16 18:00,2026-12-16 19:00,Hauptprobe,\n"
        "chor,2026-12-22,cancelled,,,,\n"
        "tag,2026-12-22,,2026-12-23,2026-12-24,,\n"
    )
    found = load_dates(session, tmp_path, rows)
    again = bring(session, tmp_path)

    assert [change.state for change in found[CHOR]] == ["left_out", "changed", "cancelled"]
    assert session.get_one(Event, CHOR).last_on == date(2026, 12, 22)
    assert session.get_one(Event, make_event_id("tag")).last_on == date(2026, 12, 24)
    assert again["event_dates"] == (4, 0)
    assert again["events"] == (3, 0)


def test_rows_of_wrong_dates_are_refused(session: Session, tmp_path: Path) -> None:
    rows = (
        "chor,2026-12-09,cancelled,,,,\n"
        "einmal,2026-12-01,cancelled,,,,\n"
        "tag,2026-12-08,changed,2026-12-08T10:00,2026-12-08T11:00,,\n"
        "nichts,2026-12-08,cancelled,,,,\n"
        "chor,2026-12-08,cancelled,,,Titel,\n"
        "chor,2026-12-15,changed,2026-12-15T10:00,,,\n"
        "chor,2026-12-22,changed,2026-12-22T10:00,2026-12-22T09:00,,\n"
        "chor,2026-12-01,gone,,,,\n"
        "tag,2026-12-15,cancelled,,,,\n"
        "tag,2026-12-15,cancelled,,,,\n"
    )
    folder = write(tmp_path, {**FILES, "event_dates.csv": HEAD + rows})
    found = [(one.line, one.column, one.reason) for one in problems(session, folder)]
    assert [(line, column) for line, column, _ in found] == [
        (2, "date"),
        (3, "date"),
        (4, "starts"),
        (5, "event"),
        (6, "title"),
        (7, "ends"),
        (8, "ends"),
        (9, "state"),
        (11, "date"),
    ]
    assert found[0][2] == "2026-12-09 is no date of the event; the nearest is 2026-12-08"
    assert found[-1][2].startswith("'2026-12-15' stands already on line 10")


def test_a_wrong_rule_in_a_table_is_refused_by_its_column(session: Session, tmp_path: Path) -> None:
    wrong = FILES["events.csv"].replace("COUNT=4", "COUNT=5000", 1)
    folder = write(tmp_path, {**FILES, "events.csv": wrong})
    [problem] = problems(session, folder)
    assert (problem.line, problem.column) == (2, "repeats")
    assert problem.reason == "COUNT=5000: the limit is 2,000 dates"
