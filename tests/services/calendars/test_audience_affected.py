"""The users whom one event affects, worked out from the event, against all calendars."""

import pytest
from nightshift.database import Session
from sqlalchemy import delete, event, select, update

from examples import made_up_school
from services.calendars import revisions
from services.calendars.audience import (
    UserFacts,
    find_affected,
    has_user_feed,
    read_school,
)
from services.calendars.window import Window
from services.school.models import (
    Audience,
    Event,
    EventUser,
    IgnoredEvent,
    Role,
    SubscribedClass,
    SubscribedDepartment,
    Subscription,
    User,
)
from tests.conftest import NOW, ZONE

DOMAIN = "school.example"
WINDOW = Window.around(NOW, ZONE, days_past=31, days_ahead=465)
TODAY = NOW.date()


@pytest.fixture(scope="module", params=[1, 2, 3])
def made(request, engine):
    """Yield a connection in whose transaction a school was made up."""
    sizes = {"users": 200, "classes": 12, "departments": 4, "events": 150}
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            options = {"seed": request.param, "zone": ZONE, "now": NOW, "today": TODAY}
            made_up_school.generate(session, **sizes, **options)
            session.flush()
            revisions.record(session, WINDOW, [], domain=DOMAIN, now=NOW)
            session.commit()
        yield connection
        transaction.rollback()


@pytest.fixture
def school(made):
    """Yield a session on that school, whose changes are rolled back after the test."""
    with made.begin_nested() as savepoint:
        mode = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}
        with Session(made, **mode) as session:
            yield session
        savepoint.rollback()


def test_event_affects_those_whose_calendars_it_is_in_for_their_own_sake(school):
    school.execute(delete(SubscribedClass))
    school.execute(delete(SubscribedDepartment))
    school.execute(update(Subscription).values(follows_me=True))
    with_feed = select(User.id, User.role, User.class_id).where(has_user_feed())
    users = [UserFacts(*row) for row in school.execute(with_feed)]
    held = read_school(school, WINDOW, users, all_users=True)
    of_user = {user.id: held.of_user(user) for user in users}
    expected = {
        facts.id: {user_id for user_id, indexes in of_user.items() if index in indexes}
        for index, facts in enumerate(held.events)
    }
    found = {event_id: find_affected(school, event_id, ZONE) for event_id in expected}
    assert {event_id: ids & of_user.keys() for event_id, ids in found.items()} == expected
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
    # One more for an event of the whole school.
    assert 15 * len(ids) <= len(statements) <= 16 * len(ids)


def test_event_for_the_whole_school_affects_nobody_without_a_feed_or_a_class_of_it(school):
    person = {"first_name": "A", "last_name": "B", "created_at": NOW, "role": Role.STUDENT}
    without, having = User(email="a@b.example", **person), User(email="c@d.example", **person)
    having.untis_id = "having"
    school.add_all([without, having])
    event_id = school.scalars(
        select(Event.id).where(~Event.addressed, Event.audience == Audience.ALL).limit(1)
    ).one()
    school.flush()
    assert find_affected(school, event_id, ZONE) & {without.id, having.id} == {having.id}
