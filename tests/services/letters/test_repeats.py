"""What readers are told of repeated events, on both databases."""

from datetime import UTC, date, datetime, timedelta

import icalendar
import pytest
from sqlalchemy import update

from services.letters.repeats import describe_rule
from services.school import events
from services.school.models import User
from services.school.recurrences import Series
from services.translation import Locale
from tests.conftest import NOW, ZONE
from tests.libical import require_libical
from tests.reading import read_bodies
from tests.services.letters.test_digests import WEEK, queue
from tests.services.letters.test_invitations import calendars

LATER = NOW + timedelta(hours=1)
TUESDAY = datetime(2026, 12, 1, 7, tzinfo=UTC)
WEEKLY = "FREQ=WEEKLY;UNTIL=20261222"


@pytest.mark.parametrize(
    ("rrule", "english", "german", "french"),
    [
        (
            "FREQ=WEEKLY;UNTIL=20261222",
            "every Tuesday until 22 December 2026",
            "jeden Dienstag bis 22. Dezember 2026",
            "chaque mardi jusqu’au 22 décembre 2026",
        ),
        (
            "FREQ=WEEKLY;COUNT=3;BYDAY=TU,TH",
            "every Tuesday and Thursday until 8 December 2026",
            "jeden Dienstag und Donnerstag bis 8. Dezember 2026",
            "chaque mardi et jeudi jusqu’au 8 décembre 2026",
        ),
        (
            "FREQ=WEEKLY;INTERVAL=2;COUNT=2",
            "every 2 weeks on Tuesday until 15 December 2026",
            "alle 2 Wochen am Dienstag bis 15. Dezember 2026",
            "toutes les 2 semaines le mardi jusqu’au 15 décembre 2026",
        ),
        (
            "FREQ=DAILY;COUNT=3",
            "every day until 3 December 2026",
            "jeden Tag bis 3. Dezember 2026",
            "chaque jour jusqu’au 3 décembre 2026",
        ),
        (
            "FREQ=MONTHLY;COUNT=2",
            "every month on day 1 until 1 January 2027",
            "jeden Monat am 1. bis 1. Januar 2027",
            "chaque mois le 1 jusqu’au 1 janvier 2027",
        ),
        (
            "FREQ=MONTHLY;COUNT=2;BYDAY=1TU",
            "on the first Tuesday of every month until 5 January 2027",
            "am ersten Dienstag jedes Monats bis 5. Januar 2027",
            "le premier mardi de chaque mois jusqu’au 5 janvier 2027",
        ),
        (
            "FREQ=YEARLY;COUNT=2",
            "every year on 1 December until 1 December 2027",
            "jedes Jahr am 1. Dezember bis 1. Dezember 2027",
            "chaque année le 1 décembre jusqu’au 1 décembre 2027",
        ),
        (
            "FREQ=YEARLY;COUNT=2;BYYEARDAY=335",
            "on 2 dates until 1 December 2027",
            "an 2 Terminen bis 1. Dezember 2027",
            "à 2 dates jusqu’au 1 décembre 2027",
        ),
    ],
)
def test_a_rule_is_told_in_the_reader_s_language(rrule, english, german, french):
    series = Series(TUESDAY, TUESDAY, rrule)
    assert describe_rule(series, Locale.ENGLISH, ZONE) == english
    assert describe_rule(series, Locale.GERMAN, ZONE) == german
    assert describe_rule(series, Locale.FRENCH, ZONE) == french


def told(school, name: str) -> str:
    return read_bodies(school.mail(name))[0]


def test_a_cancelled_date_is_told_to_those_whom_it_concerns(session, school):
    event = school.published(repeats=WEEKLY)
    first = school.tell(event)
    events.cancel_date(session, event.id, date(2026, 12, 8), zone=ZONE, now=NOW)
    kinds = school.tell(event, now=LATER)

    assert first == dict.fromkeys(["ann", "fred", "teacher"], "event_published")
    assert kinds == dict.fromkeys(["ann", "fred", "teacher"], "event_changed")
    assert "Repeats: every Tuesday until 22 December 2026" in told(school, "ann")
    assert "Cancelled on: 8 December 2026" in told(school, "ann")
    assert "Annulé le\xa0: 8 décembre 2026" in told(school, "fred")


def test_a_changed_rule_and_date_are_told_old_and_new(session, school):
    event = school.published(repeats=WEEKLY)
    school.tell(event)
    version = events.edit(
        session, event.id, {"repeats": "FREQ=WEEKLY;UNTIL=20261215"}, zone=ZONE, now=NOW
    )
    moved = {"starts": "2026-12-09 10:00", "ends": "2026-12-09 11:00", "location": "Aula"}
    version = events.edit_date(session, version.id, date(2026, 12, 8), moved, zone=ZONE, now=NOW)
    events.submit(session, version.id, now=NOW)
    events.publish(session, version.id, now=NOW)

    assert school.tell(event, now=LATER)["ann"] == "event_changed"

    text = told(school, "ann")
    assert "Repeats: every Tuesday until 15 December 2026" in text
    assert "before: every Tuesday until 22 December 2026" in text
    moved_to = "Wednesday, 9 December 2026, 10:00–11:00, Aula"
    assert f"Otherwise on: 8 December 2026: {moved_to}" in text


def test_a_notice_of_a_series_is_told_until_its_last_date(session, school):
    event = school.published(repeats=WEEKLY)
    school.tell(event)
    in_between = datetime(2026, 12, 20, tzinfo=UTC)
    events.cancel_date(session, event.id, date(2026, 12, 22), zone=ZONE, now=in_between)
    assert school.tell(event, now=in_between)["ann"] == "event_changed"
    after = datetime(2026, 12, 23, tzinfo=UTC)
    events.restore_date(session, event.id, date(2026, 12, 22), zone=ZONE, now=after)
    assert school.tell(event, now=after) == {}


def test_an_invitation_has_the_rule_the_zone_and_no_cancelled_date(session, school):
    event = school.published(repeats=WEEKLY, users=("guest@school.example",))
    school.tell(event)
    events.cancel_date(session, event.id, date(2026, 12, 8), zone=ZONE, now=NOW)
    version = events.edit_date(
        session, event.id, date(2026, 12, 15), {"title": "Late"}, zone=ZONE, now=NOW
    )
    events.submit(session, version.id, now=NOW)
    events.publish(session, version.id, now=NOW)
    assert school.tell(event, now=LATER)["guest"] == "invitation"

    read = calendars(school.mail("guest"))
    rule, late = read.events

    assert read["METHOD"] == "REQUEST"
    assert [str(zone["TZID"]) for zone in read.walk("VTIMEZONE")] == ["Europe/Zurich"]
    assert rule["RRULE"].to_ical() == b"FREQ=WEEKLY;UNTIL=20261222T070000Z"
    assert [one.dt.date() for one in rule["EXDATE"].dts] == [date(2026, 12, 8)]
    assert (str(late["SUMMARY"]), late["RECURRENCE-ID"].dt.date()) == ("Late", date(2026, 12, 15))
    people = {(str(one["ATTENDEE"]), str(one["ORGANIZER"]), one["STATUS"]) for one in read.events}
    assert people == {("mailto:guest@school.example", "mailto:noreply@school.example", "CONFIRMED")}


def test_a_cancelled_invitation_is_one_event_for_the_whole_series(session, school):
    event = school.published(repeats=WEEKLY, users=("guest@school.example",))
    events.cancel_date(session, event.id, date(2026, 12, 8), zone=ZONE, now=NOW)
    school.tell(event)
    events.cancel(session, event.id, now=NOW)
    assert school.tell(event, now=LATER)["guest"] == "invitation_cancelled"
    read = calendars(school.mail("guest"))
    [whole] = read.events
    assert (read["METHOD"], whole["STATUS"]) == ("CANCEL", "CANCELLED")
    assert "RECURRENCE-ID" not in whole


def test_libical_accepts_the_invitation_to_a_series(session, school):
    event = school.published(repeats=WEEKLY, users=("guest@school.example",))
    school.tell(event)
    part = next(
        one for one in school.mail("guest").walk() if one.get_content_type() == "text/calendar"
    )
    method, found = require_libical().read(part.get_payload(decode=True), ("UID", "RRULE"))
    assert (method, len(found)) == ("REQUEST", 1)


def test_the_digest_has_the_dates_of_its_week(session, school):
    session.execute(update(User).where(User.id == school.ids["ann"]).values(mail_digest=True))
    event = school.published(repeats="FREQ=DAILY;COUNT=4")
    events.cancel_date(session, event.id, date(2026, 12, 3), zone=ZONE, now=NOW)
    version = events.edit_date(
        session, event.id, date(2026, 12, 4), {"location": "Aula"}, zone=ZONE, now=NOW
    )
    events.submit(session, version.id, now=NOW)
    events.publish(session, version.id, now=NOW)
    school.published(title="First", starts="2026-12-02T07:00", ends="2026-12-02T07:30")

    assert date(2026, 11, 30) == WEEK
    assert queue(school) == {"ann": "digest"}

    text = told(school, "ann")
    days = [line for line in text.splitlines() if "Trip" in line or "First" in line]
    assert len(days) == 5
    assert [("First" in line, "cancelled" in line.lower()) for line in days] == [
        (False, False),
        (True, False),
        (False, False),
        (False, True),
        (False, False),
    ]
    assert "Aula" in text
    [attached] = [
        part for part in school.mail("ann").walk() if part.get_content_type() == "text/calendar"
    ]
    read = icalendar.Calendar.from_ical(attached.get_payload(decode=True))
    assert len(read.events) == 4
