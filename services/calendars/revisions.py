"""The revision ledger: what subscribers were told of an event last, and its rendered bytes.

ICSx5 skips an event unless LAST-MODIFIED rose, Google ignores an update without SEQUENCE, and a DTSTAMP of *now* makes every poll look
like a change. So the three rise exactly when the rendered bytes change, in any locale.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, union_all

from services.calendars import ics
from services.calendars.models import EventRendering, EventRevision
from services.calendars.window import Window
from services.database import Session, insert_or
from services.errors import InvalidInput
from services.school.models import Department, Event, EventClass, EventClassGroup, EventDepartment, SchoolClass

# Rows a statement: a rendered event is a kilobyte, and a database takes so many parameters only.
ROWS_A_STATEMENT = 500


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


def changes(session: Session, window: Window, *, domain: str) -> Iterator[Change]:
    """Render the events of the window whose sources changed; the others are only compared. Reads, and writes nothing.

    One event that cannot be rendered is a Change with an error, and spoils no other.
    """
    known = {
        row.event_id: row
        for row in session.execute(
            select(
                EventRevision.event_id,
                EventRevision.sequence,
                EventRevision.source,
                EventRevision.digest,
                EventRevision.modified_at,
                EventRevision.error,
            )
        )
    }
    for event_id, content in contents(session, window, domain):
        source = ics.source_digest(content)
        last = known.get(event_id)
        if last is not None and last.source == source:
            continue
        rendering, error = None, None
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


def record(session: Session, found: list[Change], *, now: datetime) -> int:
    """Write the changes and return how many; one whose event was revised or removed by somebody else meanwhile is left to the next."""
    now = now.replace(microsecond=0)
    written = 0
    for some in batched_changes(found):
        ids = [change.event_id for change in some]
        # Locked in id order, and compared again: two who revise the same event must not both raise it.
        sequences: dict[UUID, int] = dict(
            session.execute(
                select(EventRevision.event_id, EventRevision.sequence)
                .where(EventRevision.event_id.in_(ids))
                .order_by(EventRevision.event_id)
                .with_for_update()
            ).all()
        )
        living = set(session.execute(select(Event.id).where(Event.id.in_(ids))).scalars())
        fresh = [c for c in some if c.event_id in living and sequences.get(c.event_id) == c.sequence]
        if fresh:
            _write(session, fresh, now)
        written += len(fresh)
    return written


def batched_changes(found: list[Change]) -> Iterator[list[Change]]:
    """Cut a list of changes into statements' sizes, in id order."""
    ordered = sorted(found, key=lambda change: change.event_id)
    for start in range(0, len(ordered), ROWS_A_STATEMENT):
        yield ordered[start : start + ROWS_A_STATEMENT]


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


def contents(session: Session, window: Window, domain: str) -> Iterator[tuple[UUID, ics.EventContent]]:
    """Give what is rendered of every event of the window."""
    current = select(Event.id).where(window.current())
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
    for row in session.execute(select(*columns).where(window.current())).all():
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
