"""Who is told what of an event, on both databases."""

import re
import threading
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default

import icalendar
import pytest
from sqlalchemy import select, update

from project.bootstrap import make_engine
from project.testing import assert_enqueued
from services.calendars import revisions
from services.calendars.models import EventRendering, EventRevision, Feed, FeedKind
from services.database import Base, Session
from services.jobs import Discard
from services.jobs.models import Job
from services.mail import notices
from services.mail.facts import facts, when
from services.mail.invitations import itip
from services.mail.jobs import SETTLED, NoticeEvent, NoticeReview
from services.mail.models import EventNotice, Mail
from services.school import events
from services.school.models import Event, EventState, IgnoredEvent, Locale, SchoolClass, Subscription, User
from tests.conftest import NOW, ZONE, make_settings
from tests.services.mail.conftest import DOMAIN, RULES, House
from tests.services.school.test_events import until_blocked

LATER = NOW + timedelta(hours=1)
PUBLISHED = {"ann": "event_published", "fred": "event_published", "teacher": "event_published"}


# --- what happens to an event is told once it has settled ---


def test_what_follows_from_each_transition(session, house):
    def enqueued():
        found = session.execute(select(Job.kind, Job.args).order_by(Job.kind)).all()
        session.query(Job).delete()
        return [(kind.removeprefix("mail.notice_"), args.get("step")) for kind, args in found]

    event = house.draft()
    assert enqueued() == []
    events.submit(session, event.id, now=NOW)
    assert enqueued() == [("review", "requested")]
    events.refuse(session, event.id, "no room", now=NOW)
    assert enqueued() == [("review", "refused")]
    events.delete(session, event.id, now=NOW)
    events.restore(session, event.id, now=NOW)
    assert enqueued() == []
    events.submit(session, event.id, now=NOW)
    enqueued()
    events.publish(session, event.id, now=NOW)
    assert enqueued() == [("event", None), ("review", "accepted")]
    for action in (events.cancel, events.restore, events.delete):
        action(session, event.id, now=NOW)
        assert enqueued() == [("event", None)]


def test_changes_within_minutes_are_one_job_about_the_published_event(session, house):
    event = house.published()
    house.change(event, title="Tour")
    events.cancel(session, event.id, now=NOW)
    assert_enqueued(session, NoticeEvent, event_id=event.id)
    assert_enqueued(session, NoticeReview, event_id=event.id, step="accepted", count=2)
    due = session.execute(select(Job.run_at).where(Job.kind == NoticeEvent.policy.kind)).scalar_one()
    assert due == NOW + SETTLED


# --- to whom ---


def test_new_event_is_told_to_those_whom_it_affects_and_who_want_it(house):
    assert house.tell(house.published()) == PUBLISHED
    assert house.text("ann").splitlines()[:4] == [
        "There is a new event that affects you. Your calendar shows it.",
        "",
        "Title: Trip",
        "When: Tuesday, 1 December 2026, 08:00–12:00",
    ]
    assert house.mail("fred")["Subject"] == "Nouvel événement : Trip"


def test_event_is_not_told_to_those_who_ignore_it(session, house):
    event = house.published()
    session.add(Subscription(user_id=house.ids["ann"]))
    session.flush()
    session.add(IgnoredEvent(user_id=house.ids["ann"], event_id=event.id))
    session.flush()
    assert house.tell(event) == {name: kind for name, kind in PUBLISHED.items() if name != "ann"}


def test_who_ignores_an_event_hears_no_more_of_it(session, house):
    event = house.published(users=("guest@school.example",))
    house.tell(event)
    for name in ("ann", "guest"):
        session.add(Subscription(user_id=house.ids[name]))
        session.flush()
        session.add(IgnoredEvent(user_id=house.ids[name], event_id=event.id))
    session.flush()
    house.change(event, title="Tour")
    assert house.tell(event) == dict.fromkeys(["fred", "teacher"], "event_changed")


def test_changes_are_told_together_as_old_and_new(house):
    event = house.published(location="Aula")
    house.tell(event)
    house.change(event, title="Tour")
    house.change(event, location="")
    house.change(event, starts="2026-12-01T09:00")

    assert house.tell(event) == dict.fromkeys(PUBLISHED, "event_changed")
    assert house.mail("ann")["Subject"] == "Changed: Tour"
    assert house.text("ann") == (
        "An event has changed. It still affects you.\n\n"
        "Title: Tour\n    before: Trip\n"
        "When: Tuesday, 1 December 2026, 09:00–12:00\n    before: Tuesday, 1 December 2026, 08:00–12:00\n"
        "Where: –\n    before: Aula\n"
        "For: Students (27Ga)\nTeaching affected: no\n"
    )


def test_each_reader_hears_whether_the_event_affects_them_now_still_or_no_longer(house):
    event = house.published()
    house.tell(event)
    house.change(event, classes=("27Gb",))

    assert house.tell(event) == dict.fromkeys(["ann", "fred", "bob", "teacher"], "event_changed")
    assert {name: house.text(name).splitlines()[0] for name in ("ann", "bob", "teacher")} == {
        "ann": "An event has changed. It no longer affects you.",
        "bob": "An event has changed. It affects you now. It did not before.",
        "teacher": "An event has changed. It still affects you.",
    }


def test_change_that_was_undone_is_not_told(house):
    event = house.published()
    house.tell(event)
    house.change(event, title="Tour")
    house.change(event, title="Trip")
    assert house.tell(event) == {}


@pytest.mark.parametrize("action", [events.cancel, events.delete])
def test_cancelled_event_is_told_and_so_is_that_it_takes_place_after_all(session, house, action):
    event = house.published()
    house.tell(event)
    house.change(event, title="Tour")
    action(session, event.id, now=NOW)
    assert house.tell(event) == dict.fromkeys(PUBLISHED, "event_cancelled")
    assert house.text("ann").splitlines()[:3] == ["This event does not take place.", "", "Title: Tour"]
    assert "before" not in house.text("ann")

    events.restore(session, event.id, now=NOW)
    assert house.tell(event) == dict.fromkeys(PUBLISHED, "event_changed")
    assert house.text("ann").splitlines()[-2:] == ["State: takes place", "    before: cancelled"]


def test_event_that_was_cancelled_before_anybody_was_told_is_told_when_it_is_restored(session, house):
    event = house.published()
    events.cancel(session, event.id, now=NOW)
    assert house.tell(event) == {}
    events.restore(session, event.id, now=NOW)
    assert house.tell(event) == PUBLISHED


def written_by_others(session, house):
    """Give an event that did not come by our services, as a CSV file or another program would put it there."""
    event = house.published()
    session.query(EventNotice).delete()
    return event


def test_event_of_others_is_known_from_the_calendars(session, house):
    event = written_by_others(session, house)
    house.change(event, title="Tour")
    assert house.tell(event) == dict.fromkeys(PUBLISHED, "event_changed")
    assert house.text("ann").splitlines()[:3] == ["An event has changed. It still affects you.", "", "Title: Tour"]


def test_cancelled_event_of_others_is_told(session, house):
    event = written_by_others(session, house)
    events.cancel(session, event.id, now=NOW)
    assert house.tell(event) == dict.fromkeys(PUBLISHED, "event_cancelled")


def test_event_that_others_took_back_can_be_published_again(session, house):
    event = house.published()
    house.tell(event)
    session.execute(update(Event).where(Event.id == event.id).values(state=EventState.REVIEW, title="Tour"))
    events.publish(session, event.id, now=NOW)
    assert house.tell(event) == dict.fromkeys(PUBLISHED, "event_changed")


def test_event_that_has_passed_is_not_told(house):
    event = house.published()
    assert house.tell(event, now=datetime(2026, 12, 1, 11, 0, tzinfo=UTC)) == {}
    assert house.tell(event, now=datetime(2026, 12, 1, 10, 59, tzinfo=UTC)) == PUBLISHED


def test_notice_is_not_sent_after_the_later_of_both_times(session, house):
    event = house.published()
    house.tell(event)
    house.change(event, starts="2026-11-30T08:00", ends="2026-11-30T12:00")
    house.tell(event)
    deadlines = session.execute(select(Mail.expires_at).where(Mail.kind == "event_changed")).scalars().all()
    assert set(deadlines) == {datetime(2026, 12, 1, 11, 0, tzinfo=UTC)}


@pytest.mark.parametrize("state", [EventState.DRAFT, EventState.REVIEW, EventState.REFUSED])
def test_event_that_is_not_published_is_not_told(session, house, state):
    event = house.published()
    session.execute(update(Event).where(Event.id == event.id).values(state=state))
    assert house.plan(event) == []


# --- once ---


def test_jobs_that_run_twice_queue_nothing_twice(session, house):
    event = house.published()
    (args,) = house.plan(event)
    assert [notices.queue(session, args, RULES, now=NOW) for _ in range(2)] == [{"queued": 3}, {"queued": 3}]
    assert house.plan(event) == []
    assert session.query(Mail).count() == 3


def test_mails_say_what_their_version_said_whatever_came_since(session, house):
    event = house.published()
    house.tell(event)
    house.change(event, title="Tour")
    first = house.plan(event)
    house.change(event, title="Hike")
    second = house.plan(event)
    for args in (*second, *first):
        notices.queue(session, args, RULES, now=NOW)
    subjects = session.execute(select(Mail.subject).where(Mail.recipient == "ann@school.example").order_by(Mail.id)).scalars().all()
    assert subjects == ["New event: Trip", "Changed: Hike", "Changed: Tour"]
    assert "before: Trip" in house.text("ann")


def test_versions_that_nobody_needs_are_forgotten(session, house):
    event = house.published()
    for number in range(4):
        house.tell(event)
        house.change(event, title=f"Trip {number}")
    session.execute(update(EventNotice).values(told_at=NOW - timedelta(days=8)))
    house.tell(event)
    assert session.execute(select(EventNotice.version).order_by(EventNotice.version)).scalars().all() == [4, 5]


def test_chunk_of_an_event_that_is_gone_ends(session, house):
    event = house.published()
    (args,) = house.plan(event)
    session.delete(event)
    session.flush()
    session.expire_all()
    assert notices.queue(session, args, RULES, now=NOW) == Discard("the event is gone, or this version is long past")


def test_five_hundred_readers_of_one_event(session, house):
    (class_id,) = session.execute(select(SchoolClass.id).where(SchoolClass.name == "27Gb")).scalars()
    columns = {"first_name": "A", "last_name": "B", "role": "student", "class_id": class_id, "created_at": NOW}
    session.add_all(User(email=f"s{number}@school.example", **columns) for number in range(500))
    event = house.published(classes=("27Gb",))

    chunks = house.plan(event)

    assert [len(args.user_ids) for args in chunks] == [200, 200, 102]
    for args in chunks:
        notices.queue(session, args, RULES, now=NOW)
    addresses = session.execute(select(Mail.recipient)).scalars().all()
    assert (len(addresses), len(set(addresses))) == (502, 502)


def test_two_who_tell_of_one_event_at_once_tell_it_once(postgres_url):
    engine = make_engine(make_settings(database_url=postgres_url))
    Base.metadata.create_all(engine)
    outcomes = []
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            house = House(session)
            event_id = house.published().id
        with Session(engine) as session, session.begin():
            outcomes.append(House.notice(session, house.begun(session, NoticeEvent(event_id=event_id)), event_id))

            def beside():
                with Session(engine) as other, other.begin():
                    outcomes.append(House.notice(other, house.begun(other, NoticeEvent(event_id=event_id)), event_id))

            thread = threading.Thread(target=beside)
            thread.start()
            until_blocked(session, thread)
        thread.join()
    finally:
        with Session(engine) as session, session.begin():
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        engine.dispose()
    assert outcomes == [{"concerned": 4}, {"concerned": 0}]


# --- links ---


def test_notice_links_to_the_readers_own_calendar(session, house):
    session.add_all(
        [
            Feed(id=1, kind=FeedKind.CLASS, owner_id=house.ids["ann"], token="a-class"),
            Feed(id=2, kind=FeedKind.USER, owner_id=house.ids["ann"], token="anns-own"),
        ]
    )
    house.tell(house.published())
    links = re.findall(r"https://calendar.school.example/f/\S+", house.mail("ann").get_body(("plain",)).get_content())
    assert links == ["https://calendar.school.example/f/anns-own.ics"]
    assert "/f/" not in house.mail("fred").get_body(("plain",)).get_content()


def test_notice_can_be_turned_off_by_one_click(house):
    house.tell(house.published())
    mail = house.mail("ann")
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert re.fullmatch(r"<https://calendar\.school\.example/u/unsubscribe\?t=[\w.-]+>", mail["List-Unsubscribe"])
    assert mail["List-Unsubscribe"].strip("<>") in mail.get_body(("plain",)).get_content()


# --- invitations ---


def calendars(mail):
    """Return the calendar for the program, and the file for people."""
    parts = [part for part in mail.walk() if part.get_content_type() in ("text/calendar", "application/ics")]
    assert [(part.get_content_type(), part.get_content_disposition(), part.get_filename()) for part in parts] == [
        ("text/calendar", None, None),
        ("application/ics", "attachment", "invite.ics"),
    ]
    inline, attached = (part.get_payload(decode=True) for part in parts)
    assert inline == attached
    read = icalendar.Calendar.from_ical(inline)
    assert read["METHOD"] == parts[0].get_param("method")
    return read


def invited(house, name="guest"):
    read = calendars(house.mail(name))
    (event,) = read.events
    assert event["ORGANIZER"] == "mailto:noreply@school.example"
    assert event["ATTENDEE"] == f"mailto:{name}@school.example"
    return read["METHOD"], event


def test_who_is_named_is_invited_instead_of_told(session, house):
    event = house.published(users=("guest@school.example", "ann@school.example", "off@school.example"))
    assert house.tell(event) == PUBLISHED | dict.fromkeys(["ann", "off", "guest"], "invitation")

    method, vevent = invited(house)

    assert (method, vevent["ATTENDEE"].params["RSVP"], vevent["ORGANIZER"].params["CN"]) == ("REQUEST", "TRUE", "Gymnasium")
    assert house.mail("guest")["To"].addresses[0].addr_spec == "guest@school.example"


def test_invitation_says_byte_for_byte_what_the_feeds_say(session, house):
    event = house.published(users=("guest@school.example",), title="Ärger: C:\\Netz, \\N; " + "ü" * 80, description="1\n2")
    house.tell(event)
    (part, _) = (part for part in house.mail("guest").walk() if part.get_content_type() in ("text/calendar", "application/ics"))
    lines = part.get_payload(decode=True).split(b"\r\n")
    told = b"\r\n".join(lines[lines.index(b"BEGIN:VEVENT") : lines.index(b"END:VEVENT")])
    body = select(EventRendering.body).where(EventRendering.event_id == event.id, EventRendering.locale == Locale.ENGLISH)
    rendered = session.execute(body).scalar_one().removesuffix(b"\r\nEND:VEVENT\r\n")
    people = told.removeprefix(rendered).replace(b"\r\n ", b"").split(b"\r\n")[1:]
    assert [line.partition(b";")[0] for line in people] == [b"ORGANIZER", b"ATTENDEE"]
    assert max(map(len, lines)) <= 75


def test_invitation_rises_with_each_change_and_ends_with_the_event(session, house):
    event = house.published(users=("guest@school.example",))
    house.tell(event)
    seen = [invited(house)]
    house.change(event, location="Aula")
    assert house.tell(event)["guest"] == "invitation"
    seen.append(invited(house))
    events.cancel(session, event.id, now=NOW)
    assert house.tell(event, now=LATER)["guest"] == "invitation_cancelled"
    seen.append(invited(house))
    events.restore(session, event.id, now=NOW)
    assert house.tell(event, now=LATER)["guest"] == "invitation"
    seen.append(invited(house))

    assert [method for method, _ in seen] == ["REQUEST", "REQUEST", "CANCEL", "REQUEST"]
    assert [vevent["SEQUENCE"] for _, vevent in seen] == [0, 1, 2, 3]
    assert {vevent["UID"] for _, vevent in seen} == {f"{event.id}@school.example"}
    assert [str(vevent["STATUS"]) for _, vevent in seen] == ["CONFIRMED", "CONFIRMED", "CANCELLED", "CONFIRMED"]


def test_first_invitation_raises_nothing_that_subscribers_have(session, house):
    event = house.published(users=("guest@school.example",))
    revisions.told(session, event.id, domain=DOMAIN, zone=ZONE, raised=False, now=NOW)
    house.tell(event)
    assert invited(house)[1]["SEQUENCE"] == 0


def test_who_is_no_longer_named_is_uninvited_and_the_others_hear_nothing(session, house):
    event = house.published(users=("guest@school.example", "ann@school.example"))
    house.tell(event)
    house.change(event, users=("ann@school.example",))
    assert house.tell(event) == {"guest": "invitation_cancelled"}

    method, vevent = invited(house)

    assert (method, vevent["SEQUENCE"], vevent.get("STATUS")) == ("CANCEL", 1, None)
    assert house.text("guest").startswith(
        "You are no longer invited to this event, which takes place nevertheless. It no longer affects you.\n"
    )
    assert session.execute(select(EventRevision.sequence)).scalar_one() == 1

    house.change(event, users=("guest@school.example", "ann@school.example"))
    assert house.tell(event) == {"guest": "invitation"}
    method, vevent = invited(house)
    assert (method, vevent["SEQUENCE"], str(vevent["STATUS"])) == ("REQUEST", 2, "CONFIRMED")


def test_who_is_named_and_cancelled_upon_at_once_was_never_invited(session, house):
    event = house.published()
    house.tell(event)
    house.change(event, users=("guest@school.example",))
    events.cancel(session, event.id, now=NOW)
    assert house.tell(event)["guest"] == "event_cancelled"
    events.restore(session, event.id, now=NOW)
    assert house.tell(event)["guest"] == "invitation"
    assert house.text("guest").startswith("You are invited to this event.\n")


def test_uninvited_reader_whom_the_event_still_affects_hears_so(house):
    event = house.published(users=("ann@school.example",))
    house.tell(event)
    house.change(event, users=())
    assert house.tell(event) == {"ann": "invitation_cancelled"}
    assert house.text("ann").splitlines()[0].endswith("It still affects you.")


def test_attendee_is_the_address_that_the_mail_goes_to(session, house):
    session.execute(update(User).where(User.id == house.ids["guest"]).values(email="guest@schüle.example"))
    house.tell(house.published(users=("guest@schüle.example",)))
    (body,) = session.execute(select(Mail.body).where(Mail.kind == "invitation")).scalars()
    mail = message_from_bytes(body, policy=default)
    (event,) = calendars(mail).events
    assert event["ATTENDEE"] == f"mailto:{mail['To'].addresses[0].addr_spec}" == "mailto:guest@xn--schle-mva.example"


def test_malformed_address_is_not_written_into_a_calendar(session, house):
    address = "x@school.example\r\nATTENDEE:mailto:all@school.example"
    session.execute(update(User).where(User.id == house.ids["guest"]).values(email=address))
    event = house.published(users=("ann@school.example",))
    session.execute(update(EventNotice).values(invited=[]))
    session.execute(update(events.LINKS["users"].model).values(user_id=house.ids["guest"]))
    house.tell(event)
    assert session.execute(select(Mail.state, Mail.body).where(Mail.kind == "invitation")).all() == [("failed", None)]


def test_title_that_reads_as_a_status_stays():
    vevent = "BEGIN:VEVENT\r\nSUMMARY:STATUS:CONFIRMED\r\nSTATUS:CONFIRMED\r\nEND:VEVENT\r\n"
    calendar = itip(vevent, "CANCEL", organizer=("", "a@b.example"), attendee=("", "c@d.example"), uninvited=True)
    assert calendar.count(b"STATUS:CONFIRMED") == calendar.count(b"\r\nSUMMARY:STATUS:CONFIRMED\r\n") == 1


@pytest.mark.parametrize("name", ['Ann "A" Öz', "Müller; Anna: x, y", "a\r\nX-Y:1", "", "ü" * 90])
def test_any_name_is_one_attendee(name):
    calendar = itip(
        "BEGIN:VEVENT\r\nUID:1\r\nEND:VEVENT\r\n", "REQUEST", organizer=("", "o@x.example"), attendee=(name, "a@x.example")
    )
    (event,) = icalendar.Calendar.from_ical(calendar).events
    assert (event["ATTENDEE"], set(event)) == ("mailto:a@x.example", {"UID", "ORGANIZER", "ATTENDEE"})
    assert event["ATTENDEE"].params.get("CN", "") == name.replace('"', "").replace("\r\n", "")


# --- words ---


AT = [datetime(2026, 12, 1, 7, 15, tzinfo=UTC), datetime(2026, 12, 1, 8, 0, tzinfo=UTC), datetime(2026, 12, 3, 8, 0, tzinfo=UTC)]
TUESDAY = "Tuesday, 1 December 2026"


@pytest.mark.parametrize(
    ("starts", "ends", "told", "on_the_day"),
    [
        (AT[0], AT[1], f"{TUESDAY}, 08:15–09:00", "08:15–09:00"),
        (AT[0], AT[0], f"{TUESDAY}, 08:15", "08:15"),
        (
            AT[0],
            AT[2],
            f"{TUESDAY}, 08:15 – Thursday, 3 December 2026, 09:00",
            f"{TUESDAY}, 08:15 – Thursday, 3 December 2026, 09:00",
        ),
        (AT[0].date(), AT[0].date(), TUESDAY, "all day"),
        (AT[0].date(), AT[2].date(), f"{TUESDAY} – Thursday, 3 December 2026", f"{TUESDAY} – Thursday, 3 December 2026"),
    ],
)
def test_times_are_told_on_the_schools_clock(starts, ends, told, on_the_day):
    assert when(starts, ends, Locale.ENGLISH, ZONE) == told
    assert when(starts, ends, Locale.ENGLISH, ZONE, on=AT[0].date()) == on_the_day


@pytest.mark.parametrize(
    ("says", "whom"),
    [
        ({"classes": ("27Ga",), "class_groups": ("28W",), "audience": "all"}, "Students and teachers (27Ga, 28W)"),
        ({"classes": (), "audience": "teachers"}, "Teachers of the whole school"),
        ({"classes": (), "users": ("guest@school.example",), "audience": "teachers"}, "Those whom it names"),
    ],
)
def test_facts_say_whom_an_event_is_for_and_no_names(session, house, says, whom):
    from services.mail.facts import content

    found = {fact.name: fact.new for fact in facts(content(session, house.published(**says)), Locale.ENGLISH, ZONE)}
    assert found["For"] == whom
