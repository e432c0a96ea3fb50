"""What calendars hold on some days, against the feeds."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from examples import made_up_school
from services.calendars import revisions
from services.calendars.agendas import read_agendas
from services.calendars.feeds import add_missing, read_contents
from services.calendars.models import EventRendering, Feed, FeedKind
from services.calendars.window import Window
from services.school.models import (
    Event,
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


def test_agenda_is_what_the_feed_says_of_these_days(school):
    add_missing(school)
    week = Window(TODAY + timedelta(days=2), TODAY + timedelta(days=8), NOW, ZONE)
    users = school.scalars(select(User.id)).all()
    found = {
        agenda.user_id: agenda
        for agenda in read_agendas(school, week, users, school_name="Gymnasium")
    }
    feeds = school.scalars(select(Feed.id).where(Feed.kind == FeedKind.USER)).all()
    whole = {
        feed.owner_id: content
        for feed, content in read_contents(school, WINDOW, school_name="Gymnasium", feed_ids=feeds)
    }
    during = set(school.scalars(select(Event.id).where(week.current())))

    assert len(found) > 20
    for user_id, feed in whole.items():
        locale = school.get_one(User, user_id).locale
        bodies = dict(
            school.execute(
                select(EventRendering.body, EventRendering.event_id).where(
                    EventRendering.locale == locale
                )
            ).all()
        )
        shown = [body for body in vevents(feed) if bodies[body] in during]
        assert (vevents(found[user_id].calendar) if user_id in found else []) == shown
        assert [bodies[body] for body in shown] == (
            found[user_id].event_ids if user_id in found else []
        )


def vevents(calendar: bytes) -> list[bytes]:
    return [
        b"BEGIN:VEVENT" + part.partition(b"END:VEVENT\r\n")[0] + b"END:VEVENT\r\n"
        for part in calendar.split(b"BEGIN:VEVENT")[1:]
    ]
