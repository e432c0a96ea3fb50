"""Feeds: who has one, which are out of date, and building those."""

import hashlib
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Row,
    SQLColumnExpression,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    union_all,
    update,
)

from services.calendars import ics
from services.calendars.audience import Indexes, School, UserFacts, load
from services.calendars.models import EventRendering, Feed, FeedKind
from services.calendars.store import FeedStore, Stamp
from services.calendars.window import Window
from services.database import LONGEST_LIST, Base, Session, insert_or, plain, reader
from services.errors import NotFound, ServiceError, StoreUnavailable
from services.school.models import Department, Locale, SchoolClass, Subscription, User

# A token has 192 bits: it cannot be guessed, and makes a URL well below 256 characters.
TOKEN_BYTES = 24

# On Postgres, who holds this lock is the only one that gives or takes feeds; SQLite has one writer anyway.
LOCK = 0x6665656473

Owners = Mapping[FeedKind, Collection[int]]


class Calendar(NamedTuple):
    """A feed as it should be now: its owner's name and language, and what it holds."""

    feed: Row[Any]
    name: str
    locale: Locale
    events: list[int]
    fingerprint: bytes

    def is_current(self, stamp: Stamp | None) -> bool:
        """Say whether the file, which looks like `stamp`, is the one that we would write."""
        written = Stamp(self.feed.size, self.feed.mtime_ns)
        return self.feed.error is None and self.feed.fingerprint == self.fingerprint and stamp == written


def entitled() -> CompoundSelect[Any]:
    """Select (kind, owner) of every feed that there shall be: departments, classes, and users of the timetable or with a subscription."""
    subscribed = exists().where(Subscription.user_id == User.id)
    return union_all(
        select(literal(FeedKind.DEPARTMENT.value).label("kind"), Department.id.label("owner_id")),
        select(literal(FeedKind.CLASS.value), SchoolClass.id),
        select(literal(FeedKind.USER.value), User.id).where(or_(User.untis_id.is_not(None), subscribed)),
    )


def _among(some: Owners | None, kind: SQLColumnExpression[Any], owner_id: SQLColumnExpression[int]) -> ColumnElement[bool]:
    return true() if some is None else or_(*(and_(kind == of, owner_id.in_(ids)) for of, ids in some.items()))


def _alone(session: Session) -> None:
    """Wait until nobody else gives or takes feeds: a row that is being removed still looks like a feed."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(LOCK)))


def ensure(session: Session, some: Owners | None = None) -> int:
    """Give everybody (of `some`, when given) who is entitled to a feed the row of one, and return how many were missing."""
    _alone(session)
    owners = entitled().subquery()
    having = exists().where(Feed.kind == owners.c.kind, Feed.owner_id == owners.c.owner_id)
    entitled_now = select(owners.c.kind, owners.c.owner_id).where(_among(some, owners.c.kind, owners.c.owner_id))
    missing = session.execute(entitled_now.where(~having)).all()
    rows = [
        {"kind": FeedKind(kind), "owner_id": owner_id, "token": secrets.token_urlsafe(TOKEN_BYTES)} for kind, owner_id in missing
    ]
    if rows:
        session.execute(insert_or(session, Feed).on_conflict_do_nothing(index_elements=[Feed.kind, Feed.owner_id]), rows)
    return len(rows)


def out_of_date(
    session: Session, window: Window, store: FeedStore, *, school_name: str, same_inputs: bool = False
) -> tuple[list[int], int]:
    """Return the ids of the feeds to build, in order, and how many there are in all.

    A feed whose file is not the one that was recorded is out of date whatever it holds; only the others' calendars are worked out, and not
    even those with `same_inputs`: then the caller knows that nothing changed since all of them were right.
    """
    touched: list[int] = []
    settled: list[Row[Any]] = []
    for row in _feeds(session, entitled_only=True):
        recorded = row.error is None and store.stamp(row.kind, row.owner_id) == Stamp(row.size, row.mtime_ns)
        (settled.append(row) if recorded else touched.append(row.id))
    if not settled or same_inputs:
        return touched, len(touched) + len(settled)
    _, found = _calendars(session, window, settled, school_name=school_name, everybody=len(settled) > LONGEST_LIST)
    changed = [calendar.feed.id for calendar in found if calendar.feed.fingerprint != calendar.fingerprint]
    return sorted(touched + changed), len(touched) + len(settled)


def calendars(
    session: Session, window: Window, *, school_name: str, feed_ids: Collection[int] | None = None, lock: bool = False
) -> tuple[School, list[Calendar]]:
    """Return the school, and the given feeds (all when None) as they should be now. Feeds that nobody is entitled to are left out.

    With `lock` their rows are locked first, in id order, and everything else is read after that: whoever builds the same feed waits,
    and then sees what we have seen or more.
    """
    rows = _feeds(session, feed_ids=feed_ids, lock=lock)
    return _calendars(session, window, rows, school_name=school_name, everybody=feed_ids is None)


def _feeds(
    session: Session, *, feed_ids: Collection[int] | None = None, lock: bool = False, entitled_only: bool = False
) -> Sequence[Row[Any]]:
    columns = (Feed.id, plain(Feed.kind), Feed.owner_id, Feed.fingerprint, Feed.size, Feed.mtime_ns, Feed.error, Feed.built_by)
    query = select(*columns).order_by(Feed.id)
    if feed_ids is not None:
        query = query.where(Feed.id.in_(feed_ids))
    if entitled_only:
        owners = entitled().subquery()
        query = query.join(owners, (owners.c.kind == Feed.kind) & (owners.c.owner_id == Feed.owner_id))
    # Only who builds needs the time, and reading thousands of times takes long.
    return reader(session)(query.add_columns(Feed.modified_at).with_for_update() if lock else query)


def _calendars(
    session: Session, window: Window, rows: Sequence[Row[Any]], *, school_name: str, everybody: bool
) -> tuple[School, list[Calendar]]:
    read = reader(session)
    people = select(User.id, User.first_name, User.last_name, plain(User.locale), plain(User.role), User.class_id)
    if not everybody:
        people = people.where(User.id.in_([row.owner_id for row in rows if row.kind == FeedKind.USER]))
    users = {row.id: (row, UserFacts(row.id, row.role, row.class_id)) for row in read(people)}
    departments = {row.id: row for row in read(select(Department.id, Department.name, plain(Department.locale)))}
    classes = {
        row.id: row for row in read(select(SchoolClass.id, SchoolClass.name, SchoolClass.display_name, SchoolClass.department_id))
    }
    school = load(session, window, [facts for _, facts in users.values()], everybody=everybody)
    # The head of a calendar without a name: what is the same in all of them.
    common_head = ics.calendar_head("", window.zone)

    def wish(feed: Row[Any], name: str, locale: str, indexes: Indexes) -> Calendar:
        events, digest = school.listed(indexes)
        head = hashlib.blake2b(common_head, digest_size=16, key=locale.encode())
        head.update(digest)
        head.update(f"{school_name}: {name}".encode(errors="replace"))
        return Calendar(feed, f"{school_name}: {name}", Locale(locale), events, head.digest())

    found = []
    for row in rows:
        if row.kind == FeedKind.USER and row.owner_id in users:
            user, facts = users[row.owner_id]
            found.append(wish(row, f"{user.first_name} {user.last_name}", user.locale, school.of_user(facts)))
        elif row.kind == FeedKind.CLASS and row.owner_id in classes:
            owner = classes[row.owner_id]
            locale = departments[owner.department_id].locale if owner.department_id in departments else Locale.GERMAN
            found.append(wish(row, owner.display_name or owner.name, locale, school.of_class(row.owner_id)))
        elif row.kind == FeedKind.DEPARTMENT and row.owner_id in departments:
            owner = departments[row.owner_id]
            found.append(wish(row, owner.name, owner.locale, school.of_department(row.owner_id)))
    return school, found


def build(
    session: Session, window: Window, store: FeedStore, *, school_name: str, feed_ids: Sequence[int], run_id: UUID, now: datetime
) -> dict[str, Any]:
    """Bring these feeds up to date and return how many were built, unchanged and failed, with the errors.

    The file first, then the row: whoever dies in between leaves a file that the row does not describe, which the next build notices
    and writes again, to the same bytes. A feed that cannot be written keeps its last good file and has its error recorded.
    """
    school, wanted = calendars(session, window, school_name=school_name, feed_ids=feed_ids, lock=True)
    stale = [calendar for calendar in wanted if not calendar.is_current(store.stamp(calendar.feed.kind, calendar.feed.owner_id))]
    bodies = _bodies(session, school, stale)
    built, failed, errors = [], [], []
    for calendar in stale:
        kind, owner_id = calendar.feed.kind, calendar.feed.owner_id
        try:
            content = _content(calendar, bodies, window.zone)
            written = store.write(kind, owner_id, content)
        except Exception as error:  # noqa: BLE001 - one owner's trouble is not the others'
            message = str(error) if isinstance(error, ServiceError) else f"{type(error).__name__}: {error}"
            failed.append({"feed_id": calendar.feed.id, "failure": message})
            errors.append({"feed": f"{kind}/{owner_id}", "error": message})
            continue
        built.append(
            {
                "feed_id": calendar.feed.id,
                "new_fingerprint": calendar.fingerprint,
                "new_etag": etag(content),
                "events": len(calendar.events),
                "new_size": written.size,
                "new_mtime": written.mtime_ns,
                "new_modified": _later(calendar.feed.modified_at, written.modified_at),
            }
        )
    _record(session, built, failed, run_id=run_id, now=now)
    # A feed that an earlier attempt of this chunk built was built by this run.
    before = sum(calendar.feed.built_by == run_id for calendar in wanted) - sum(c.feed.built_by == run_id for c in stale)
    unchanged = len(wanted) - len(stale) - before
    return {"built": len(built) + before, "unchanged": unchanged, "failed": len(failed), "errors": errors[:20]}


def etag(content: bytes) -> str:
    """Return the entity tag of a feed's bytes: other bytes, another tag."""
    return hashlib.sha256(content).hexdigest()[:32]


def _later(last: datetime | None, written: datetime) -> datetime:
    # HTTP counts whole seconds, clocks are set back, and two machines' clocks differ.
    return written if last is None else max(written, last + timedelta(seconds=1))


def _record(session: Session, built: list[dict[str, Any]], failed: list[dict[str, Any]], *, run_id: UUID, now: datetime) -> None:
    connection = session.connection()
    table = Base.metadata.tables[Feed.__tablename__]
    if built:
        values = {
            "fingerprint": bindparam("new_fingerprint"),
            "etag": bindparam("new_etag"),
            "event_count": bindparam("events"),
            "size": bindparam("new_size"),
            "mtime_ns": bindparam("new_mtime"),
            "modified_at": bindparam("new_modified"),
            "built_at": now,
            "built_by": run_id,
            "error": None,
        }
        connection.execute(update(table).where(table.c.id == bindparam("feed_id")).values(values), built)
    if failed:
        connection.execute(update(table).where(table.c.id == bindparam("feed_id")).values(error=bindparam("failure")), failed)


def _bodies(session: Session, school: School, wanted: list[Calendar]) -> dict[Locale, dict[int, bytes]]:
    """Read the rendered bytes of just the events that these calendars hold, in just their locales."""
    needed: dict[Locale, set[int]] = {}
    for calendar in wanted:
        needed.setdefault(calendar.locale, set()).update(calendar.events)
    bodies: dict[Locale, dict[int, bytes]] = {}
    for locale, indexes in needed.items():
        index_of = {school.events[index].id: index for index in indexes}
        query = select(EventRendering.event_id, EventRendering.body).where(EventRendering.locale == locale)
        ids = list(index_of)
        bodies[locale] = {
            index_of[event_id]: body
            for at in range(0, len(ids), LONGEST_LIST)
            for event_id, body in session.execute(query.where(EventRendering.event_id.in_(ids[at : at + LONGEST_LIST])))
        }
    return bodies


def _content(calendar: Calendar, bodies: dict[Locale, dict[int, bytes]], zone: ZoneInfo) -> bytes:
    rendered = bodies[calendar.locale]
    try:
        events = [rendered[index] for index in calendar.events]
    except KeyError as missing:
        raise NotFound("an event's rendering is missing; delete its row in event_revision, and the next sync makes it") from missing
    return b"".join([ics.calendar_head(calendar.name, zone), *events, ics.CALENDAR_FOOT])


def contents(session: Session, window: Window, *, school_name: str, feed_ids: Sequence[int]) -> Iterator[tuple[Row[Any], bytes]]:
    """Give the bytes that each of these feeds should have; writes nothing."""
    school, wanted = calendars(session, window, school_name=school_name, feed_ids=feed_ids)
    bodies = _bodies(session, school, wanted)
    for calendar in wanted:
        yield calendar.feed, _content(calendar, bodies, window.zone)


def remove_orphans(session: Session, store: FeedStore, some: Owners | None = None) -> tuple[int, list[dict[str, str]]]:
    """Remove the feeds (of `some`, when given) that nobody is entitled to any more, files and rows.

    Return how many, and those whose file would not go.
    """
    _alone(session)
    owners = entitled().subquery()
    having = exists().where(owners.c.kind == Feed.kind, owners.c.owner_id == Feed.owner_id)
    orphaned = select(Feed.id, Feed.kind, Feed.owner_id).where(_among(some, Feed.kind, Feed.owner_id), ~having)
    orphans = session.execute(orphaned.order_by(Feed.id).with_for_update()).all()
    removed, errors = [], []
    for orphan in orphans:
        try:
            store.remove(orphan.kind, orphan.owner_id)
            removed.append(orphan.id)
        except StoreUnavailable as error:
            errors.append({"feed": f"{orphan.kind}/{orphan.owner_id}", "error": str(error)})
    # By id: one that becomes an orphan just now keeps its row until its file goes too.
    for at in range(0, len(removed), LONGEST_LIST):
        session.execute(
            delete(Feed).where(Feed.id.in_(removed[at : at + LONGEST_LIST])).execution_options(synchronize_session=False)
        )
    return len(removed), errors


def listed(session: Session, store: FeedStore, *, kind: FeedKind | None = None) -> list[dict[str, Any]]:
    """Return the feeds with their owners' names, as JSON values, ordered by kind and name."""
    owner = (
        select(literal(FeedKind.USER.value).label("kind"), User.id.label("id"), User.email.label("name"))
        .union_all(
            select(literal(FeedKind.CLASS.value), SchoolClass.id, SchoolClass.name),
            select(literal(FeedKind.DEPARTMENT.value), Department.id, Department.name),
        )
        .subquery()
    )
    query = (
        select(Feed, owner.c.name)
        .join(owner, (owner.c.kind == Feed.kind) & (owner.c.id == Feed.owner_id), isouter=True)
        .order_by(Feed.kind, owner.c.name)
    )
    rows = session.execute(query if kind is None else query.where(Feed.kind == kind))
    return [
        {
            "kind": feed.kind.value,
            "owner": name,
            "path": str(store.path(feed.kind, feed.owner_id)),
            "events": feed.event_count,
            "bytes": feed.size,
            "etag": feed.etag,
            "built_at": None if feed.built_at is None else feed.built_at.isoformat(),
            "revoked_at": None if feed.revoked_at is None else feed.revoked_at.isoformat(),
            "error": feed.error,
        }
        for feed, name in rows
    ]


def counts(session: Session) -> dict[str, tuple[int, int]]:
    """Return, by kind, how many feeds there are, and how many of them could not be built last time."""
    rows = session.execute(select(Feed.kind, func.count(), func.count(Feed.error)).group_by(Feed.kind).order_by(Feed.kind))
    return {kind.value: (number, failing) for kind, number, failing in rows}
