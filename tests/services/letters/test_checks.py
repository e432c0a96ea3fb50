"""What is looked at right before a letter is sent, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest
from nightshift.testing import assert_enqueued
from sqlalchemy import delete, select, update

from services.calendars import revisions
from services.calendars.agendas import read_agendas
from services.calendars.window import Window
from services.letters import checks, digests
from services.letters.checks import WHILE_CHANGING, WHILE_PLANNED, make_check
from services.letters.jobs import NoticeEvent, QueueDigests, QueueNotices, SendWelcome
from services.letters.kinds import LETTERS
from services.mail import outbox
from services.mail.models import Mail, MailState
from services.mail.outbox import Claimed, Halt
from services.school import events
from services.school.models import Event, EventState, IgnoredEvent, Subscription, User
from tests.conftest import NOW, ZONE
from tests.services.letters.conftest import DOMAIN, RULES

LONG_AGO = datetime(2026, 11, 1, tzinfo=UTC)


def agendas(session, first, last, user_ids):
    return read_agendas(session, Window(first, last, NOW, ZONE), user_ids, school_name="Gymnasium")


def make():
    return make_check(RULES, agendas)


def check(session, mail):
    """Look at a mail as a delivery that has just begun."""
    return make().begin()(session, mail)


def claim(session, name="ann", **changes):
    """Return the last mail to a person as the delivery claims it."""
    session.expire_all()
    columns = (getattr(Mail, field) for field in Claimed._fields)
    last = select(*columns).where(Mail.recipient == f"{name}@school.example")
    row = session.execute(last.order_by(Mail.id.desc()).limit(1)).one()
    return Claimed(*row)._replace(**changes)


def examine(session, name="ann", **changes):
    return check(session, claim(session, name, **changes))


@pytest.fixture
def event(school):
    event = school.published(users=("guest@school.example",))
    school.queue(event)
    return event


def change_user(session, school, name="ann", **values):
    session.execute(update(User).where(User.id == school.ids[name]).values(values))


def test_letter_that_is_true_and_wanted_is_sent(session, event):
    assert examine(session) is None
    assert examine(session, "guest") is None


def test_only_letters_are_looked_at():
    assert make().kinds == LETTERS.keys()


def test_delivery_looks_at_an_event_once_a_second(session, school, event, monkeypatch):
    assert timedelta(seconds=1) == checks.LOOKED_AT_FOR
    monkeypatch.setattr(checks, "LOOKED_AT_FOR", timedelta(hours=1))
    examiner = make().begin()
    assert examiner(session, claim(session)) is None
    events.cancel(session, event.id, now=NOW)
    assert examiner(session, claim(session, "fred")) is None
    monkeypatch.setattr(checks, "LOOKED_AT_FOR", timedelta(seconds=-1))
    assert examiner(session, claim(session, "fred")).reason == "its event is changing"


def test_reader_who_is_gone_gets_nothing(session, school, event):
    session.execute(delete(User).where(User.id == school.ids["ann"]))
    assert examine(session) == Halt("its reader was deleted")


def test_reader_who_turned_it_off_gets_no_notice_but_the_invitation(session, school, event):
    change_user(session, school, mail_events=False)
    change_user(session, school, "guest", mail_events=False)
    assert examine(session) == Halt("its reader does not want such mail any more")
    assert examine(session, "guest") is None


def test_reader_who_ignores_the_event_gets_nothing(session, school, event):
    session.add(Subscription(user_id=school.ids["ann"]))
    session.flush()
    session.add(IgnoredEvent(user_id=school.ids["ann"], event_id=event.id))
    session.flush()
    assert examine(session) == Halt("its reader ignores the event")


def test_reader_with_another_address_is_written_to_there(session, school, event):
    change_user(session, school, email="new@school.example")
    again = QueueNotices(event_id=event.id, version=1, user_ids=(school.ids["ann"],))
    assert examine(session) == Halt("its reader has another address now", job=again)
    school.queue_some(again)
    assert [
        (mail.recipient, mail.state, mail.subject)
        for mail in session.execute(
            select(Mail).where(Mail.reader_id == school.ids["ann"]).order_by(Mail.id)
        ).scalars()
    ] == [
        ("ann@school.example", MailState.CANCELLED, "New event: Trip"),
        ("new@school.example", MailState.QUEUED, "New event: Trip"),
    ]


def test_address_in_other_letters_is_the_same(session, school, event):
    change_user(session, school, email="Ann@SCHOOL.example")
    assert examine(session) is None


def test_letter_waits_while_its_event_changes(session, school, event):
    changing = Halt(
        "its event is changing", wait=WHILE_CHANGING, job=NoticeEvent(event_id=event.id)
    )
    events.cancel(session, event.id, now=NOW)
    assert examine(session) == changing
    events.restore(session, event.id, now=NOW)
    assert examine(session) is None
    school.change(event, users=())
    assert examine(session, "guest") == changing
    assert examine(session) is None


def test_letter_waits_for_the_version_that_is_told_next(session, school, event):
    school.change(event, title="Tour")
    school.plan(event)
    again = QueueNotices(event_id=event.id, version=2, user_ids=(school.ids["ann"],))
    halt = examine(session)
    assert (halt.wait, halt.job) == (WHILE_PLANNED, again)


def test_letter_that_was_overtaken_is_withdrawn(session, school, event):
    first = claim(session)
    school.change(event, title="Tour")
    school.queue(event)
    later = claim(session)
    assert check(session, first) == Halt(f"overtaken: mail {later.id} says what is so now")
    assert check(session, later) is None


@pytest.mark.parametrize("state", [EventState.DRAFT, EventState.REVIEW])
def test_event_that_others_took_back_is_not_told(session, event, state):
    session.execute(update(Event).where(Event.id == event.id).values(state=state))
    assert examine(session) == Halt("its event is not published any more")


def test_event_that_is_gone_is_not_told(session, event):
    mail = claim(session)
    session.execute(delete(Event).where(Event.id == event.id))
    assert check(session, mail) == Halt("its event was deleted")


def test_notice_of_the_release_before_is_understood(session, school, event):
    old = {"about": None, "reader_id": None, "version": None}
    assert examine(session, **old) is None
    change_user(session, school, mail_events=False)
    assert examine(session, **old) == Halt("its reader does not want such mail any more")


def test_other_letters_to_an_address_that_moved_are_written_again(session, school):
    ann = school.ids["ann"]
    for kind, about, job in (
        ("welcome", "welcome", SendWelcome(user_id=ann)),
        ("digest", "digest:2026-11-30", QueueDigests(week="2026-11-30", user_ids=(ann,))),
        ("reset_password", "reset_password", None),
    ):
        mail = Claimed(1, kind, "", "old@school.example", about, ann, 0, 1, b"", NOW)
        halt = check(session, mail)
        assert (halt.reason, halt.job) == ("its reader has another address now", job)


def test_digest_that_waited_says_the_week_as_it_is(session, school):
    event = school.published()
    change_user(session, school, mail_digest=True)
    args = QueueDigests(week="2026-11-30", user_ids=(school.ids["ann"],))

    def render():
        near = Window.around(NOW, ZONE, days_past=31, days_ahead=465)
        revisions.record(session, near, [], domain=DOMAIN, now=NOW)

    def queue():
        return digests.queue_digests(session, args, agendas, RULES, now=LONG_AGO)["queued"]

    render()
    assert queue() == 1
    assert examine(session) is None
    events.cancel(session, event.id, now=NOW)
    render()
    # No reader has been told of a change that is so new.
    assert examine(session, created_at=datetime.now(UTC)) is None
    assert examine(session) == Halt("the week has changed since", job=args)
    outbox.withdraw(session, [claim(session).id], reason="", now=NOW)
    assert queue() == 1
    assert examine(session) is None
    assert "Trip (cancelled)" in school.text("ann")


def test_digest_of_a_week_that_has_become_empty_is_withdrawn(session, school):
    mail = Claimed(
        1,
        "digest",
        "",
        "ann@school.example",
        "digest:2026-11-30",
        school.ids["ann"],
        7,
        1,
        b"",
        LONG_AGO,
    )
    change_user(session, school, mail_digest=True)
    assert check(session, mail).reason == "the week has changed since"


def test_change_and_cancel_at_once_name_what_the_reader_knows(session, school):
    event = school.published()
    school.tell(event)
    school.change(event, title="Tour", starts="2026-12-08T08:00", ends="2026-12-08T12:00")
    events.cancel(session, event.id, now=NOW)
    assert set(school.queue(event).values()) == {"event_cancelled"}
    assert school.mail("ann")["Subject"] == "Cancelled: Trip"
    assert "    before: Tuesday, 1 December 2026, 08:00–12:00\n" in school.text("ann")


def test_cancelled_before_the_server_took_the_first_mail_is_told_nobody(session, school):
    event = school.published()
    school.queue(event)
    events.cancel(session, event.id, now=NOW)
    assert school.queue(event) == {}
    states = session.execute(select(Mail.state, Mail.reply).distinct()).all()
    assert states == [("cancelled", "overtaken: its reader is told version 2 of the event")]


def test_reader_who_may_have_heard_is_told_without_earlier_values(session, school):
    event = school.published()
    school.queue(event)
    session.execute(update(Mail).values(repeats=1))
    school.change(event, title="Tour")
    assert set(school.queue(event).values()) == {"event_changed"}
    assert "Title: Tour\n" in school.text("ann")
    assert "before" not in school.text("ann")


def test_first_change_of_an_event_of_others_is_the_difference_to_the_calendars(session, school):
    event = school.published()
    session.execute(delete(events.EventNotice))
    session.expire_all()
    school.change(event, classes=("27Gb",))
    assert set(school.queue(event)) == {"ann", "fred", "bob", "teacher"}
    assert {name: school.text(name).splitlines()[0] for name in ("ann", "bob", "teacher")} == {
        "ann": "An event has changed. It no longer affects you.",
        "bob": "An event has changed. It affects you now. It did not before.",
        "teacher": "An event has changed. It still affects you.",
    }
    assert "For: Students (27Gb)\n    before: Students (27Ga)\n" in school.text("ann")


def test_change_that_no_reader_sees_is_not_told(session, school):
    event = school.published(users=("guest@school.example",))
    school.tell(event)
    school.change(event, starts="2026-12-01T08:00:30")
    assert school.queue(event) == {}


def test_change_that_calendars_do_not_show_asks_no_one_again(session, school):
    event = school.published(users=("guest@school.example",))
    school.tell(event)
    school.change(event, audience="all")
    assert school.queue(event)["guest"] == "event_changed"
    assert school.mail("guest").get_content_type() == "multipart/alternative"


def test_mail_that_is_being_sent_is_waited_for(session, school, event):
    sending = update(Mail).where(Mail.reader_id == school.ids["ann"])
    session.execute(sending.values(state=MailState.SENDING))
    school.change(event, title="Tour")
    assert "ann" not in school.queue(event)
    ann = [school.ids["ann"]]
    assert_enqueued(session, QueueNotices, event_id=event.id, version=2, user_ids=ann)


def test_held_mail_is_replaced_by_one_that_is_held(session, school, event):
    outbox.hold(session, claim(session).id)
    school.change(event, title="Tour")
    school.queue(event)
    states = session.execute(
        select(Mail.subject, Mail.state)
        .where(Mail.reader_id == school.ids["ann"])
        .order_by(Mail.id)
    ).all()
    assert states == [("New event: Trip", "cancelled"), ("New event: Tour", "held")]


def test_mail_that_still_says_what_is_so_stays(session, school, event):
    before = claim(session)
    school.change(event, users=("guest@school.example", "bob@school.example"))
    assert school.queue(event) == {"bob": "invitation", "guest": "invitation"}
    assert claim(session) == before._replace(version=2)
