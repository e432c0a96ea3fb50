"""The weekly digest: what a user's calendar holds next week, as a mail and as a calendar file."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from datetime import date, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select

from services.database import Session
from services.jobs import Outcome, Run
from services.mail import outbox
from services.mail.compose import MailRules
from services.mail.facts import moments, when
from services.mail.jobs import QueueDigests
from services.mail.recipients import Recipient, chunks, letter, recipients
from services.school.models import Event, User

A_WEEK = timedelta(days=7)

# A user's id, the ids of the events that the user's calendar holds, in its order, and these as a calendar file.
Agenda = tuple[int, list[UUID], bytes]


class Line(NamedTuple):
    """An event in a digest."""

    when: str
    title: str
    location: str
    cancelled: bool


def plan(session: Session, run: Run, rules: MailRules) -> Outcome:
    """Start the jobs that queue the digests of the week that begins next Monday."""
    today = run.now.astimezone(rules.zone).date()
    week = today + timedelta(days=7 - today.weekday())
    wanting = session.execute(select(User.id).where(User.mail_digest).order_by(User.id)).scalars().all()
    run.spawn(session, [QueueDigests(week=week, user_ids=ids) for ids in chunks(wanting)])
    return {"week": week.isoformat(), "users": len(wanting)}


def queue(
    session: Session,
    args: QueueDigests,
    agendas: Callable[[Session, date, date, Collection[int]], Iterable[Agenda]],
    rules: MailRules,
    *,
    now: datetime,
) -> Outcome:
    """Queue a week's digests to these users; who still wants one and has an empty week gets none."""
    last = args.week + A_WEEK - timedelta(days=1)
    found = {user_id: (event_ids, calendar) for user_id, event_ids, calendar in agendas(session, args.week, last, args.user_ids)}
    shown = set().union(*(event_ids for event_ids, _ in found.values()))
    events = {event.id: event for event in session.execute(select(Event).where(Event.id.in_(shown))).scalars()}
    number = f"{args.week:%G-W%V}"
    messages = []
    for to in recipients(session, found):
        event_ids, calendar = found[to.id]
        days = by_day(to, [events[event_id] for event_id in event_ids], args.week, rules)
        message = letter("digest", to, rules, about=number, now=now, first=args.week, last=last, days=days)
        if message is not None:
            file, charset = f"{number}.ics", {"charset": "utf-8"}
            message.content.add_attachment(calendar, maintype="text", subtype="calendar", filename=file, params=charset)
            messages.append(message)
    return {"queued": len(outbox.queue_many(session, messages, now=now))}


def by_day(to: Recipient, events: Iterable[Event], monday: date, rules: MailRules) -> list[tuple[date, list[Line]]]:
    """Return the events by the day of the week on which a reader looks for them; what began before is on Monday."""
    days: dict[date, list[Line]] = defaultdict(list)
    for event in events:
        starts, ends = moments(event)
        first = starts.astimezone(rules.zone).date() if isinstance(starts, datetime) else starts
        day = max(first, monday)
        told = when(starts, ends, to.locale, rules.zone, on=day)
        days[day].append(Line(told, event.title, event.location, event.cancelled_at is not None or event.deleted_at is not None))
    return sorted(days.items())
