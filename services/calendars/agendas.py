"""What users' calendars hold on some days, for the mails that say so."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple
from uuid import UUID

from nightshift.database import Session, plain
from sqlalchemy import select

from services.calendars import ics
from services.calendars.audience import UserFacts, read_school
from services.calendars.models import EventRendering
from services.calendars.window import Window
from services.school.models import User


class Agenda(NamedTuple):
    """A user's events in calendar order, and the same events as a calendar file.

    The file has the same bytes for them as the user's feed.
    """

    user_id: int
    event_ids: list[UUID]
    calendar: bytes


def read_agendas(
    session: Session, window: Window, user_ids: Collection[int], *, school_name: str
) -> Iterator[Agenda]:
    """Yield what these users' calendars hold in the window; a user with no event is left out."""
    people = select(User.id, plain(User.locale), plain(User.role), User.class_id).where(
        User.id.in_(user_ids)
    )
    users = {
        row.id: (row.locale, UserFacts(row.id, row.role, row.class_id))
        for row in session.execute(people)
    }
    school = read_school(session, window, [facts for _, facts in users.values()])
    held = {
        user_id: [school.events[index].id for index in sorted(school.of_user(facts))]
        for user_id, (_, facts) in users.items()
    }
    rendered: dict[str, dict[UUID, bytes]] = defaultdict(dict)
    wanted = EventRendering.event_id.in_(set().union(*held.values()))
    for row in session.execute(
        select(plain(EventRendering.locale), EventRendering.event_id, EventRendering.body).where(
            wanted
        )
    ):
        rendered[row.locale][row.event_id] = row.body
    head = ics.render_head(school_name, window.zone)
    for user_id, event_ids in held.items():
        if event_ids:
            bodies = rendered[users[user_id][0]]
            yield Agenda(
                user_id,
                event_ids,
                b"".join([head, *(bodies[event_id] for event_id in event_ids), ics.CALENDAR_FOOT]),
            )
