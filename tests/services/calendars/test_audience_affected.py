"""Whom one event affects, worked out from the event, against the calendars of everybody."""

import pytest
from sqlalchemy import delete, event, select, update

from examples import made_up_school
from services.calendars import revisions
from services.calendars.audience import UserFacts, find_affected, read_school
from services.calendars.window import Window
from services.school.models import (
    Event,
    EventUser,
    IgnoredEvent,
    SubscribedClass,
    SubscribedDepartment,
    Subscription,
    User,
)
from tests.conftest import NOW, ZONE

DOMAIN = "school.example"
WINDOW = Window.around(NOW, ZONE, days_past=31, days_ahead=465)
TODAY = NOW.date()


@pytest.fixture(params=[1, 2, 3])
def school(request, session):
    sizes = {"users": 200, "classes": 12, "departments": 4, "events": 150}
    made_up_school.generate(session, **sizes, seed=request.param, zone=ZONE, now=NOW, today=TODAY)
    session.flush()
    revisions.record(session, WINDOW, [], domain=DOMAIN, now=NOW)
    return session


def test_event_affects_those_whose_calendars_it_is_in_for_their_own_sake(school):
    school.execute(delete(SubscribedClass))
    school.execute(delete(SubscribedDepartment))
    school.execute(update(Subscription).values(follows_me=True))
    users = [UserFacts(*row) for row in school.execute(select(User.id, User.role, User.class_id))]
    held = read_school(school, WINDOW, users, everybody=True)
    of_user = {user.id: held.of_user(user) for user in users}
    expected = {
        facts.id: {user_id for user_id, indexes in of_user.items() if index in indexes}
        for index, facts in enumerate(held.events)
    }
    found = {event_id: find_affected(school, event_id, ZONE) for event_id in expected}
    assert found == expected
    assert len(set(map(frozenset, expected.values()))) > 20


def test_subscriptions_have_no_say_in_what_affects_whom(school):
    ids = school.scalars(select(Event.id).limit(20)).all()
    before = [find_affected(school, event_id, ZONE) for event_id in ids]
    school.execute(delete(SubscribedClass))
    school.execute(update(Subscription).values(follows_me=False))
    assert [find_affected(school, event_id, ZONE) for event_id in ids] == before


def test_who_ignores_an_event_is_left_out_also_when_named(school):
    event_id, user_id = school.execute(select(EventUser.event_id, EventUser.user_id).limit(1)).one()
    school.execute(delete(IgnoredEvent))
    assert user_id in find_affected(school, event_id, ZONE)
    school.merge(Subscription(user_id=user_id))
    school.flush()
    school.add(IgnoredEvent(user_id=user_id, event_id=event_id))
    school.flush()
    assert user_id not in find_affected(school, event_id, ZONE)


def test_event_that_is_gone_affects_nobody(school):
    event_id = school.scalars(select(Event.id).limit(1)).one()
    school.execute(delete(Event).where(Event.id == event_id))
    assert find_affected(school, event_id, ZONE) == set()


def test_number_of_queries_does_not_grow_with_the_school(school, engine):
    statements = []

    def count(*args):
        statements.append(args[2])

    ids = school.scalars(select(Event.id).limit(10)).all()
    event.listen(engine, "before_cursor_execute", count)
    try:
        for event_id in ids:
            find_affected(school, event_id, ZONE)
    finally:
        event.remove(engine, "before_cursor_execute", count)
    assert len(statements) / len(ids) == 12
