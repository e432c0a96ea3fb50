"""The rows of repeated events: read as series, and kept with the days that they have dates on."""

from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import LONGEST_LIST, Session, batched, insert_many_or, plain, reader
from sqlalchemy import ColumnElement, bindparam, delete, or_, select, update
from sqlalchemy.orm.attributes import set_committed_value

from services.school.models import Event, EventDate
from services.school.recurrences import DateChange, Series, find_span, make_date_id

__all__ = ["read_changes", "read_series", "spread", "write_changes"]


def read_changes(
    session: Session, wanted: ColumnElement[bool]
) -> dict[UUID, tuple[DateChange, ...]]:
    """Return what is otherwise on single dates, by event, of the events that fit a condition."""
    rows = reader(session)(
        select(
            EventDate.event_id,
            EventDate.original_on,
            plain(EventDate.state),
            EventDate.starts_at,
            EventDate.starts_on,
            EventDate.ends_at,
            EventDate.ends_on,
            EventDate.title,
            EventDate.description,
            EventDate.location,
        )
        .join(Event, Event.id == EventDate.event_id)
        .where(wanted)
        .order_by(EventDate.event_id, EventDate.original_on)
    )
    found: dict[UUID, list[DateChange]] = {}
    for row in rows:
        change = DateChange(
            row.original_on,
            row.state,
            row.starts_at or row.starts_on,
            row.ends_at or row.ends_on,
            row.title,
            row.description,
            row.location,
        )
        found.setdefault(row.event_id, []).append(change)
    return {event_id: tuple(changes) for event_id, changes in found.items()}


def read_series(session: Session, wanted: ColumnElement[bool]) -> dict[UUID, Series]:
    """Return when the events that fit a condition take place."""
    changes = read_changes(session, wanted)
    columns = (
        Event.id, Event.starts_at, Event.starts_on, Event.ends_at, Event.ends_on, Event.rrule
    )  # fmt: skip
    return {
        row.id: Series(
            row.starts_at or row.starts_on,
            row.ends_at or row.ends_on,
            row.rrule,
            changes.get(row.id, ()),
        )
        for row in reader(session)(select(*columns).where(wanted))
    }


def write_changes(session: Session, event_id: UUID, changes: Iterable[DateChange]) -> None:
    """Replace what is otherwise on the dates of an event; write only what differs."""
    wanted = {change.on: change for change in changes}
    present = {
        change.on: change
        for change in read_changes(session, Event.id == event_id).get(event_id, ())
    }
    gone = [on for on, change in present.items() if wanted.get(on) != change]
    for some in batched(gone, LONGEST_LIST):
        session.execute(
            delete(EventDate).where(EventDate.event_id == event_id, EventDate.original_on.in_(some))
        )
    new = [_make_row(event_id, one) for on, one in wanted.items() if present.get(on) != one]
    for rows in batched(new, LONGEST_LIST):
        insert, values = insert_many_or(session, EventDate, rows)
        session.connection().execute(insert, values)


def _make_row(event_id: UUID, change: DateChange) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": make_date_id(event_id, change.on),
        "event_id": event_id,
        "original_on": change.on,
        "state": change.state,
        "title": change.title,
        "description": change.description,
        "location": change.location,
    }
    for name, moment in (("starts", change.starts), ("ends", change.ends)):
        row |= split_moment(name, moment)
    return row


def split_moment(name: str, moment: Any) -> dict[str, Any]:
    """Return the two columns that hold an instant, or a date for whole days."""
    timed = hasattr(moment, "hour")
    return {f"{name}_at": moment if timed else None, f"{name}_on": None if timed else moment}


def spread(session: Session, event_ids: Collection[UUID], zone: ZoneInfo) -> None:
    """Bring the days between which these events have dates up to date; write only what differs."""
    session.flush()
    for some in batched(list(event_ids), LONGEST_LIST):
        repeated = or_(Event.rrule != "", Event.last_on.is_not(None))
        wanted = Event.id.in_(some) & repeated
        known = {
            row.id: (row.first_on, row.last_on)
            for row in reader(session)(
                select(Event.id, Event.first_on, Event.last_on).where(wanted)
            )
        }
        rows = []
        for event_id, series in read_series(session, wanted).items():
            span = find_span(series, zone) if series.rrule else (None, None)
            if span != known[event_id]:
                rows.append({"one": event_id, "first_on": span[0], "last_on": span[1]})
        if rows:
            changed = update(Event.__table__).where(Event.__table__.c.id == bindparam("one"))  # type: ignore[arg-type]
            session.connection().execute(changed, rows)
            spans = {row["one"]: row for row in rows}
            for event in session.identity_map.values():
                if isinstance(event, Event) and (span_of := spans.get(event.id)):
                    # Not expired: a caller may read it after the transaction.
                    set_committed_value(event, "first_on", span_of["first_on"])
                    set_committed_value(event, "last_on", span_of["last_on"])
