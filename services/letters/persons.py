"""All that is kept about one person: written out, or removed.

Rows are found by their foreign keys to the user, so a table that comes later is found, too; mails
by reader and address; the rest is named here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nightshift.database import Base, Session
from nightshift.jobs import care
from nightshift.jobs.models import ENDED, Job
from sqlalchemy import Column, ColumnElement, Table, and_, delete, func, or_, select, update

from services.calendars.models import Feed, FeedKind
from services.letters.jobs import SendKey, SendWelcome
from services.letters.models import EventNotice
from services.mail.models import Mail, Suppression
from services.mail.outbox import normalise
from services.school.models import Event, Subscription, User

# Rows that are looked through at a time.
CHUNK = 500

# Not what a person is told: how a key is kept, and which claim sends a mail.
HIDDEN = {"user_key": {"hash"}, "mail": {"body", "claim_id"}}

# Jobs whose arguments name a user by number.
KINDS = (SendWelcome.policy.kind, SendKey.policy.kind)


@dataclass(frozen=True)
class Person:
    """What is kept: rows by table, as JSON values, and the messages by their numbers."""

    rows: Mapping[str, list[dict[str, Any]]]
    messages: Mapping[int, bytes]


@dataclass
class Forgotten:
    """How many rows of each table were removed, and what stays with the reason.

    `addresses` are those that letters to the person went to.
    """

    addresses: set[str]
    removed: dict[str, int] = field(default_factory=dict)
    stays: list[str] = field(default_factory=list)


def collect(session: Session, user_id: int) -> Person:
    """Return everything that is kept about a user."""
    user = session.get_one(User, user_id)
    addresses = _find_addresses(session, user)
    rows: dict[str, list[dict[str, Any]]] = {}
    for table, condition in _find_rows(user, addresses):
        columns = [column for column in table.c if column.name not in HIDDEN.get(table.name, ())]
        found = session.execute(select(*columns).where(condition)).mappings()
        if shown := [{name: _show(value) for name, value in row.items()} for row in found]:
            rows[table.name] = shown
    told = [
        {"event_id": str(one.event_id), "version": one.version, "told_at": _show(one.told_at)}
        for one in _find_notices(session, user.id)
    ]
    if told:
        rows["event_notice"] = told
    bodies = select(Mail.id, Mail.body).where(_is_theirs(user, addresses), Mail.body.is_not(None))
    # A sensitive message holds a key that works: its reader has it.
    bodies = bodies.where(Mail.sensitive.is_(False))
    messages = {number: body for number, body in session.execute(bodies) if body is not None}
    return Person(rows, messages)


def forget(session: Session, user_id: int) -> Forgotten:
    """Remove a user, and all rows about them.

    The caller removes the calendar's file and the letters on disk.
    """
    user = session.get_one(User, user_id)
    done = Forgotten(_find_addresses(session, user))
    waiting = session.execute(select(Job.id).where(_is_job_of(user), Job.state.not_in(ENDED)))
    care.cancel(session, waiting.scalars())
    _forget_notices(session, user.id, done)
    done.stays = _find_what_stays(session, user)
    for table, condition in _find_rows(user, done.addresses):
        if table is not User.__table__ and table is not Event.__table__:
            gone = session.execute(delete(table).where(condition)).rowcount  # type: ignore[attr-defined]
            if gone:
                done.removed[table.name] = done.removed.get(table.name, 0) + gone
    unsigned = update(Event).where(Event.author_id == user.id).values(author_id=None)
    session.execute(unsigned.execution_options(synchronize_session=False))
    session.execute(delete(User).where(User.id == user.id))
    done.removed[User.__tablename__] = 1
    return done


def _find_rows(user: User, addresses: set[str]) -> Iterator[tuple[Table, ColumnElement[bool]]]:
    """Yield the tables that name a user, and which rows do; those that name others come first."""
    for table in reversed(Base.metadata.sorted_tables):
        naming = [column for column in table.c if _names_user(column)]
        if table is User.__table__:
            naming.append(table.c.id)
        if naming:
            yield table, or_(*(column == user.id for column in naming))
    yield Feed.__table__, (Feed.kind == FeedKind.USER) & (Feed.owner_id == user.id)  # type: ignore[misc]
    yield Mail.__table__, _is_theirs(user, addresses)  # type: ignore[misc]
    yield Suppression.__table__, Suppression.address.in_(addresses)  # type: ignore[misc]
    yield Job.__table__, _is_job_of(user)  # type: ignore[misc]


def _names_user(column: Column[Any]) -> bool:
    """Return whether a column has a user's id, by its foreign key."""
    targets = {key.target_fullname for key in column.foreign_keys}
    return bool(targets & {f"{User.__tablename__}.id", f"{Subscription.__tablename__}.user_id"})


def _find_addresses(session: Session, user: User) -> set[str]:
    """Return the addresses that a user has, and has had mails at, in the form that mails have."""
    told = select(func.lower(Mail.recipient)).where(Mail.reader_id == user.id).distinct()
    return {normalise(user.email), *session.execute(told).scalars()}


def _is_theirs(user: User, addresses: set[str]) -> ColumnElement[bool]:
    return or_(Mail.reader_id == user.id, func.lower(Mail.recipient).in_(addresses))


def _is_job_of(user: User) -> ColumnElement[bool]:
    return and_(Job.kind.in_(KINDS), Job.args["user_id"].as_integer() == user.id)


def _find_notices(session: Session, user_id: int) -> Iterator[EventNotice]:
    """Yield the notices that name a user: their lists are JSON, which no index knows."""
    for notice in session.scalars(select(EventNotice).execution_options(yield_per=CHUNK)):
        if user_id in (*notice.readers, *notice.invited):
            yield notice


def _forget_notices(session: Session, user_id: int, done: Forgotten) -> None:
    for notice in list(_find_notices(session, user_id)):
        notice.readers = [one for one in notice.readers if one != user_id]
        notice.invited = [one for one in notice.invited if one != user_id]
        name = EventNotice.__tablename__
        done.removed[name] = done.removed.get(name, 0) + 1
    session.flush()


def _find_what_stays(session: Session, user: User) -> list[str]:
    """Return what a removal leaves, with the reason."""
    stays = []
    wrote = select(func.count()).where(Event.author_id == user.id)
    if number := session.execute(wrote).scalar_one():
        stays.append(f"{number} events that they wrote, without an author: readers have them")
    name = f"{user.first_name} {user.last_name}"
    texts = [
        text.icontains(word, autoescape=True)
        for text in (Event.title, Event.description, Event.location)
        for word in (name, user.email)
    ]
    named = session.execute(select(Event.id).where(or_(*texts)).limit(CHUNK)).scalars().all()
    if named:
        stays.append(
            f"{len(named)} events whose text names them: {', '.join(map(str, named))}; edit or"
            " delete them"
        )
    stays.append("mails to others that name them, until MAIL_KEEP_SENT has passed")
    stays.append("records of timetable syncs that name them by their untis_id, for a year")
    stays.append("jobs that name them by number only, until JOBS_KEEP_SUCCEEDED has passed")
    stays.append("what was sent or subscribed to already: it is with its readers")
    stays.append("backups from before: delete them, or forget again after a restore")
    return stays


def _show(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | list | dict):
        return value
    return value.isoformat() if isinstance(value, datetime) else str(value)
