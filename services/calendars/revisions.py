"""The revision ledger: what feeds said of an event last, and its rendered bytes.

ICSx5 skips an event unless LAST-MODIFIED has risen. Google ignores an update without a higher
SEQUENCE. A DTSTAMP of *now* makes every poll look like a change. So these three rise exactly when
the rendered bytes change, in any locale.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import LONGEST_LIST, Session, batched, upsert
from nightshift.errors import InvalidInput
from sqlalchemy import and_, func, select, true, union_all, update

from services.calendars import ics
from services.calendars.audience import find_local_days
from services.calendars.models import EventRendering, EventRevision
from services.calendars.window import Window
from services.school.models import (
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    SchoolClass,
)

# A rendered event is a kilobyte, and a database takes a limited number of parameters.
ROWS_A_STATEMENT = 500

# On Postgres, only the transaction with this lock revises events. SQLite has one writer.
LOCK = 0x6E69676874


@dataclass(frozen=True, slots=True)
class OutdatedEvent:
    """An event whose source has changed, with its new rendering or the error.

    `sequence` and `modified_at` are None for an event that was never rendered.
    """

    event_id: UUID
    sequence: int | None
    digest: bytes
    modified_at: datetime | None
    source: bytes
    rendering: ics.Rendering | None
    error: str | None


def find_outdated(
    session: Session,
    window: Window,
    *,
    domain: str,
    event_ids: Collection[UUID] | None = None,
    rendered: Mapping[bytes, OutdatedEvent] = MappingProxyType({}),
) -> Iterator[OutdatedEvent]:
    """Yield the window's events (only these, with `event_ids`) whose sources changed, rendered.

    Write nothing. What `rendered` holds by its source is not rendered again. An event that cannot
    be rendered has an error; the others are rendered all the same.
    """
    if event_ids is not None and len(event_ids) > LONGEST_LIST:
        event_ids = None  # A query takes no such list; all events are more, but not wrong.
    columns = (
        EventRevision.event_id,
        EventRevision.sequence,
        EventRevision.source,
        EventRevision.digest,
        EventRevision.modified_at,
    )
    ours = true() if event_ids is None else EventRevision.event_id.in_(event_ids)
    known = {row.event_id: row for row in session.execute(select(*columns).where(ours))}
    for event_id, content in read_contents(session, window, domain, event_ids=event_ids):
        source = ics.digest_source(content)
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
            except Exception as fault:  # noqa: BLE001 - only this event has failed
                error = f"{type(fault).__name__}: {fault}"
        yield OutdatedEvent(
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
    found: Collection[OutdatedEvent],
    *,
    domain: str,
    now: datetime,
    event_ids: Collection[UUID] | None = None,
) -> int:
    """Bring the revisions of these events (all when None) up to date; return how many changed.

    `found` was rendered earlier, outside a transaction that writes: on SQLite all other writers
    would wait. This transaction revises alone, and compares with the events as they are now: a
    rendering that is out of date by now is not written.
    """
    if event_ids is not None and not event_ids:
        return 0
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(LOCK)))
    rendered = {change.source: change for change in found}
    fresh = list(
        find_outdated(session, window, domain=domain, event_ids=event_ids, rendered=rendered)
    )
    for some in batched(fresh, ROWS_A_STATEMENT):
        _write(session, some, now.replace(microsecond=0))
    return len(fresh)


def _write(session: Session, found: Collection[OutdatedEvent], now: datetime) -> None:
    revisions: list[dict[str, Any]] = []
    renderings: list[dict[str, Any]] = []
    for change in found:
        sequence, modified_at, digest = (
            change.sequence or 0,
            change.modified_at or now,
            change.digest,
        )
        if change.rendering is not None and change.rendering.digest != digest:
            if change.sequence is not None and digest:
                sequence += 1
                modified_at = max(now, modified_at + timedelta(seconds=1))
            digest = change.rendering.digest
            renderings += [
                {
                    "event_id": change.event_id,
                    "locale": locale,
                    "body": ics.stamp(body, sequence=sequence, modified_at=modified_at),
                }
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
    upsert(session, EventRevision, revisions)
    if renderings:
        upsert(session, EventRendering, renderings)


def find_errors(session: Session, window: Window) -> list[dict[str, str]]:
    """Return the events of the window that could not be rendered, and why."""
    rows = session.execute(
        select(Event.id, Event.title, EventRevision.error)
        .join(EventRevision, EventRevision.event_id == Event.id)
        .where(window.current(), EventRevision.error.is_not(None))
        .order_by(Event.id)
    )
    return [
        {"event": str(row.id), "title": ics.clean(row.title)[:80], "error": row.error}
        for row in rows
    ]


def read_contents(
    session: Session, window: Window, domain: str, *, event_ids: Collection[UUID] | None = None
) -> Iterator[tuple[UUID, ics.EventContent]]:
    """Yield what is rendered of the window's events (only of these, with `event_ids`)."""
    wanted = (
        window.current() if event_ids is None else and_(window.current(), Event.id.in_(event_ids))
    )
    current = select(Event.id).where(wanted)
    names: dict[UUID, set[str]] = defaultdict(set)
    named = union_all(
        select(EventClass.event_id, SchoolClass.name)
        .join(SchoolClass, SchoolClass.id == EventClass.class_id)
        .where(EventClass.event_id.in_(current)),
        select(EventClassGroup.event_id, EventClassGroup.class_group).where(
            EventClassGroup.event_id.in_(current)
        ),
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


def revise(
    session: Session, event_id: UUID, *, domain: str, zone: ZoneInfo, raised: bool, now: datetime
) -> dict[str, str]:
    """Bring one event's revision up to date, and return its VEVENT by language.

    Also for an event outside the feeds' window. One that cannot be rendered has no VEVENT. With
    `raised`, SEQUENCE rises even when calendars show no change: for a user who is no longer
    invited, it is a change.
    """
    event = session.get_one(Event, event_id, populate_existing=True)
    starts, ends = event.starts_at or event.starts_on, event.ends_at or event.ends_on
    first, last = find_local_days(starts, ends, zone)  # type: ignore[arg-type]
    if raised:
        # Neither is a digest of anything.
        session.execute(
            update(EventRevision)
            .where(EventRevision.event_id == event_id)
            .values(source=b"", digest=b"raised")
        )
    record(
        session, Window(first, last, now, zone), [], domain=domain, now=now, event_ids=[event_id]
    )
    rows = session.execute(
        select(EventRendering.locale, EventRendering.body).where(
            EventRendering.event_id == event_id
        )
    )
    return {row.locale: row.body.decode() for row in rows}
