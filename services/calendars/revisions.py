"""The revision ledger: what subscribers were told of an event last, and its rendered bytes.

ICSx5 skips an event unless LAST-MODIFIED rose, Google ignores an update without SEQUENCE, and a DTSTAMP of *now* makes every poll look
like a change. So the three rise exactly when the rendered bytes change, in any locale.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import and_, func, select, true, union_all, update

from services.calendars import ics
from services.calendars.audience import local_days
from services.calendars.models import EventRendering, EventRevision
from services.calendars.window import Window
from services.database import LONGEST_LIST, Session, insert_or
from services.errors import InvalidInput
from services.school.models import Department, Event, EventClass, EventClassGroup, EventDepartment, SchoolClass

# Rows a statement: a rendered event is a kilobyte, and a database takes so many parameters only.
ROWS_A_STATEMENT = 500

# On Postgres, who holds this lock is the only one that revises events; SQLite has one writer anyway.
LOCK = 0x6E69676874


@dataclass(frozen=True, slots=True)
class Change:
    """An event whose source is not the one that was rendered last, with its new rendering or why there is none."""

    event_id: UUID
    sequence: int | None
    digest: bytes
    modified_at: datetime | None
    source: bytes
    rendering: ics.Rendering | None
    error: str | None


def changes(
    session: Session,
    window: Window,
    *,
    domain: str,
    event_ids: Collection[UUID] | None = None,
    rendered: Mapping[bytes, Change] = MappingProxyType({}),
) -> Iterator[Change]:
    """Render the window's events whose sources changed; the others are only compared. Reads, and writes nothing.

    With `event_ids` only these are looked at. What `rendered` holds by its source is not rendered again. One event that cannot be
    rendered is a Change with an error, and spoils no other.
    """
    if event_ids is not None and len(event_ids) > LONGEST_LIST:
        event_ids = None  # More than there have to be, but no list.
    columns = (
        EventRevision.event_id,
        EventRevision.sequence,
        EventRevision.source,
        EventRevision.digest,
        EventRevision.modified_at,
    )
    ours = true() if event_ids is None else EventRevision.event_id.in_(event_ids)
    known = {row.event_id: row for row in session.execute(select(*columns).where(ours))}
    for event_id, content in contents(session, window, domain, event_ids=event_ids):
        source = ics.source_digest(content)
        last = known.get(event_id)
        if last is not None and last.source == source:
            continue
        rendering, error = None, None
        if source in rendered:
            rendering, error = rendered[source].rendering, rendered[source].error
        else:
            try:
                rendering = ics.render(content)
            except InvalidInput as refusal:
                error = str(refusal)
            except Exception as fault:  # noqa: BLE001 - whatever a value does to the renderer, it is this event's fault alone
                error = f"{type(fault).__name__}: {fault}"
        yield Change(
            event_id,
            None if last is None else last.sequence,
            b"" if last is None else last.digest,
            None if last is None else last.modified_at,
            source,
            rendering,
            error,
        )


def record(
    session: Session,
    window: Window,
    found: Collection[Change],
    *,
    domain: str,
    now: datetime,
    event_ids: Collection[UUID] | None = None,
) -> int:
    """Bring the revisions of these events (all when None) up to date and return how many changed.

    `found` was rendered before, outside any transaction that writes: on SQLite everybody else would wait for it. Who comes here is
    alone, and compares with the events as they are now: a rendering that was overtaken meanwhile is not written.
    """
    if event_ids is not None and not event_ids:
        return 0
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(LOCK)))
    rendered = {change.source: change for change in found}
    fresh = list(changes(session, window, domain=domain, event_ids=event_ids, rendered=rendered))
    for start in range(0, len(fresh), ROWS_A_STATEMENT):
        _write(session, fresh[start : start + ROWS_A_STATEMENT], now.replace(microsecond=0))
    return len(fresh)


def _write(session: Session, found: list[Change], now: datetime) -> None:
    revisions: list[dict[str, Any]] = []
    renderings: list[dict[str, Any]] = []
    for change in found:
        sequence, modified_at, digest = change.sequence or 0, change.modified_at or now, change.digest
        if change.rendering is not None and change.rendering.digest != digest:
            if change.sequence is not None and digest:
                sequence += 1
                modified_at = max(now, modified_at + timedelta(seconds=1))
            digest = change.rendering.digest
            renderings += [
                {"event_id": change.event_id, "locale": locale, "body": ics.stamp(body, sequence=sequence, modified_at=modified_at)}
                for locale, body in change.rendering.bodies.items()
            ]
        revisions.append(
            {
                "event_id": change.event_id,
                "sequence": sequence,
                "modified_at": modified_at,
                "source": change.source,
                "digest": digest,
                "error": change.error,
            }
        )
    statement = insert_or(session, EventRevision)
    values = {name: statement.excluded[name] for name in ("sequence", "modified_at", "source", "digest", "error")}
    session.execute(statement.on_conflict_do_update(index_elements=[EventRevision.event_id], set_=values), revisions)
    if renderings:
        statement = insert_or(session, EventRendering)
        keys = [EventRendering.event_id, EventRendering.locale]
        session.execute(statement.on_conflict_do_update(index_elements=keys, set_={"body": statement.excluded.body}), renderings)


def errors(session: Session, window: Window) -> list[dict[str, str]]:
    """Return the events of the window that could not be rendered, and why."""
    rows = session.execute(
        select(Event.id, Event.title, EventRevision.error)
        .join(EventRevision, EventRevision.event_id == Event.id)
        .where(window.current(), EventRevision.error.is_not(None))
        .order_by(Event.id)
    )
    return [{"event": str(row.id), "title": ics.clean(row.title)[:80], "error": row.error} for row in rows]


def contents(
    session: Session, window: Window, domain: str, *, event_ids: Collection[UUID] | None = None
) -> Iterator[tuple[UUID, ics.EventContent]]:
    """Give what is rendered of every event of the window, or of those of them that are given."""
    wanted = window.current() if event_ids is None else and_(window.current(), Event.id.in_(event_ids))
    current = select(Event.id).where(wanted)
    names: dict[UUID, set[str]] = defaultdict(set)
    named = union_all(
        select(EventClass.event_id, SchoolClass.name)
        .join(SchoolClass, SchoolClass.id == EventClass.class_id)
        .where(EventClass.event_id.in_(current)),
        select(EventClassGroup.event_id, EventClassGroup.class_group).where(EventClassGroup.event_id.in_(current)),
        select(EventDepartment.event_id, Department.name)
        .join(Department, Department.id == EventDepartment.department_id)
        .where(EventDepartment.event_id.in_(current)),
    )
    for event_id, name in session.execute(named):
        names[event_id].add(name)
    columns = (
        Event.id,
        Event.title,
        Event.description,
        Event.location,
        Event.starts_at,
        Event.ends_at,
        Event.starts_on,
        Event.ends_on,
        Event.teaching_affected,
        Event.cancelled_at,
        Event.deleted_at,
    )
    for row in session.execute(select(*columns).where(wanted)).all():
        content = ics.EventContent(
            uid=f"{row.id}@{domain}",
            title=row.title,
            description=row.description,
            location=row.location,
            starts=row.starts_at or row.starts_on,
            ends=row.ends_at or row.ends_on,
            cancelled=row.cancelled_at is not None or row.deleted_at is not None,
            teaching_affected=row.teaching_affected,
            classes=tuple(sorted(names.get(row.id, ()))),
        )
        yield row.id, content


def told(session: Session, event_id: UUID, *, domain: str, zone: ZoneInfo, raised: bool, now: datetime) -> dict[str, str]:
    """Bring an event's revision up to date, also outside the feeds' window, and return its VEVENT by language, none if it has none.

    With `raised` its SEQUENCE rises also when nothing changed that calendars show: to whoever is no longer invited that is a change.
    """
    event = session.get_one(Event, event_id, populate_existing=True)
    first, last = local_days(event.starts_at or event.starts_on, event.ends_at or event.ends_on, zone)  # type: ignore[arg-type]
    if raised:
        # Neither is a digest of anything.
        other = update(EventRevision).where(EventRevision.event_id == event_id).values(source=b"", digest=b"raised")
        session.execute(other)
    record(session, Window(first, last, now, zone), [], domain=domain, now=now, event_ids=[event_id])
    rows = session.execute(select(EventRendering.locale, EventRendering.body).where(EventRendering.event_id == event_id))
    return {row.locale: row.body.decode() for row in rows}
