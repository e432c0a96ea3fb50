"""What users' calendars hold on some days, for the mails that say so."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from datetime import date, datetime
from typing import NamedTuple
from uuid import UUID

from nightshift.database import LONGEST_LIST, Session, batched, plain
from sqlalchemy import exists, select

from services.calendars import ics
from services.calendars.audience import (
    EventFacts,
    UserFacts,
    has_user_feed,
    read_school,
)
from services.calendars.models import EventRendering
from services.calendars.sync import Rules
from services.calendars.window import Window
from services.school.models import Event, Subscription, User
from services.school.recurrences import find_local_days


class Agenda(NamedTuple):
    """A user's events in calendar order, and the same events as a calendar file.

    The file has the same bytes for them as the user's feed.
    """

    user_id: int
    event_ids: list[UUID]
    calendar: bytes


ReadAgendas = Callable[[Session, date, date, Collection[int]], Iterator[Agenda]]


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
        user_id: [
            school.events[index].id
            for index in sorted(school.of_user(facts))
            if _reaches(school.events[index], window)
        ]
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


def make_reader(rules: Rules, clock: Callable[[], datetime]) -> ReadAgendas:
    """Return a function that reads what users' calendars hold from one day to another."""

    def read(
        session: Session, first: date, last: date, user_ids: Collection[int]
    ) -> Iterator[Agenda]:
        window = Window(first, last, clock(), rules.zone)
        return read_agendas(session, window, user_ids, school_name=rules.school_name)

    return read


def _reaches(event: EventFacts, window: Window) -> bool:
    # A feed may show an event that ends as its first day begins. A week's mail must not.
    return any(
        window.reaches(*times) and find_local_days(*times, window.zone)[1] >= window.first
        for times in event.all_times
    )


def find_showing(
    session: Session, window: Window, event_id: UUID, user_ids: Collection[int]
) -> set[int]:
    """Return those of these users, whom an event affects, whose calendars show it in the window.

    A user who follows only chosen classes and departments is left out: what they show may differ.
    """
    follows = ~exists().where(Subscription.user_id == User.id, ~Subscription.follows_me)
    shown = exists().where(Event.id == event_id, window.current())
    found: set[int] = set()
    for some in batched(sorted(user_ids), LONGEST_LIST):
        theirs = (User.id.in_(some), has_user_feed(), follows, shown)
        found.update(session.execute(select(User.id).where(*theirs)).scalars())
    return found
