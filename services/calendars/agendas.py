"""What users' calendars hold on some days, for those who are sent it."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select

from services.calendars import ics
from services.calendars.audience import UserFacts, load
from services.calendars.models import EventRendering
from services.calendars.window import Window
from services.database import Session, plain
from services.school.models import User


class Agenda(NamedTuple):
    """A user's events in calendar order, and the same as a calendar file: byte for byte what the user's feed says of them."""

    user_id: int
    event_ids: list[UUID]
    calendar: bytes


def agendas(session: Session, window: Window, user_ids: Collection[int], *, school_name: str) -> Iterator[Agenda]:
    """Give what the calendars of these users hold in the window; a user whose calendar is empty there is left out."""
    people = select(User.id, plain(User.locale), plain(User.role), User.class_id).where(User.id.in_(user_ids))
    users = {row.id: (row.locale, UserFacts(row.id, row.role, row.class_id)) for row in session.execute(people)}
    school = load(session, window, [facts for _, facts in users.values()])
    held = {user_id: [school.events[index].id for index in sorted(school.of_user(facts))] for user_id, (_, facts) in users.items()}
    rendered: dict[str, dict[UUID, bytes]] = defaultdict(dict)
    wanted = EventRendering.event_id.in_(set().union(*held.values()))
    for row in session.execute(select(plain(EventRendering.locale), EventRendering.event_id, EventRendering.body).where(wanted)):
        rendered[row.locale][row.event_id] = row.body
    head = ics.calendar_head(school_name, window.zone)
    for user_id, event_ids in held.items():
        if event_ids:
            bodies = rendered[users[user_id][0]]
            yield Agenda(user_id, event_ids, b"".join([head, *(bodies[event_id] for event_id in event_ids), ics.CALENDAR_FOOT]))
