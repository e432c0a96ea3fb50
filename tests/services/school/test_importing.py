"""Calendars in the manner of many makers are imported again and again, on both databases."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import icalendar
import pytest
import recurring_ical_events
from nightshift.errors import Conflict, InvalidInput
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.school import events, importing
from services.school.downloads import Limits
from services.school.importing import Fetched, ImportRules, Order, Report
from services.school.models import DateState, Event, EventDate
from services.school.recurrences import find_occurrences
from services.school.series import read_series
from services.school.source_models import EventSource, SourceRun
from tests.services.school.builders import ZURICH, contents
from tests.services.school.test_downloads import say, serving

FOLDER = Path(__file__).parent / "calendars"
FILES = sorted(FOLDER.glob("*.ics"))
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
RULES = ImportRules(ZURICH, "school.example", Limits(networks=(ip_network("127.0.0.0/8"),)))
# Until the end of the second year after this one, where endless rules end.
SPAN = (date(2010, 1, 1), date(2029, 1, 1))

# Whose events are not taken over, and why.
TROUBLES = {
    "outlook": [("", "is private")],
    "floating": [("Ende vor Anfang", "DTEND: is before DTSTART")],
}


def bring(session: Session, content: bytes, *, now: datetime = NOW, **how: Any) -> Report:
    """Import bytes as the source `there`."""
    source = importing.keep(session, Order("there", "there.ics"), now=now)
    return importing.apply(session, source.id, Fetched(content), RULES, now=now, **how)


def write(moment: date) -> str:
    if isinstance(moment, datetime):
        return moment.astimezone(UTC).isoformat()
    return moment.isoformat()


def find_here(session: Session) -> list[tuple[str, str, str]]:
    """Return start, end and title of each date that takes place here."""
    rows = {one.id: one for one in session.scalars(select(Event))}
    found = []
    for event_id, series in read_series(session, Event.cancelled_at.is_(None)).items():
        for one in find_occurrences(series, ZURICH):
            if one.change is None or one.change.state != DateState.CANCELLED:
                title = one.change and one.change.title
                found.append((write(one.starts), write(one.ends), title or rows[event_id].title))
    return sorted(found)


def find_there(content: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield what recurring-ical-events finds in a file."""
    calendar = icalendar.Calendar.from_ical(content)
    for one in recurring_ical_events.of(calendar).between(*SPAN):
        starts, ends = one.start, one.end
        if one.get("STATUS") == "CANCELLED" or one.get("CLASS") == "PRIVATE":
            continue
        if one.get("X-MICROSOFT-CDO-ALLDAYEVENT") == "TRUE" and isinstance(starts, datetime):
            starts, ends = starts.date(), ends.date()
        if not isinstance(starts, datetime):
            ends = max(starts, ends - timedelta(days=1))
        elif starts.tzinfo is None:
            starts, ends = (moment.replace(tzinfo=ZURICH) for moment in (starts, ends))
        yield write(starts), write(ends), " ".join(str(one["SUMMARY"]).split())


def test_there_are_files_of_many_makers() -> None:
    assert len(FILES) == 15


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_imported_dates_are_those_of_the_source(session: Session, file: Path) -> None:
    content = file.read_bytes()

    report = bring(session, content)

    untaken = [title for title, _ in TROUBLES.get(file.stem, [])]
    expected = sorted(one for one in find_there(content) if one[2] not in untaken)
    assert find_here(session) == expected
    assert len(expected) >= len(report.troubles) + 1
    troubles = [(one.title, one.reason[:24]) for one in report.troubles]
    assert troubles == TROUBLES.get(file.stem, [])
    assert report.new == len(session.scalars(select(Event)).all())


def without_runs(session: Session) -> dict[str, list[Any]]:
    return {
        name: rows
        for name, rows in contents(session).items()
        if name not in ("event_source_run", "event_source")
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_second_import_changes_nothing(session: Session, file: Path) -> None:
    content = file.read_bytes()
    first = bring(session, content)
    session.flush()
    before = without_runs(session)

    same = bring(session, content, now=LATER)
    # Not the same bytes, which are read again, and say the same.
    other = bring(session, content.replace(b"BEGIN:VEVENT", b"BEGIN:VEVENT\r\nX-NEW:1"), now=LATER)

    assert (same.not_modified, same.unchanged) == (True, first.new)
    assert (other.not_modified, other.unchanged) == (False, first.new)
    assert other.new == other.changed == other.cancelled == 0
    assert without_runs(session) == before


def vevent(uid: str, title: str, day: int, *more: str) -> str:
    lines = (
        "BEGIN:VEVENT",
        f"UID:{uid}",
        "DTSTAMP:20261101T000000Z",
        f"DTSTART:202612{day:02}T080000Z",
        f"DTEND:202612{day:02}T090000Z",
        f"SUMMARY:{title}",
        *more,
        "END:VEVENT\r\n",
    )
    return "\r\n".join(lines)


def calendar(*vevents: str) -> bytes:
    head = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Test//EN\r\n"
    return f"{head}{''.join(vevents)}END:VCALENDAR\r\n".encode()


TWO = (vevent("a", "Apéro", 1), vevent("b", "Basar", 2))


def states(session: Session) -> dict[str, str]:
    rows = session.execute(select(Event.title, Event.cancelled_at)).all()
    return {title: "cancelled" if at else "takes place" for title, at in rows}


def test_what_changed_there_changes_here_under_its_id(session: Session) -> None:
    bring(session, calendar(*TWO))
    ids = set(session.scalars(select(Event.id)))

    report = bring(session, calendar(TWO[0], vevent("b", "Bazar", 3)), now=LATER)

    assert (report.changed, report.unchanged) == (1, 1)
    assert states(session) == {"Apéro": "takes place", "Bazar": "takes place"}
    assert set(session.scalars(select(Event.id))) == ids


def test_what_vanished_is_cancelled_and_comes_again(session: Session) -> None:
    bring(session, calendar(*TWO))
    gone = bring(session, calendar(TWO[0]), now=LATER)
    cancelled = states(session)
    again = bring(session, calendar(*TWO), now=LATER)

    assert (gone.cancelled, gone.unchanged) == (1, 1)
    assert cancelled == {"Apéro": "takes place", "Basar": "cancelled"}
    assert again.changed == 1
    assert states(session) == {"Apéro": "takes place", "Basar": "takes place"}


def test_what_is_over_may_vanish(session: Session) -> None:
    bring(session, calendar(*TWO))
    report = bring(session, calendar(TWO[1]), now=datetime(2026, 12, 2, tzinfo=UTC))
    assert report.cancelled == 0
    assert states(session) == {"Apéro": "takes place", "Basar": "takes place"}


def test_an_empty_source_and_one_that_lost_much_change_nothing(session: Session) -> None:
    many = [vevent(f"u{day}", f"Tag {day}", day) for day in range(1, 11)]
    bring(session, calendar(*many))
    before = states(session)

    with pytest.raises(Conflict, match="it has no event, and had 10"):
        bring(session, calendar(), now=LATER)
    with pytest.raises(Conflict, match="3 of 10 events have vanished"):
        bring(session, calendar(*many[:7]), now=LATER)
    assert states(session) == before
    assert bring(session, calendar(*many[:7]), now=LATER, accept=True).cancelled == 3


def edit(session: Session, title: str, **changes: Any) -> Event:
    """Let a person publish a new version of an event."""
    event = session.scalars(select(Event).where(Event.title == title)).one()
    version = events.edit(session, event.id, changes, zone=ZURICH, now=NOW)
    events.submit(session, version.id, now=NOW)
    return events.publish(session, version.id, now=NOW)


def test_what_a_person_changed_here_stays_and_is_told(session: Session) -> None:
    bring(session, calendar(*TWO))
    edit(session, "Basar", location="Turnhalle")
    current = select(Event.location).where(Event.version_of_id.is_(None))
    changed = calendar(TWO[0], vevent("b", "Bazar", 3))

    kept = bring(session, changed, now=LATER)
    location = session.scalars(current.where(Event.title == "Basar")).first()
    gone = bring(session, calendar(TWO[0]), now=LATER)
    taken = bring(session, changed, now=LATER, overwrite=True)

    assert [(one.title, one.reason) for one in kept.kept] == [
        ("Bazar", "was changed here; --overwrite takes it")
    ]
    assert location == "Turnhalle"
    assert [one.reason for one in gone.kept] == ["is gone there, and was changed here: it stays"]
    assert taken.kept == []
    assert (
        session.scalars(select(Event.title).where(Event.version_of_id.is_(None)))
        .all()
        .count("Bazar")
    )


def test_what_a_person_deleted_here_stays_deleted(session: Session) -> None:
    bring(session, calendar(*TWO))
    event = session.scalars(select(Event).where(Event.title == "Basar")).one()
    events.delete(session, event.id, now=NOW)

    report = bring(session, calendar(TWO[0], vevent("b", "Bazar", 3)), now=LATER)

    assert len(report.kept) == 1
    assert session.get_one(Event, event.id).deleted_at is not None


def test_events_are_for_whom_the_source_says(session: Session) -> None:
    options = {"audience": "teachers"}
    source = importing.keep(session, Order("there", "there.ics", options), now=NOW)
    importing.apply(session, source.id, Fetched(calendar(*TWO)), RULES, now=NOW)
    first = set(session.scalars(select(Event.audience)))
    source = importing.keep(session, Order("there", "there.ics", {"audience": "all"}), now=NOW)
    report = importing.apply(session, source.id, Fetched(calendar(*TWO)), RULES, now=NOW)

    assert (first, set(session.scalars(select(Event.audience)))) == ({"teachers"}, {"all"})
    assert report.changed == 2


def test_two_sources_with_the_same_uid_do_not_mix(session: Session) -> None:
    for name in ("one", "two"):
        source = importing.keep(session, Order(name, f"{name}.ics"), now=NOW)
        importing.apply(session, source.id, Fetched(calendar(*TWO)), RULES, now=NOW)
    assert len(session.scalars(select(Event)).all()) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no calendar"),
        (b"<html>Login</html>", "it is no calendar"),
        (b"BEGIN:VEVENT\r\nEND:VEVENT\r\n", "it is no calendar"),
        (b"\x00\xff\xfe" * 100, "it is no calendar"),
        (b"BEGIN:VEVENT\r\n" * 1_000_000, "it has 1,000,000 events; the limit is 10,000"),
    ],
)
def test_what_is_no_calendar_or_too_large_is_refused(
    session: Session, content: bytes, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        bring(session, content)
    assert session.scalars(select(Event)).all() == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("RRULE:FREQ=SECONDLY;COUNT=100000", "RRULE: FREQ=SECONDLY is too often"),
        (
            "RRULE:FREQ=DAILY;BYHOUR=8,9;COUNT=900",
            "RRULE: 900 dates that no rule here can have; the limit is 400",
        ),
        ("RRULE:FREQ=NEVER", "RRULE"),
        ("DTSTART:17000101T000000Z", ""),
    ],
)
def test_a_bad_event_does_not_stop_the_others(session: Session, line: str, reason: str) -> None:
    report = bring(session, calendar(TWO[0], vevent("bad", "Bad", 3, line)))
    assert list(states(session)) == ["Apéro"]
    [trouble] = report.troubles
    assert trouble.reason.startswith(reason)


def test_events_of_the_school_itself_are_not_imported(session: Session) -> None:
    report = bring(session, calendar(vevent("x@school.example", "Own", 1)))
    assert [one.reason for one in report.troubles] == ["is the school's own"]
    assert states(session) == {}


def test_an_endless_rule_ends_with_the_second_year_after_this(session: Session) -> None:
    bring(session, calendar(vevent("a", "Weekly", 1, "RRULE:FREQ=WEEKLY")))
    assert session.scalars(select(Event.rrule)).all() == ["FREQ=WEEKLY;UNTIL=20281231"]


@pytest.mark.parametrize(
    "rule", ["FREQ=DAILY;UNTIL=99991231T000000Z", "FREQ=DAILY;COUNT=9999", "FREQ=DAILY"]
)
def test_a_rule_that_ends_too_late_ends_with_the_horizon(session: Session, rule: str) -> None:
    report = bring(session, calendar(vevent("a", "Daily", 1, f"RRULE:{rule}")))
    assert report.troubles == []
    assert session.scalars(select(Event.rrule)).all() == ["FREQ=DAILY;UNTIL=20281231"]
    # In UTC there, so it is another hour here in summer.
    assert set(session.scalars(select(EventDate.state))) == {"changed"}


def test_dates_beyond_the_horizon_are_kept(session: Session) -> None:
    moved = (
        "UID:a", "DTSTAMP:20261101T000000Z", "RECURRENCE-ID:20351201T080000Z",
        "DTSTART:20360105T080000Z", "DTEND:20360105T090000Z", "SUMMARY:Yearly",
    )  # fmt: skip
    override = "\r\n".join(["BEGIN:VEVENT", *moved, "END:VEVENT\r\n"])
    bring(session, calendar(vevent("a", "Yearly", 1, "RRULE:FREQ=YEARLY;COUNT=10"), override))
    found = find_here(session)
    assert (len(found), found[-1][0]) == (10, "2036-01-05T08:00:00+00:00")


def test_a_fault_in_a_property_that_is_not_used_does_not_matter(session: Session) -> None:
    report = bring(session, calendar(vevent("a", "Fine", 1, "CREATED:yesterday", "GEO:x")))
    assert (report.new, report.troubles) == (1, [])


def test_a_moved_and_a_cancelled_date_are_rows_of_their_own(session: Session) -> None:
    bring(session, (FOLDER / "google.ics").read_bytes())
    rows = session.execute(
        select(
            EventDate.original_on, EventDate.state, EventDate.title, EventDate.location
        ).order_by(EventDate.original_on)
    ).all()
    assert [tuple(row) for row in rows] == [
        (date(2026, 10, 6), "left_out", None, None),
        (date(2026, 10, 13), "left_out", None, None),
        (date(2026, 12, 1), "changed", "Hauptprobe", "Kirche"),
        (date(2027, 1, 12), "cancelled", None, None),
    ]


def test_each_run_leaves_a_record_and_old_ones_go(session: Session) -> None:
    for number in range(importing.RUNS_KEPT + 2):
        bring(session, calendar(*TWO), now=NOW + timedelta(minutes=number))
    source = session.scalars(select(EventSource)).one()
    importing.record_failure(session, source.id, InvalidInput("no\nmore"), now=LATER)

    runs = session.scalars(select(SourceRun).order_by(SourceRun.ended_at.desc())).all()
    [shown] = importing.list_sources(session)

    assert len(runs) == importing.RUNS_KEPT
    assert (runs[0].error, runs[1].error) == ("no", None)
    assert (shown["error"], shown["events"]) == ("no", 2)


def test_a_source_that_has_not_changed_is_not_read_again(session: Session) -> None:
    content = calendar(*TWO)
    with serving(say('ETag: "7"', body=content)) as server:
        order = Order("web", server.url)
        first = importing.fetch(importing.look_up(session, order), RULES, now=NOW)
        source = importing.keep(session, order, now=NOW)
        importing.apply(session, source.id, first, RULES, now=NOW)
        importing.fetch(importing.look_up(session, order), RULES, now=LATER)
        other = Order("web", server.url, {"audience": "teachers"})
        importing.fetch(importing.look_up(session, other), RULES, now=LATER)
    asked = ["If-None-Match" in head for head in server.heads]
    assert asked == [False, True, False]

    report = importing.apply(session, source.id, Fetched(None, '"7"', None), RULES, now=LATER)
    assert (report.not_modified, report.unchanged) == (True, 2)


def test_a_file_is_read_within_the_limit(session: Session, tmp_path: Path) -> None:
    small = ImportRules(ZURICH, "school.example", Limits(size=10))
    file = tmp_path / "large.ics"
    file.write_bytes(b"x" * 11)
    for path, message in (
        (file, "has more than 10 bytes, which is the limit"),
        (tmp_path / "absent.ics", "there is no such file"),
        (tmp_path, "there is no such file"),
        (Path("/dev/zero"), "there is no such file"),
    ):
        source = importing.look_up(session, Order("file", str(path)))
        with pytest.raises(InvalidInput, match=message):
            importing.fetch(source, small, now=NOW)


def test_a_nightly_source_needs_an_address(session: Session) -> None:
    with pytest.raises(InvalidInput, match="nightly: a file is imported by hand"):
        importing.keep(session, Order("a", "/a.ics", None, nightly=True), now=NOW)
    source = importing.keep(session, Order("b", "https://b.example/", None, nightly=True), now=NOW)
    assert importing.find_nightly(session) == [source.id]


def test_a_source_for_an_unknown_class_is_refused(session: Session) -> None:
    with pytest.raises(InvalidInput, match="classes: there is no class '99X'"):
        importing.keep(session, Order("a", "/a.ics", {"classes": ["99X"]}), now=NOW)
