"""Invitations that a mail program understands, on both databases."""

import json
import subprocess
from datetime import timedelta
from email import message_from_bytes
from email.policy import default

import icalendar
import pytest
from sqlalchemy import select, update

from services.calendars import revisions
from services.calendars.models import EventRendering, EventRevision
from services.letters.invitations import make_itip
from services.letters.models import EventNotice
from services.mail.models import Mail
from services.school import events
from services.school.models import User
from services.translation import Locale
from tests.conftest import NOW, ZONE
from tests.ical_js import require_ical_js
from tests.libical import require_libical
from tests.services.letters.conftest import DOMAIN

LATER = NOW + timedelta(hours=1)
PUBLISHED = {"ann": "event_published", "fred": "event_published", "teacher": "event_published"}


def calendars(mail):
    """Return the calendar for the program, and the file for people."""
    parts = [
        part
        for part in mail.walk()
        if part.get_content_type() in ("text/calendar", "application/ics")
    ]
    assert [
        (part.get_content_type(), part.get_content_disposition(), part.get_filename())
        for part in parts
    ] == [
        ("text/calendar", None, None),
        ("application/ics", "attachment", "invite.ics"),
    ]
    inline, attached = (part.get_payload(decode=True) for part in parts)
    assert inline == attached
    read = icalendar.Calendar.from_ical(inline)
    assert read["METHOD"] == parts[0].get_param("method")
    return read


def invited(school, name="guest"):
    read = calendars(school.mail(name))
    (event,) = read.events
    assert event["ORGANIZER"] == "mailto:noreply@school.example"
    assert event["ATTENDEE"] == f"mailto:{name}@school.example"
    return read["METHOD"], event


def test_who_is_named_is_invited_instead_of_told(session, school):
    event = school.published(
        users=("guest@school.example", "ann@school.example", "off@school.example")
    )
    assert school.tell(event) == PUBLISHED | dict.fromkeys(["ann", "off", "guest"], "invitation")

    method, vevent = invited(school)

    assert (method, vevent["ATTENDEE"].params["RSVP"], vevent["ORGANIZER"].params["CN"]) == (
        "REQUEST",
        "TRUE",
        "Gymnasium",
    )
    assert school.mail("guest")["To"].addresses[0].addr_spec == "guest@school.example"


def test_invitation_says_byte_for_byte_what_the_feeds_say(session, school):
    event = school.published(
        users=("guest@school.example",),
        title="Ärger: C:\\Netz, \\N; " + "ü" * 80,
        description="1\n2",
    )
    school.tell(event)
    (part, _) = (
        part
        for part in school.mail("guest").walk()
        if part.get_content_type() in ("text/calendar", "application/ics")
    )
    lines = part.get_payload(decode=True).split(b"\r\n")
    told = b"\r\n".join(lines[lines.index(b"BEGIN:VEVENT") : lines.index(b"END:VEVENT")])
    body = select(EventRendering.body).where(
        EventRendering.event_id == event.id, EventRendering.locale == Locale.ENGLISH
    )
    rendered = session.execute(body).scalar_one().removesuffix(b"\r\nEND:VEVENT\r\n")
    people = told.removeprefix(rendered).replace(b"\r\n ", b"").split(b"\r\n")[1:]
    assert [line.partition(b";")[0] for line in people] == [b"ORGANIZER", b"ATTENDEE"]
    assert max(map(len, lines)) <= 75


def test_invitation_rises_with_each_change_and_ends_with_the_event(session, school):
    event = school.published(users=("guest@school.example",))
    school.tell(event)
    seen = [invited(school)]
    school.change(event, location="Aula")
    assert school.tell(event)["guest"] == "invitation"
    seen.append(invited(school))
    events.cancel(session, event.id, now=NOW)
    assert school.tell(event, now=LATER)["guest"] == "invitation_cancelled"
    seen.append(invited(school))
    events.restore(session, event.id, now=NOW)
    assert school.tell(event, now=LATER)["guest"] == "invitation"
    seen.append(invited(school))

    assert [method for method, _ in seen] == ["REQUEST", "REQUEST", "CANCEL", "REQUEST"]
    assert [vevent["SEQUENCE"] for _, vevent in seen] == [0, 1, 2, 3]
    assert {vevent["UID"] for _, vevent in seen} == {f"{event.id}@school.example"}
    assert [str(vevent["STATUS"]) for _, vevent in seen] == [
        "CONFIRMED",
        "CONFIRMED",
        "CANCELLED",
        "CONFIRMED",
    ]


ICAL_JS = """
const ICAL = require("ical.js"), texts = JSON.parse(require("fs").readFileSync(0));
console.log(JSON.stringify(texts.map(text => {
  const calendar = new ICAL.Component(ICAL.parse(text));
  const event = calendar.getFirstSubcomponent("vevent");
  return [calendar, event].flatMap((part, index) =>
    ["method", "sequence", "uid", "status"].slice(index, index ? 4 : 1)
      .map(name => part.getFirstPropertyValue(name)));
})));
"""


def live_through(session, school):
    """Invite, uninvite, invite again, change, cancel and restore; return the calendars sent."""
    event = school.published(users=("guest@school.example",))
    sent, feeds = [], []

    def told():
        assert school.tell(event)["guest"].startswith("invitation")
        (calendar, _) = (
            part.get_payload(decode=True)
            for part in school.mail("guest").walk()
            if part.get_content_type() in ("text/calendar", "application/ics")
        )
        sent.append(calendar)
        revision = select(EventRevision.sequence).where(EventRevision.event_id == event.id)
        feeds.append(session.execute(revision).scalar_one())

    told()
    for users in ((), ("guest@school.example",)):
        school.change(event, users=users)
        told()
    school.change(event, title="Tour")
    told()
    events.cancel(session, event.id, now=NOW)
    told()
    events.restore(session, event.id, now=NOW)
    told()
    return event, sent, feeds


METHODS = ["REQUEST", "CANCEL", "REQUEST", "REQUEST", "CANCEL", "REQUEST"]
# The event takes place while one person is uninvited.
STATUSES = ["CONFIRMED", None, "CONFIRMED", "CONFIRMED", "CANCELLED", "CONFIRMED"]


def test_sequence_rises_with_each_request_and_cancel_as_in_the_feeds(session, school):
    event, sent, feeds = live_through(session, school)
    read = [icalendar.Calendar.from_ical(calendar) for calendar in sent]
    assert [calendar["METHOD"] for calendar in read] == METHODS
    vevents = [calendar.events[0] for calendar in read]
    assert [vevent["SEQUENCE"] for vevent in vevents] == feeds == [0, 1, 2, 3, 4, 5]
    assert {vevent["UID"] for vevent in vevents} == {f"{event.id}@{DOMAIN}"}
    assert [vevent.get("STATUS") for vevent in vevents] == STATUSES


def test_thunderbirds_parser_reads_the_same(session, school):
    environment = require_ical_js()
    event, sent, feeds = live_through(session, school)
    run = subprocess.run(
        ["node", "-e", ICAL_JS],
        input=json.dumps([calendar.decode() for calendar in sent]),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    uid = f"{event.id}@{DOMAIN}"
    assert json.loads(run.stdout) == [
        [method, sequence, uid, status]
        for method, sequence, status in zip(METHODS, feeds, STATUSES, strict=True)
    ]


def test_libical_reads_the_same(session, school):
    library = require_libical()
    event, sent, feeds = live_through(session, school)
    read = [library.read(calendar, ("UID", "SEQUENCE", "STATUS")) for calendar in sent]
    uid = f"{event.id}@{DOMAIN}"
    assert read == [
        (method, [(uid, str(sequence), status or "")])
        for method, sequence, status in zip(METHODS, feeds, STATUSES, strict=True)
    ]


def test_first_invitation_raises_nothing_that_subscribers_have(session, school):
    event = school.published(users=("guest@school.example",))
    revisions.revise(session, event.id, domain=DOMAIN, zone=ZONE, raised=False, now=NOW)
    school.tell(event)
    assert invited(school)[1]["SEQUENCE"] == 0


def test_who_is_no_longer_named_is_uninvited_and_the_others_hear_nothing(session, school):
    event = school.published(users=("guest@school.example", "ann@school.example"))
    school.tell(event)
    school.change(event, users=("ann@school.example",))
    assert school.tell(event) == {"guest": "invitation_cancelled"}

    method, vevent = invited(school)

    assert (method, vevent["SEQUENCE"], vevent.get("STATUS")) == ("CANCEL", 1, None)
    assert school.text("guest").startswith(
        "You are no longer invited to this event, which takes place nevertheless."
        " It no longer affects you.\n"
    )
    assert session.execute(select(EventRevision.sequence)).scalar_one() == 1

    school.change(event, users=("guest@school.example", "ann@school.example"))
    assert school.tell(event) == {"guest": "invitation"}
    method, vevent = invited(school)
    assert (method, vevent["SEQUENCE"], str(vevent["STATUS"])) == ("REQUEST", 2, "CONFIRMED")


def test_who_is_named_and_cancelled_upon_at_once_was_never_invited(session, school):
    event = school.published()
    school.tell(event)
    school.change(event, users=("guest@school.example",))
    events.cancel(session, event.id, now=NOW)
    assert "guest" not in school.tell(event)
    events.restore(session, event.id, now=NOW)
    assert school.tell(event)["guest"] == "invitation"
    assert school.text("guest").startswith("You are invited to this event.\n")


def test_uninvited_reader_whom_the_event_still_affects_hears_so(school):
    event = school.published(users=("ann@school.example",))
    school.tell(event)
    school.change(event, users=())
    assert school.tell(event) == {"ann": "invitation_cancelled"}
    assert school.text("ann").splitlines()[0].endswith("It still affects you.")


def test_attendee_is_the_address_that_the_mail_goes_to(session, school):
    session.execute(
        update(User).where(User.id == school.ids["guest"]).values(email="guest@schüle.example")
    )
    school.tell(school.published(users=("guest@schüle.example",)))
    (body,) = session.execute(select(Mail.body).where(Mail.kind == "invitation")).scalars()
    mail = message_from_bytes(body, policy=default)
    (event,) = calendars(mail).events
    assert (
        event["ATTENDEE"]
        == f"mailto:{mail['To'].addresses[0].addr_spec}"
        == "mailto:guest@xn--schle-mva.example"
    )


def test_malformed_address_is_not_written_into_a_calendar(session, school):
    address = "x@school.example\r\nATTENDEE:mailto:all@school.example"
    session.execute(update(User).where(User.id == school.ids["guest"]).values(email=address))
    event = school.published(users=("ann@school.example",))
    session.execute(update(EventNotice).values(invited=[]))
    session.execute(update(events.LINKS["users"].model).values(user_id=school.ids["guest"]))
    school.tell(event)
    assert session.execute(
        select(Mail.state, Mail.body).where(Mail.kind == "invitation")
    ).all() == [("failed", None)]


def test_title_that_reads_as_a_status_stays():
    vevent = "BEGIN:VEVENT\r\nSUMMARY:STATUS:CONFIRMED\r\nSTATUS:CONFIRMED\r\nEND:VEVENT\r\n"
    calendar = make_itip(
        vevent,
        "CANCEL",
        organizer=("", "a@b.example"),
        attendee=("", "c@d.example"),
        uninvited=True,
    )
    assert (
        calendar.count(b"STATUS:CONFIRMED")
        == calendar.count(b"\r\nSUMMARY:STATUS:CONFIRMED\r\n")
        == 1
    )


@pytest.mark.parametrize("name", ['Ann "A" Öz', "Müller; Anna: x, y", "a\r\nX-Y:1", "", "ü" * 90])
def test_any_name_is_one_attendee(name):
    calendar = make_itip(
        "BEGIN:VEVENT\r\nUID:1\r\nEND:VEVENT\r\n",
        "REQUEST",
        organizer=("", "o@x.example"),
        attendee=(name, "a@x.example"),
    )
    (event,) = icalendar.Calendar.from_ical(calendar).events
    assert (event["ATTENDEE"], set(event)) == (
        "mailto:a@x.example",
        {"UID", "ORGANIZER", "ATTENDEE"},
    )
    assert event["ATTENDEE"].params.get("CN", "") == name.replace('"', "").replace("\r\n", "")
