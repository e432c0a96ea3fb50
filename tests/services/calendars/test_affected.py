"""Whom one event affects, worked out from the event, against the calendars of everybody."""

from datetime import timedelta

import pytest
from sqlalchemy import delete, event, select, update

from services.calendars import revisions
from services.calendars.agendas import agendas
from services.calendars.audience import UserFacts, affected, load
from services.calendars.feeds import contents, ensure
from services.calendars.models import EventRendering, Feed, FeedKind
from services.calendars.window import Window
from services.school import demo
from services.school.models import Event, EventUser, IgnoredEvent, SubscribedClass, SubscribedDepartment, Subscription, User
from tests.conftest import NOW, ZONE

DOMAIN = "school.example"
WINDOW = Window.around(NOW, ZONE, days_past=31, days_ahead=465)
TODAY = NOW.date()


@pytest.fixture(params=[1, 2, 3])
def school(request, session):
    sizes = {"users": 200, "classes": 12, "departments": 4, "events": 150}
    demo.generate(session, **sizes, seed=request.param, zone=ZONE, now=NOW, today=TODAY)
    session.flush()
    revisions.record(session, WINDOW, [], domain=DOMAIN, now=NOW)
    return session


def test_event_affects_those_whose_calendars_it_is_in_for_their_own_sake(school):
    school.execute(delete(SubscribedClass))
    school.execute(delete(SubscribedDepartment))
    school.execute(update(Subscription).values(follows_me=True))
    users = [UserFacts(*row) for row in school.execute(select(User.id, User.role, User.class_id))]
    held = load(school, WINDOW, users, everybody=True)
    of_user = {user.id: held.of_user(user) for user in users}
    expected = {
        facts.id: {user_id for user_id, indexes in of_user.items() if index in indexes} for index, facts in enumerate(held.events)
    }
    found = {event_id: affected(school, event_id, ZONE) for event_id in expected}
    assert found == expected
    assert len(set(map(frozenset, expected.values()))) > 20


def test_subscriptions_have_no_say_in_what_affects_whom(school):
    ids = school.scalars(select(Event.id).limit(20)).all()
    before = [affected(school, event_id, ZONE) for event_id in ids]
    school.execute(delete(SubscribedClass))
    school.execute(update(Subscription).values(follows_me=False))
    assert [affected(school, event_id, ZONE) for event_id in ids] == before


def test_who_ignores_an_event_is_left_out_also_when_named(school):
    event_id, user_id = school.execute(select(EventUser.event_id, EventUser.user_id).limit(1)).one()
    school.execute(delete(IgnoredEvent))
    assert user_id in affected(school, event_id, ZONE)
    school.merge(Subscription(user_id=user_id))
    school.flush()
    school.add(IgnoredEvent(user_id=user_id, event_id=event_id))
    school.flush()
    assert user_id not in affected(school, event_id, ZONE)


def test_event_that_is_gone_affects_nobody(school):
    event_id = school.scalars(select(Event.id).limit(1)).one()
    school.execute(delete(Event).where(Event.id == event_id))
    assert affected(school, event_id, ZONE) == set()


def test_number_of_queries_does_not_grow_with_the_school(school, engine):
    statements = []
    count = lambda *args: statements.append(args[2])  # noqa: E731
    ids = school.scalars(select(Event.id).limit(10)).all()
    event.listen(engine, "before_cursor_execute", count)
    try:
        for event_id in ids:
            affected(school, event_id, ZONE)
    finally:
        event.remove(engine, "before_cursor_execute", count)
    assert len(statements) / len(ids) == 12


# --- what calendars hold on some days ---


def test_agenda_is_what_the_feed_says_of_these_days(school):
    ensure(school)
    week = Window(TODAY + timedelta(days=2), TODAY + timedelta(days=8), NOW, ZONE)
    users = school.scalars(select(User.id)).all()
    found = {agenda.user_id: agenda for agenda in agendas(school, week, users, school_name="Gymnasium")}
    feeds = school.scalars(select(Feed.id).where(Feed.kind == FeedKind.USER)).all()
    whole = {feed.owner_id: content for feed, content in contents(school, WINDOW, school_name="Gymnasium", feed_ids=feeds)}
    during = set(school.scalars(select(Event.id).where(week.current())))

    assert len(found) > 20
    for user_id, feed in whole.items():
        locale = school.get_one(User, user_id).locale
        bodies = dict(
            school.execute(select(EventRendering.body, EventRendering.event_id).where(EventRendering.locale == locale)).all()
        )
        shown = [body for body in vevents(feed) if bodies[body] in during]
        assert (vevents(found[user_id].calendar) if user_id in found else []) == shown
        assert [bodies[body] for body in shown] == (found[user_id].event_ids if user_id in found else [])


def vevents(calendar: bytes) -> list[bytes]:
    return [
        b"BEGIN:VEVENT" + part.partition(b"END:VEVENT\r\n")[0] + b"END:VEVENT\r\n" for part in calendar.split(b"BEGIN:VEVENT")[1:]
    ]
