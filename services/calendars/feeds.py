"""Feeds: who has one, which are out of date, and how those are built."""

import hashlib
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import LONGEST_LIST, Base, Session, batched, insert_or, plain, reader
from nightshift.errors import NotFound, ServiceError
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Row,
    Select,
    SQLColumnExpression,
    and_,
    bindparam,
    case,
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
from services.calendars.audience import (
    Indexes,
    School,
    UserFacts,
    has_user_feed,
    read_school,
)
from services.calendars.models import EventRendering, Feed, FeedKind
from services.calendars.notes import unnoted
from services.calendars.store import FeedStore, Owner, StoreAway, StoreUnavailable
from services.calendars.window import Window
from services.school.models import Department, SchoolClass, User
from services.translation import Locale

# A token has 192 bits: it cannot be guessed, and makes a URL well below 256 characters.
TOKEN_BYTES = 24

# A build's result is a row of the ledger.
MOST_ERRORS = 20

# On Postgres, only the transaction with this lock adds or removes feeds. SQLite has one writer.
LOCK = 0x6665656473

Owners = Mapping[FeedKind, Collection[int]]


class Calendar(NamedTuple):
    """A feed as it should be now: its owner's name and language, and the events that it holds."""

    feed: Row[Any]
    name: str
    locale: Locale
    events: list[int]
    fingerprint: bytes

    @property
    def owner(self) -> Owner:
        return self.feed.kind, self.feed.owner_id

    @property
    def is_recorded(self) -> bool:
        """Whether the last build wrote what a build would write now."""
        return bool(self.feed.fingerprint == self.fingerprint)


def _is_as_recorded(feed: Row[Any], stamp: str | None) -> bool:
    """Return whether the last build of a feed wrote the file that has this stamp now.

    An earlier release wrote longer files, too.
    """
    whole = feed.error is None and feed.size <= ics.MOST_BYTES
    return bool(whole and stamp is not None and stamp == feed.stamp)


def select_entitled() -> CompoundSelect[Any]:
    """Select (kind, owner_id) of every feed that should exist.

    Departments, classes, and users who are in the timetable or have a subscription.
    """
    return union_all(
        select(literal(FeedKind.DEPARTMENT.value).label("kind"), Department.id.label("owner_id")),
        select(literal(FeedKind.CLASS.value), SchoolClass.id),
        select(literal(FeedKind.USER.value), User.id).where(has_user_feed()),
    )


def _is_among(
    some: Owners | None, kind: SQLColumnExpression[Any], owner_id: SQLColumnExpression[int]
) -> ColumnElement[bool]:
    return (
        true()
        if some is None
        else or_(*(and_(kind == of, owner_id.in_(ids)) for of, ids in some.items()))
    )


def _lock_feeds(session: Session) -> None:
    """Wait until no other transaction adds or removes feeds.

    A row that another transaction is removing would still look like a feed.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(LOCK)))


def add_missing(session: Session, some: Owners | None = None) -> int:
    """Add the rows of feeds that should exist (only of `some`); return how many were missing."""
    _lock_feeds(session)
    owners = select_entitled().subquery()
    having = exists().where(Feed.kind == owners.c.kind, Feed.owner_id == owners.c.owner_id)
    entitled_now = select(owners.c.kind, owners.c.owner_id).where(
        _is_among(some, owners.c.kind, owners.c.owner_id)
    )
    missing = session.execute(entitled_now.where(~having)).all()
    rows = [
        {"kind": FeedKind(kind), "owner_id": owner_id, "token": secrets.token_urlsafe(TOKEN_BYTES)}
        for kind, owner_id in missing
    ]
    if rows:
        new = insert_or(session, Feed).on_conflict_do_nothing(
            index_elements=[Feed.kind, Feed.owner_id]
        )
        with unnoted(session):
            session.execute(new, rows)
    return len(rows)


def find_out_of_date(
    session: Session,
    window: Window,
    store: FeedStore,
    *,
    school_name: str,
    same_inputs: bool = False,
) -> tuple[list[int], int]:
    """Return the ids of the feeds to build, in order, and the number of all feeds.

    A feed whose file is not the recorded one is out of date, whatever it holds. Only for the others
    is it worked out what they should hold, and not even that with `same_inputs`: the caller then
    knows that nothing has changed since all of them were right.
    """
    touched: list[int] = []
    settled: list[Row[Any]] = []
    rows = _read_feeds(session, entitled_only=True)
    built = [row for row in rows if row.stamp is not None]
    stamps = store.find_stamps([(row.kind, row.owner_id) for row in built])
    for row in rows:
        if _is_as_recorded(row, stamps.get((row.kind, row.owner_id))):
            settled.append(row)
        else:
            touched.append(row.id)
    total = len(touched) + len(settled)
    if not settled or same_inputs:
        return touched, total
    all_users = len(settled) > LONGEST_LIST
    _, found = _read_calendars(
        session, window, settled, school_name=school_name, all_users=all_users
    )
    changed = [one.feed.id for one in found if one.feed.fingerprint != one.fingerprint]
    return sorted(touched + changed), total


def read_calendars(
    session: Session,
    window: Window,
    *,
    school_name: str,
    feed_ids: Collection[int] | None = None,
    lock: bool = False,
) -> tuple[School, list[Calendar]]:
    """Return the school, and these feeds (all when None) as they should be now.

    Feeds that should not exist, or that have no address, are left out. With `lock`, lock the feeds'
    rows first, in the order of their ids, and read all else after that: another build of the same
    feed waits, and then sees at least what this one has seen.
    """
    rows = _read_feeds(session, feed_ids=feed_ids, lock=lock)
    return _read_calendars(
        session, window, rows, school_name=school_name, all_users=feed_ids is None
    )


def _read_feeds(
    session: Session,
    *,
    feed_ids: Collection[int] | None = None,
    lock: bool = False,
    entitled_only: bool = False,
) -> Sequence[Row[Any]]:
    columns = (
        Feed.id,
        plain(Feed.kind),
        Feed.owner_id,
        Feed.fingerprint,
        Feed.size,
        Feed.stamp,
        Feed.error,
        Feed.built_by,
    )
    query = select(*columns).where(Feed.revoked_at.is_(None)).order_by(Feed.id)
    if feed_ids is not None:
        query = query.where(Feed.id.in_(feed_ids))
    if entitled_only:
        owners = select_entitled().subquery()
        query = query.join(
            owners, (owners.c.kind == Feed.kind) & (owners.c.owner_id == Feed.owner_id)
        )
    if lock:
        # Only a build needs these, and reading thousands of times takes long.
        query = query.add_columns(Feed.etag, Feed.modified_at).with_for_update()
    return reader(session)(query)


def _read_owners(
    session: Session, rows: Sequence[Row[Any]], *, all_users: bool
) -> Iterator[dict[int, Row[Any]]]:
    """Return, by id, the users (all, or the feeds' owners), all classes and all departments."""
    read = reader(session)
    people = select(
        User.id,
        User.first_name,
        User.last_name,
        plain(User.locale),
        plain(User.role),
        User.class_id,
    )
    if not all_users:
        ids = [row.owner_id for row in rows if row.kind == FeedKind.USER]
        people = people.where(User.id.in_(ids))
    department = select(Department.id, Department.name, plain(Department.locale))
    class_ = select(
        SchoolClass.id, SchoolClass.name, SchoolClass.display_name, SchoolClass.department_id
    )
    return ({row.id: row for row in read(query)} for query in (people, class_, department))


def _read_calendars(
    session: Session, window: Window, rows: Sequence[Row[Any]], *, school_name: str, all_users: bool
) -> tuple[School, list[Calendar]]:
    users, classes, departments = _read_owners(session, rows, all_users=all_users)
    facts = {row.id: UserFacts(row.id, row.role, row.class_id) for row in users.values()}
    school = read_school(session, window, list(facts.values()), all_users=all_users)
    # The head of a calendar without a name: the same bytes for all of them.
    common_head = ics.render_head("", window.zone)

    def make_calendar(feed: Row[Any], name: str, locale: str, indexes: Indexes) -> Calendar:
        events, digest = school.listed(indexes)
        head = hashlib.blake2b(common_head, digest_size=16, key=locale.encode())
        head.update(digest)
        head.update(f"{school_name}: {name}".encode(errors="replace"))
        return Calendar(feed, f"{school_name}: {name}", Locale(locale), events, head.digest())

    found = []
    for row in rows:
        if row.kind == FeedKind.USER and row.owner_id in users:
            user = users[row.owner_id]
            name, locale = f"{user.first_name} {user.last_name}", user.locale
            held = school.of_user(facts[user.id])
        elif row.kind == FeedKind.CLASS and row.owner_id in classes:
            class_ = classes[row.owner_id]
            department = departments.get(class_.department_id)
            name = class_.display_name or class_.name
            locale = Locale.GERMAN if department is None else department.locale
            held = school.of_class(class_.id)
        elif row.kind == FeedKind.DEPARTMENT and row.owner_id in departments:
            department = departments[row.owner_id]
            name, locale = department.name, department.locale
            held = school.of_department(department.id)
        else:
            continue
        found.append(make_calendar(row, name, locale, held))
    return school, found


def build(
    session: Session,
    window: Window,
    store: FeedStore,
    *,
    school_name: str,
    feed_ids: Sequence[int],
    run_id: UUID,
    now: datetime,
) -> dict[str, Any]:
    """Bring these feeds up to date; return how many were built, unchanged and failed, with errors.

    Write the file first, then the row: a process that dies in between leaves a file that the row
    does not describe. The next build notices it, and writes the same bytes again. A feed that
    cannot be written keeps its last good file, and its row gets the error. Raises StoreAway when
    none can be written; then nothing is recorded.
    """
    school, wanted = read_calendars(
        session, window, school_name=school_name, feed_ids=feed_ids, lock=True
    )
    # The others are written in any case.
    stamps = store.find_stamps([calendar.owner for calendar in wanted if calendar.is_recorded])
    stale = [
        calendar
        for calendar in wanted
        if not calendar.is_recorded
        or not _is_as_recorded(calendar.feed, stamps.get(calendar.owner))
    ]
    bodies = _read_bodies(session, school, stale)

    def bring(calendar: Calendar) -> dict[str, Any]:
        try:
            content, count = _join_content(calendar, bodies, window.zone)
            return _write(store, calendar, content, count, stamps.get(calendar.owner), now=now)
        except StoreAway:
            raise
        except Exception as error:  # noqa: BLE001 - one owner's trouble is not the others'
            known = isinstance(error, ServiceError)
            message = str(error) if known else f"{type(error).__name__}: {error}"
            return {"feed_id": calendar.feed.id, "failure": message}

    built, failed, errors = [], [], []
    for calendar, brought in zip(stale, store.each(bring, stale), strict=True):
        if "failure" in brought:
            failed.append(brought)
            feed = f"{calendar.feed.kind}/{calendar.feed.owner_id}"
            errors.append({"feed": feed, "error": brought["failure"]})
        else:
            built.append(brought)
    _record(session, built, failed, run_id=run_id, now=now)
    # A feed that an earlier attempt of this chunk has built counts as built by this run.
    current = {calendar.feed.id for calendar in wanted} - {calendar.feed.id for calendar in stale}
    before = sum(
        calendar.feed.built_by == run_id for calendar in wanted if calendar.feed.id in current
    )
    return {
        "built": len(built) + before,
        "unchanged": len(current) - before,
        "failed": len(failed),
        "errors": errors[:MOST_ERRORS],
    }


def _write(
    store: FeedStore,
    calendar: Calendar,
    content: bytes,
    count: int,
    stamp: str | None,
    *,
    now: datetime,
) -> dict[str, Any]:
    """Bring a feed's file up to date, and return what its row has to record.

    A file that was touched, and has `stamp` now, is written only where its bytes are other ones.
    """
    feed, etag = calendar.feed, make_etag(content)
    modified_at = feed.modified_at
    known = stamp is not None and modified_at is not None and feed.etag == etag
    if not known or store.read(*calendar.owner) != content:
        stamp = store.write(*calendar.owner, content)
        modified_at = _later(feed.modified_at, now)
    return {
        "feed_id": feed.id,
        "new_fingerprint": calendar.fingerprint,
        "new_etag": etag,
        "events": count,
        "omitted": len(calendar.events) - count,
        "new_size": len(content),
        "new_stamp": stamp,
        "new_modified": modified_at,
    }


def make_etag(content: bytes) -> str:
    """Return the entity tag of a feed's bytes. Other bytes have another tag."""
    return hashlib.sha256(content).hexdigest()[:32]


def _later(last: datetime | None, written: datetime) -> datetime:
    # HTTP counts whole seconds, clocks are set back, and the clocks of two machines differ.
    return written if last is None else max(written, last + timedelta(seconds=1))


def _record(
    session: Session,
    built: list[dict[str, Any]],
    failed: list[dict[str, Any]],
    *,
    run_id: UUID,
    now: datetime,
) -> None:
    connection = session.connection()
    table = Base.metadata.tables[Feed.__tablename__]
    one_feed = update(table).where(table.c.id == bindparam("feed_id"))
    if built:
        values = {
            "fingerprint": bindparam("new_fingerprint"),
            "etag": bindparam("new_etag"),
            "event_count": bindparam("events"),
            "left_out": bindparam("omitted"),
            "size": bindparam("new_size"),
            "stamp": bindparam("new_stamp"),
            "modified_at": bindparam("new_modified"),
            "built_at": now,
            "built_by": run_id,
            "error": None,
        }
        connection.execute(one_feed.values(values), built)
    if failed:
        connection.execute(one_feed.values(error=bindparam("failure")), failed)


def _read_bodies(
    session: Session, school: School, wanted: list[Calendar]
) -> dict[Locale, dict[int, bytes]]:
    """Return the rendered events of these calendars, by locale and index, and no others."""
    needed: dict[Locale, set[int]] = {}
    for calendar in wanted:
        needed.setdefault(calendar.locale, set()).update(calendar.events)
    bodies: dict[Locale, dict[int, bytes]] = {}
    for locale, indexes in needed.items():
        index_of = {school.events[index].id: index for index in indexes}
        query = select(EventRendering.event_id, EventRendering.body).where(
            EventRendering.locale == locale
        )
        bodies[locale] = {
            index_of[event_id]: body
            for some in batched(list(index_of), LONGEST_LIST)
            for event_id, body in session.execute(query.where(EventRendering.event_id.in_(some)))
        }
    return bodies


def _join_content(
    calendar: Calendar, bodies: dict[Locale, dict[int, bytes]], zone: ZoneInfo
) -> tuple[bytes, int]:
    """Return a feed's bytes, and how many of its events had room in them."""
    rendered = bodies[calendar.locale]
    try:
        events = [rendered[index] for index in calendar.events]
    except KeyError as missing:
        raise NotFound(
            "an event's rendering is missing: another program has deleted it; the refresh that"
            " follows makes it again"
        ) from missing
    return ics.join(ics.render_head(calendar.name, zone), events)


def read_contents(
    session: Session, window: Window, *, school_name: str, feed_ids: Sequence[int]
) -> Iterator[tuple[Row[Any], bytes]]:
    """Yield the bytes that each of these feeds should have. Write nothing."""
    school, wanted = read_calendars(session, window, school_name=school_name, feed_ids=feed_ids)
    bodies = _read_bodies(session, school, wanted)
    for calendar in wanted:
        content, _count = _join_content(calendar, bodies, window.zone)
        yield calendar.feed, content


def remove_orphans(
    session: Session, store: FeedStore, some: Owners | None = None
) -> tuple[int, list[dict[str, str]]]:
    """Remove the files and rows of feeds that should not exist any more (only of `some`).

    Also files without a row, which another program has deleted, and those of feeds that have no
    address. Return how many feeds were removed, and errors for the files that could not be.
    """
    _lock_feeds(session)
    # Before the rows: each file that a build has written has its row.
    files = (
        store.list_owners()
        if some is None
        else {(kind, owner_id) for kind, ids in some.items() for owner_id in ids if owner_id}
    )
    owners = select_entitled().subquery()
    having = exists().where(owners.c.kind == Feed.kind, owners.c.owner_id == Feed.owner_id)
    orphaned = select(Feed.id, Feed.kind, Feed.owner_id).where(
        _is_among(some, Feed.kind, Feed.owner_id), ~having
    )
    orphans = session.execute(orphaned.order_by(Feed.id).with_for_update()).all()
    rows = reader(session)(
        select(plain(Feed.kind), Feed.owner_id).where(
            _is_among(some, Feed.kind, Feed.owner_id), Feed.revoked_at.is_(None)
        )
    )
    strays = files - {(row.kind, row.owner_id) for row in rows}
    ids: dict[Owner, int] = {(orphan.kind, orphan.owner_id): orphan.id for orphan in orphans}

    def remove(owner: Owner) -> str:
        try:
            store.remove(*owner)
        except StoreUnavailable as error:
            return str(error)
        return ""

    removed: list[int] = []
    errors: list[dict[str, str]] = []
    owners_of = [*ids, *sorted(strays - ids.keys())]
    for owner, failure in zip(owners_of, store.each(remove, owners_of), strict=True):
        if failure:
            errors.append({"feed": f"{owner[0]}/{owner[1]}", "error": failure})
        elif owner in ids:
            removed.append(ids[owner])
    # By id: a feed that has just become an orphan keeps its row until its file is removed.
    for gone in batched(removed, LONGEST_LIST):
        orphans_of = delete(Feed).where(Feed.id.in_(gone))
        with unnoted(session):
            session.execute(orphans_of.execution_options(synchronize_session=False))
    return len(removed), errors


def list_feeds(
    session: Session, store: FeedStore, *, kind: FeedKind | None = None
) -> list[dict[str, Any]]:
    """Return the feeds with their owners' names, as JSON values, by kind and name."""
    owner = (
        select(
            literal(FeedKind.USER.value).label("kind"),
            User.id.label("id"),
            User.email.label("name"),
        )
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
            "path": store.locate(feed.kind, feed.owner_id),
            "events": feed.event_count,
            "left_out": feed.left_out,
            "bytes": feed.size,
            "etag": feed.etag,
            "built_at": feed.built_at,
            "revoked_at": feed.revoked_at,
            "error": feed.error,
        }
        for feed, name in rows
    ]


def find_feeds(
    session: Session, *, kind: FeedKind | None, only: str | None, after: int, limit: int
) -> Sequence[Row[Any]]:
    """Return feeds with their owners' names, not addresses, by id from `after` on.

    `only`: `failed` for those whose last build failed, `revoked` for those without an address.
    """
    person = User.first_name + " " + User.last_name
    owner = case(
        (
            Feed.kind == FeedKind.USER,
            select(person).where(User.id == Feed.owner_id).scalar_subquery(),
        ),
        (
            Feed.kind == FeedKind.CLASS,
            select(SchoolClass.name).where(SchoolClass.id == Feed.owner_id).scalar_subquery(),
        ),
        else_=select(Department.name).where(Department.id == Feed.owner_id).scalar_subquery(),
    )
    names = ("id", "kind", "owner_id", "event_count", "left_out", "built_at", "revoked_at", "error")
    columns: list[Any] = [getattr(Feed, name) for name in names]
    query: Select[Any] = select(*columns, owner.label("owner"))
    query = query.where(Feed.id > after).order_by(Feed.id).limit(limit)
    if kind is not None:
        query = query.where(Feed.kind == kind)
    if only is not None:
        query = query.where((Feed.error if only == "failed" else Feed.revoked_at).is_not(None))
    return session.execute(query).all()


def count_health(session: Session) -> tuple[int, int, int]:
    """Return how many feeds have an address, how many of them failed, and were never built."""
    unbuilt = func.count().filter(Feed.built_at.is_(None), Feed.error.is_(None))
    counts = select(func.count(), func.count(Feed.error), unbuilt)
    total, failed, never = session.execute(counts.where(Feed.revoked_at.is_(None))).one()
    return total, failed, never


def count_full(session: Session) -> dict[str, int]:
    """Return, by kind, how many feeds have no room for all their events."""
    rows = session.execute(
        select(Feed.kind, func.count()).where(Feed.left_out > 0).group_by(Feed.kind)
    )
    return {kind.value: number for kind, number in rows}


def count_feeds(session: Session) -> dict[str, tuple[int, int, int, int]]:
    """Return, by kind, how many feeds there are and how many failed, and their events and bytes."""
    sums = (func.sum(Feed.event_count), func.sum(Feed.size))
    rows = session.execute(
        select(Feed.kind, func.count(), func.count(Feed.error), *sums)
        .group_by(Feed.kind)
        .order_by(Feed.kind)
    )
    return {
        kind.value: (number, failed, int(events or 0), int(size or 0))
        for kind, number, failed, events, size in rows
    }
