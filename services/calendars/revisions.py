"""The revision ledger: what feeds said of an event last, and its rendered bytes.

ICSx5 skips an event unless LAST-MODIFIED has risen. Google ignores an update without a higher
SEQUENCE. A DTSTAMP of *now* makes every poll look like a change. So these three rise exactly when
the rendered bytes change, in any locale. They never fall: an event that is deleted and written
again goes on from its `EventStamp`, and so does one whose revision another program has written.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import LONGEST_LIST, Session, batched, upsert
from nightshift.errors import InvalidInput
from sqlalchemy import ColumnElement, and_, delete, func, select, true, union_all, update

from services.calendars import ics
from services.calendars.models import EventRendering, EventRevision, EventStamp
from services.calendars.notes import Doubted, unnoted
from services.calendars.window import Window
from services.school.models import (
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    SchoolClass,
)
from services.school.recurrences import find_span
from services.school.series import read_changes, read_series
from services.school.texts import clean

# A rendered event is a kilobyte, and a database takes a limited number of parameters.
ROWS_A_STATEMENT = 500

# On Postgres, only the transaction with this lock revises events. SQLite has one writer.
LOCK = 0x6E69676874

# The stamps of an event that is gone are kept for the window, which is how long a calendar may show
# an event, and for this long after it. A calendar program that has not asked for a year asks for
# everything again; until then it may remember the event.
STAMPS_KEPT = timedelta(days=366)
STAMPS_A_PRUNING = 1_000

# Not a digest of anything: the next rendering differs from it.
SPOILT, RAISED = b"spoilt", b"raised"

# Another program may have written others. Without a limit, the next change would be an error.
HIGHEST_SEQUENCE = 2**31 - 1
LATEST_STAMP = datetime(ics.LAST_YEAR_TOLD - 1, 12, 31, tzinfo=UTC)


class Stamps(NamedTuple):
    """An event's SEQUENCE and LAST-MODIFIED."""

    sequence: int
    modified_at: datetime

    def rise(self, now: datetime) -> "Stamps":
        """Return higher stamps."""
        modified_at = min(self.modified_at, LATEST_STAMP) + timedelta(seconds=1)
        return Stamps(min(self.sequence + 1, HIGHEST_SEQUENCE), max(now, modified_at))

    def join(self, other: "Stamps") -> "Stamps":
        """Return the higher of each."""
        return Stamps(max(self.sequence, other.sequence), max(self.modified_at, other.modified_at))


@dataclass(frozen=True, slots=True)
class OutdatedEvent:
    """An event whose source has changed, with its new rendering or the error.

    `stamps` are the highest that calendars may remember, or None for an event that was never
    rendered. `spoilt`: what is stored is not what was rendered, and calendars may show it.
    """

    event_id: UUID
    stamps: Stamps | None
    digest: bytes
    source: bytes
    rendering: ics.Rendering | None
    error: str | None
    spoilt: bool


def find_outdated(
    session: Session,
    window: Window,
    *,
    domain: str,
    event_ids: Collection[UUID] | None = None,
    doubted: Doubted = (),
    rendered: Mapping[bytes, OutdatedEvent] = MappingProxyType({}),
) -> Iterator[OutdatedEvent]:
    """Yield the window's events (only these, with `event_ids`) whose sources changed, rendered.

    The `doubted` ones are rendered although their sources are the same, and yielded when what is
    stored differs. Write nothing. What `rendered` holds by its source is not rendered again. An
    event that cannot be rendered has an error; the others are rendered all the same.
    """
    if event_ids is not None and len(event_ids) > LONGEST_LIST:
        event_ids = None  # A query takes no such list; all events are more, but not wrong.
    ours = true() if event_ids is None else EventRevision.event_id.in_(event_ids)
    known = {
        row.event_id: row
        for row in session.execute(select(*EventRevision.__table__.columns).where(ours))
    }
    kept = _read_kept_stamps(session, event_ids)
    bodies = _read_bodies(session, doubted)
    for event_id, content in read_contents(session, window, domain, event_ids=event_ids):
        source, last = ics.digest_source(content), known.get(event_id)
        stamps, set_back = _find_highest(last, kept.get(event_id))
        is_doubted = doubted is None or event_id in doubted
        if last is not None and last.source == source and not (set_back or is_doubted):
            continue
        rendering, error = _render(content, rendered.get(source))
        spoilt = set_back
        if is_doubted and last is not None and not spoilt:
            spoilt = not _is_intact(last, rendering, bodies.get(event_id, {}))
        if last is not None and rendering is not None and not spoilt:
            same = (source, rendering.digest, None)
            if (last.source, last.digest, last.error) == same:
                continue
        digest = b"" if last is None else last.digest
        yield OutdatedEvent(event_id, stamps, digest, source, rendering, error, spoilt)


def _render(
    content: ics.EventContent, before: OutdatedEvent | None
) -> tuple[ics.Rendering | None, str | None]:
    """Return an event's rendering, or why it cannot be rendered; `before` has it already."""
    if before is not None:
        return before.rendering, before.error
    try:
        return ics.render(content), None
    except InvalidInput as refusal:
        return None, str(refusal)
    except Exception as fault:  # noqa: BLE001 - only this event has failed
        return None, f"{type(fault).__name__}: {fault}"


def _find_highest(last: Any, kept: Stamps | None) -> tuple[Stamps | None, bool]:
    """Return the highest stamps that an event had, and whether the stored ones are lower.

    They are when the event was deleted, or when another program has set them back.
    """
    stamps = None if last is None else Stamps(last.sequence, last.modified_at)
    if kept is None:
        return stamps, False
    if stamps is None:
        return kept, True
    highest = stamps.join(kept)
    return highest, highest != stamps


def _read_kept_stamps(session: Session, event_ids: Collection[UUID] | None) -> dict[UUID, Stamps]:
    """Return the kept stamps of events that exist again."""
    query = select(EventStamp.event_id, EventStamp.sequence, EventStamp.modified_at).join(
        Event, Event.id == EventStamp.event_id
    )
    if event_ids is not None:
        query = query.where(EventStamp.event_id.in_(event_ids))
    return {
        event_id: Stamps(min(sequence, HIGHEST_SEQUENCE), min(modified_at, LATEST_STAMP))
        for event_id, sequence, modified_at in session.execute(query)
    }


def _read_bodies(session: Session, doubted: Doubted) -> dict[UUID, dict[str, bytes]]:
    """Return the stored renderings of these events (of all when None)."""
    bodies: dict[UUID, dict[str, bytes]] = defaultdict(dict)
    if doubted is None or doubted:
        query = select(EventRendering.event_id, EventRendering.locale, EventRendering.body)
        if doubted is not None:
            query = query.where(EventRendering.event_id.in_(doubted))
        for row in session.execute(query):
            bodies[row.event_id][row.locale] = row.body
    return bodies


def _is_intact(last: Any, rendering: ics.Rendering | None, bodies: Mapping[str, bytes]) -> bool:
    """Return whether the stored bytes are those of their revision, or are about to be replaced."""
    if rendering is None:
        return False  # Nothing says what they should be.
    if rendering.digest != last.digest:
        # With higher stamps, or there are none yet.
        return bool(last.digest) or not bodies
    try:
        return bodies == {
            locale: ics.stamp(body, sequence=last.sequence, modified_at=last.modified_at)
            for locale, body in rendering.bodies.items()
        }
    except InvalidInput:
        return False  # The revision has a time that no calendar can show.


def record(
    session: Session,
    window: Window,
    found: Collection[OutdatedEvent],
    *,
    domain: str,
    now: datetime,
    event_ids: Collection[UUID] | None = None,
    doubted: Doubted = (),
    builds_feeds: bool = False,
) -> int:
    """Bring the revisions of these events (all when None) up to date; return how many changed.

    `found` was rendered earlier, outside a transaction that writes: on SQLite all other writers
    would wait. This transaction revises alone, and compares with the events as they are now: a
    rendering that is out of date by now is not written.

    The log notes what is written, so that a refresh brings the feeds up to date, except with
    `builds_feeds`: the caller does that.
    """
    if event_ids is not None and not event_ids:
        return 0
    _lock_revisions(session)
    rendered = {change.source: change for change in found}
    fresh = list(
        find_outdated(
            session, window, domain=domain, event_ids=event_ids, doubted=doubted, rendered=rendered
        )
    )
    if fresh:
        with unnoted(session) if builds_feeds else nullcontext():
            for some in batched(fresh, ROWS_A_STATEMENT):
                _write(session, some, now.replace(microsecond=0))
    return len(fresh)


def _lock_revisions(session: Session) -> None:
    """Wait until no other transaction revises events. It comes before any write of a revision."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(LOCK)))


def _write(session: Session, found: Collection[OutdatedEvent], now: datetime) -> None:
    revisions: list[dict[str, Any]] = []
    renderings: list[dict[str, Any]] = []
    for change in found:
        stamps, digest = change.stamps or Stamps(0, now), change.digest
        if change.rendering is not None and (change.spoilt or change.rendering.digest != digest):
            if change.stamps is not None and (change.spoilt or digest):
                stamps = stamps.rise(now)
            digest = change.rendering.digest
            renderings += [
                {
                    "event_id": change.event_id,
                    "locale": locale,
                    "body": ics.stamp(body, **stamps._asdict()),
                }
                for locale, body in change.rendering.bodies.items()
            ]
        elif change.spoilt:
            digest = SPOILT  # Also the same bytes get higher stamps when they can be rendered.
        revisions.append(
            {
                "event_id": change.event_id,
                "source": change.source,
                "digest": digest,
                "error": change.error,
                **stamps._asdict(),
            }
        )
    upsert(session, EventRevision, revisions)
    if renderings:
        upsert(session, EventRendering, renderings)


def read_stamps(session: Session) -> dict[UUID, Stamps]:
    """Return the highest stamps of every event that this database has, or remembers."""
    highest: dict[UUID, Stamps] = {}
    for model in (EventRevision, EventStamp):
        query = select(model.event_id, model.sequence, model.modified_at)
        for event_id, *stamps in session.execute(query.execution_options(yield_per=5_000)):
            one = Stamps._make(stamps)
            highest[event_id] = highest.get(event_id, one).join(one)
    return highest


def take_stamps(session: Session, stamps: Mapping[UUID, Stamps], *, now: datetime) -> int:
    """Go on from these stamps, which calendars have seen, where they are higher than ours.

    Return how many are. The next sync raises those of the events that are here.
    """
    ours = read_stamps(session)
    joined = {one: theirs.join(ours.get(one, theirs)) for one, theirs in stamps.items()}
    higher = [
        {"event_id": one, "gone_at": now, **both._asdict()}
        for one, both in joined.items()
        if both != ours.get(one)
    ]
    for rows in batched(higher, ROWS_A_STATEMENT):
        upsert(session, EventStamp, rows)
    return len(higher)


def prune_stamps(session: Session, *, before: datetime) -> int:
    """Delete the oldest kept stamps of before `before`, a thousand at most; return how many."""
    oldest = select(EventStamp.event_id).where(EventStamp.gone_at < before)
    some = oldest.order_by(EventStamp.gone_at).limit(STAMPS_A_PRUNING)
    pruned = delete(EventStamp).where(EventStamp.event_id.in_(some.scalar_subquery()))
    result = session.execute(pruned.execution_options(synchronize_session=False))
    return int(result.rowcount)  # type: ignore[attr-defined]


def mark_hidden(session: Session, window: Window, *, domain: str, doubted: Doubted) -> None:
    """Mark the doubted events that no calendar shows: they are rendered again when one does.

    Those whose stored revision is right are left. When all events are doubted, that is not looked
    at. A second run marks the same events.
    """
    current = select(Event.id).where(window.current())
    hidden = EventRevision.event_id.not_in(current)
    if doubted is not None:
        wrong = _find_hidden_wrong(session, window, domain, doubted, hidden)
        if not wrong:
            return
        hidden = EventRevision.event_id.in_(wrong)
    with unnoted(session):
        marked = update(EventRevision).where(hidden).values(source=b"", digest=SPOILT)
        session.execute(marked.execution_options(synchronize_session=False))


def _find_hidden_wrong(
    session: Session,
    window: Window,
    domain: str,
    doubted: Collection[UUID],
    hidden: ColumnElement[bool],
) -> set[UUID]:
    if not doubted:
        return set()
    known = {
        row.event_id: row
        for row in session.execute(
            select(*EventRevision.__table__.columns).where(
                hidden, EventRevision.event_id.in_(doubted)
            )
        )
    }
    bodies = _read_bodies(session, known.keys())
    contents = read_contents(session, window, domain, event_ids=known.keys(), only_current=False)
    right = set()
    for event_id, content in contents:
        source, last = ics.digest_source(content), known[event_id]
        rendering, _error = _render(content, None)
        if last.source == source and rendering is not None and rendering.digest == last.digest:
            right |= {event_id} if _is_intact(last, rendering, bodies.get(event_id, {})) else set()
    return known.keys() - right


def find_errors(session: Session, window: Window) -> list[dict[str, str]]:
    """Return the events of the window that could not be rendered, and why."""
    rows = session.execute(
        select(Event.id, Event.title, EventRevision.error)
        .join(EventRevision, EventRevision.event_id == Event.id)
        .where(window.current(), EventRevision.error.is_not(None))
        .order_by(Event.id)
    )
    return [
        {"event": str(row.id), "title": clean(row.title)[:80], "error": row.error} for row in rows
    ]


def read_contents(
    session: Session,
    window: Window,
    domain: str,
    *,
    event_ids: Collection[UUID] | None = None,
    only_current: bool = True,
) -> Iterator[tuple[UUID, ics.EventContent]]:
    """Yield what is rendered of the window's events (only of these, with `event_ids`).

    Without `only_current`, of all events, also of those that no calendar shows.
    """
    wanted = and_(
        window.current() if only_current else true(),
        true() if event_ids is None else Event.id.in_(event_ids),
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
        Event.rrule,
        Event.teaching_affected,
        Event.cancelled_at,
        Event.deleted_at,
    )
    changes = read_changes(session, and_(wanted, Event.rrule != ""))
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
            repeats=ics.Repeats(row.rrule, changes.get(row.id, ()), window.zone)
            if row.rrule
            else None,
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
    session.flush()
    series = read_series(session, Event.id == event_id)[event_id]
    first, last = find_span(series, zone)
    if raised:
        _lock_revisions(session)
        session.execute(
            update(EventRevision)
            .where(EventRevision.event_id == event_id)
            .values(source=b"", digest=RAISED)
        )
    record(
        session, Window(first, last, now, zone), [], domain=domain, now=now, event_ids=[event_id]
    )
    rows = session.execute(
        select(EventRendering.locale, EventRendering.body).where(
            EventRendering.event_id == event_id
        )
    )
    # A repeated event names the zone of its clock.
    zone_lines = ics.render_zone(zone).decode() if series.rrule else ""
    return {row.locale: zone_lines + row.body.decode() for row in rows}
