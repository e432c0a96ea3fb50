"""The weekly digest: a user's week, as a mail and as a calendar file."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from nightshift.database import Session, batched
from nightshift.jobs import Outcome, Run
from sqlalchemy import select

from services.letters.facts import format_when, number_of, read_moments
from services.letters.jobs import QueueDigests
from services.letters.recipients import READERS_PER_JOB, Recipient, find_recipients, make_letter
from services.letters.rules import LetterRules
from services.mail import outbox
from services.school.models import DateState, Event, User
from services.school.recurrences import (
    DateChange,
    Series,
    find_local_days,
    find_occurrences_or_first,
)
from services.school.series import read_changes

A_WEEK = timedelta(days=7)

# A user's id, the ids of the events in the user's calendar, in its order, and their calendar file.
UserWeek = tuple[int, list[UUID], bytes]

# Return what these users' calendars hold from one day to another, both included.
Agendas = Callable[[Session, date, date, Collection[int]], Iterable[UserWeek]]


class Line(NamedTuple):
    """An event in a digest."""

    when: str
    title: str
    location: str
    cancelled: bool


class Week(NamedTuple):
    """What a digest says to its reader."""

    to: Recipient
    days: list[tuple[date, list[Line]]]
    calendar: bytes

    @property
    def version(self) -> int:
        """Return a number that changes with what the digest says."""
        return number_of(repr(self.days).encode() + self.calendar)


def spawn_digests(session: Session, run: Run, rules: LetterRules) -> Outcome:
    """Start the jobs that queue the digests of the week that the run's day is in.

    It runs on Monday mornings. A run that is late is still about the week that has begun.
    """
    today = run.now.astimezone(rules.zone).date()
    week = today - timedelta(days=today.weekday())
    wanting = (
        session.execute(select(User.id).where(User.mail_digest).order_by(User.id)).scalars().all()
    )
    run.spawn(
        session,
        [QueueDigests(week=week, user_ids=ids) for ids in batched(wanting, READERS_PER_JOB)],
    )
    return {"week": week.isoformat(), "users": len(wanting)}


def queue_digests(
    session: Session, args: QueueDigests, agendas: Agendas, rules: LetterRules, *, now: datetime
) -> Outcome:
    """Queue a week's digests to those of these users who want one and have events in that week."""
    number = f"{args.week:%G-W%V}"
    about = f"digest:{args.week}"
    told = outbox.find_about(session, about, args.user_ids)
    messages = []
    for week in read_weeks(session, args.week, args.user_ids, agendas, rules):
        message = make_letter(
            "digest",
            week.to,
            rules,
            key=number,
            mails=told.get(week.to.id, ()),
            about=about,
            version=week.version,
            now=now,
            first=args.week,
            last=args.week + A_WEEK - timedelta(days=1),
            days=week.days,
        )
        if message is not None:
            message.content.add_attachment(
                week.calendar,
                maintype="text",
                subtype="calendar",
                filename=f"{number}.ics",
                params={"charset": "utf-8"},
            )
            messages.append(message)
    return {"queued": len(outbox.queue_many(session, messages, now=now))}


def read_weeks(
    session: Session,
    monday: date,
    user_ids: Collection[int],
    agendas: Agendas,
    rules: LetterRules,
) -> list[Week]:
    """Return what a digest of a week says to each of these users who have an event in it."""
    last = monday + A_WEEK - timedelta(days=1)
    found = {
        user_id: (event_ids, calendar)
        for user_id, event_ids, calendar in agendas(session, monday, last, user_ids)
    }
    shown = set().union(*(event_ids for event_ids, _ in found.values()))
    events = {
        event.id: event
        for event in session.execute(select(Event).where(Event.id.in_(shown))).scalars()
    }
    changes = read_changes(session, Event.id.in_(shown))
    weeks = []
    for to in find_recipients(session, found):
        event_ids, calendar = found[to.id]
        days = group_by_day(
            to, [events[event_id] for event_id in event_ids], monday, rules, changes=changes
        )
        weeks.append(Week(to, days, calendar))
    return weeks


def group_by_day(
    to: Recipient,
    events: Iterable[Event],
    monday: date,
    rules: LetterRules,
    *,
    changes: Mapping[UUID, tuple[DateChange, ...]] = MappingProxyType({}),
) -> list[tuple[date, list[Line]]]:
    """Return the events by day. An event that began before the week is on Monday.

    `changes` has what is otherwise on single dates of repeated events.
    """
    days: dict[date, list[tuple[float, Line]]] = defaultdict(list)
    sunday = monday + A_WEEK - timedelta(days=1)
    for event in events:
        series = Series(*read_moments(event), event.rrule or "", changes.get(event.id, ()))
        for one in find_occurrences_or_first(series, rules.zone):
            first, last = find_local_days(one.starts, one.ends, rules.zone)
            if series.rrule and (last < monday or first > sunday):
                continue
            day = max(first, monday)
            told = format_when(one.starts, one.ends, to.locale, rules.zone, on=day)
            title, location, is_cancelled = event.title, event.location, False
            if one.change is not None:
                title = one.change.title or title
                location = location if one.change.location is None else one.change.location
                is_cancelled = one.change.state == DateState.CANCELLED
            is_cancelled |= event.cancelled_at is not None or event.deleted_at is not None
            days[day].append((_moment(one.starts), Line(told, title, location, is_cancelled)))
    return [
        (day, [line for _, line in sorted(lines, key=itemgetter(0))])
        for day, lines in sorted(days.items())
    ]


def _moment(starts: date) -> float:
    """Return a number for the order of a calendar: whole days as if they began in UTC."""
    if isinstance(starts, datetime):
        return starts.timestamp()
    return datetime.combine(starts, time(), UTC).timestamp()
