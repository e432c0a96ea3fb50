"""An event's life: what may be done with it in which state.

    draft       edit, submit, delete      delete removes the row: it cannot be restored
    review      publish, refuse, delete
    refused     edit, submit, delete
    published   edit, cancel, delete      edit makes a version, a draft; the event stays as it is
    cancelled   restore, delete
    deleted     restore                   as it was before, cancelled or not
    past        -                         a former version of a published event

Each transition has one function, which locks the event's row and works in the caller's transaction.
It also enqueues the mail to those whom the change concerns. Feeds need nothing: the database's
triggers note what was changed.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import Session, insert_or, plain
from nightshift.errors import Conflict, InvalidInput, NotFound
from nightshift.jobs import enqueue
from sqlalchemy import Select, and_, case, func, or_, select

from services.letters.jobs import REVIEW_SETTLED, SETTLED, NoticeEvent, NoticeReview
from services.letters.models import EventNotice
from services.school.loading import TARGETS, find_ids, read_links, relink
from services.school.models import DateState, Event, EventState, User
from services.school.recurrences import (
    DateChange,
    check_change,
    find_occurrences,
    make_change,
)
from services.school.rows import ROW_OF, SEPARATOR, EventDateRow, EventDetails, EventRow, split
from services.school.series import (
    read_changes,
    read_series,
    split_moment,
    spread,
    write_changes,
)
from services.school.sheets import clean, validate
from services.school.texts import find_unwanted

__all__ = [
    "EventDetails",
    "Standing",
    "cancel",
    "cancel_date",
    "create",
    "delete",
    "edit",
    "edit_date",
    "list_events",
    "list_versions",
    "publish",
    "read_details",
    "refuse",
    "restore",
    "restore_date",
    "submit",
    "write",
]


class Standing(StrEnum):
    """An event's state, or what has become of it since."""

    DRAFT = "draft"
    REVIEW = "review"
    REFUSED = "refused"
    PUBLISHED = "published"
    CANCELLED = "cancelled"
    DELETED = "deleted"
    PAST = "past"


ALLOWED = {
    Standing.DRAFT: ("edit", "submit", "delete"),
    Standing.REVIEW: ("publish", "refuse", "delete"),
    Standing.REFUSED: ("edit", "submit", "delete"),
    Standing.PUBLISHED: ("edit", "cancel", "delete"),
    Standing.CANCELLED: ("restore", "delete"),
    Standing.DELETED: ("restore",),
    Standing.PAST: (),
}

stands = case(
    (Event.deleted_at.is_not(None), Standing.DELETED),
    (and_(Event.state == EventState.PUBLISHED, Event.version_of_id.is_not(None)), Standing.PAST),
    (Event.cancelled_at.is_not(None), Standing.CANCELLED),
    else_=plain(Event.state),
)

LINKS = TARGETS[EventRow.file].links

# What publishing a version swaps, beside the links: all except what makes a row the event or a
# version of it.
CONTENT = [
    column.key
    for column in Event.__table__.columns
    if column.key not in ("id", "version_of_id", "created_at")
]


def read_details(
    values: Mapping[str, Any],
    *,
    zone: ZoneInfo,
    session: Session | None = None,
    author: str | None = None,
) -> EventDetails:
    """Return what an event is to say, checked by the rules of events.csv.

    A value is text, or of the type that EventDetails has. An empty one takes its default. With a
    session the names of classes, departments and people, and the author's, are looked up, too.

    Raises:
        InvalidInput: Something is wrong. The message names each field and how to correct it.
    """
    # A list becomes a cell again, so that its members are checked like every other text.
    texts = {
        name: SEPARATOR.join(value) if isinstance(value, list | tuple) else value
        for name, value in values.items()
    }
    cells = {
        name: clean(value) if isinstance(value, str) else value for name, value in texts.items()
    }
    read, wrong = validate(EventDetails, {name: cell for name, cell in cells.items() if cell}, zone)
    if session is not None:
        spoilt = {column for column, _ in wrong}
        named = {column: split(cells.get(column) or "") for column in LINKS.keys() - spoilt}
        named["author"] = () if author is None else (author,)
        wrong += [
            (column, reason)
            for column, names in sorted(named.items())
            for reason in _find_unknown(session, column, names)
        ]
    if read is None or wrong:
        raise InvalidInput("\n".join(f"{name}: {reason}" for name, reason in wrong))
    return read


def create(
    session: Session,
    new: EventDetails,
    *,
    author: str | None,
    zone: ZoneInfo,
    now: datetime,
    without: Collection[date] = (),
) -> Event:
    """Create a draft. `author` is its author's address.

    It does not take place on the days `without`, which are dates of its rule.

    Raises:
        InvalidInput: A name is unknown, or a day is no date of the event.
    """
    event = Event(state=EventState.DRAFT, created_at=now)
    _write(session, event, new, author=author, addressed=False)
    left_out = [DateChange(on, DateState.LEFT_OUT) for on in without]
    _set_changes(session, event, left_out, zone=zone, strict=True)
    return event


def edit(
    session: Session,
    event_id: UUID,
    changes: Mapping[str, Any],
    *,
    author: str | None = None,
    without: Collection[date] | None = None,
    zone: ZoneInfo,
    now: datetime,
) -> Event:
    """Change some fields of an event (those of EventDetails), and return what was written.

    That is the event, or a new version of a published one. An event whose last name is taken away
    by such a change is for the whole school. With `without`, these are the days that are left out;
    what is otherwise on days that a new rule does not have is deleted.

    Raises:
        NotFound, Conflict: The event does not exist, or its state does not allow it.
        InvalidInput: The event would be wrong, or a name is unknown.
    """
    event = _take(session, event_id, "edit")
    said = _said(event, _names(session, select(Event.id).where(Event.id == event_id))[event_id])
    new = read_details(said | dict(changes), zone=zone, session=session, author=author)
    # Those whom it named may have been deleted since. Only a change of the names themselves may
    # make it an event for the whole school.
    addressed = event.addressed and not changes.keys() & LINKS.keys()
    dates = list(read_changes(session, Event.id == event_id).get(event_id, ()))
    if without is not None:
        dates = [one for one in dates if one.state != DateState.LEFT_OUT and one.on not in without]
        dates += [DateChange(on, DateState.LEFT_OUT) for on in without]
    if event.state == EventState.PUBLISHED:
        event = Event(
            state=EventState.DRAFT,
            version_of_id=event.id,
            author_id=event.author_id,
            created_at=now,
        )
    _write(session, event, new, author=author, addressed=addressed)
    _set_changes(session, event, dates, zone=zone, strict=without is not None)
    return event


def edit_date(
    session: Session,
    event_id: UUID,
    on: date,
    changes: Mapping[str, Any] | None,
    *,
    author: str | None = None,
    zone: ZoneInfo,
    now: datetime,
) -> Event:
    """Change one date of a repeated event, and return what was written, as `edit` does.

    `on` is the day that the rule has. `changes` are of the fields of EventDateRow; an empty one is
    as on every date, and None makes all of them so.

    Raises:
        NotFound, Conflict: The event does not exist, or its state does not allow it.
        InvalidInput: The day is no date of the event, or the date would be wrong.
    """
    _take(session, event_id, "edit")
    event = edit(session, event_id, {}, author=author, zone=zone, now=now)
    dates = {one.on: one for one in read_changes(session, Event.id == event.id).get(event.id, ())}
    if changes is None:
        if dates.pop(on, None) is None:
            _check(DateChange(on, DateState.CHANGED), session, event, zone)
    else:
        before = dates.get(on)
        kept = before._asdict() if before and before.state == DateState.CHANGED else {}
        dates[on] = _read_change(on, {**kept, **changes}, zone)
    _set_changes(session, event, dates.values(), zone=zone, strict=True)
    return event


def submit(session: Session, event_id: UUID, *, now: datetime) -> Event:
    """Put a draft or a refused event in review. Raises NotFound or Conflict."""
    event = _take(session, event_id, "submit")
    event.state, event.refusal = EventState.REVIEW, ""
    session.flush()
    _notice_review(session, event, "requested", now=now)
    return event


def publish(session: Session, event_id: UUID, *, now: datetime) -> Event:
    """Publish what was reviewed, and return the published event.

    A version's content moves into the event's row, and what it replaces stays in the version's row,
    as a past version. A version is published as it was reviewed, even when another was published
    since it was begun: the last one counts. A merge of both would publish what was not reviewed.
    Two that are published at once wait for each other, so they do not mix.

    Raises:
        NotFound, Conflict: The event does not exist, is not in review, or is a version of one that
            was cancelled or deleted.
    """
    # Lock an event before its versions, as loading and deleting do, so there is no deadlock.
    original = select(Event.version_of_id).where(Event.id == event_id).scalar_subquery()
    session.execute(select(Event.id).where(Event.id == original).with_for_update())
    event = _take(session, event_id, "publish")
    event.state = EventState.PUBLISHED
    if event.version_of_id is not None:
        current = _take(session, event.version_of_id, "edit")
        _swap(session, event, current)
        _keep_what_was(session, current.id, before_id=event.id, cancelled=False, now=now)
        event = current
    else:
        untold = insert_or(session, EventNotice).values(event_id=event.id, version=0, told_at=now)
        session.execute(untold.on_conflict_do_nothing())
    session.flush()
    _notice_review(session, event, "accepted", now=now)
    _notice(session, event, now=now)
    return event


def refuse(session: Session, event_id: UUID, reason: str, *, now: datetime) -> Event:
    """Refuse an event in review, and tell its author why.

    Raises NotFound, Conflict, or InvalidInput without a reason.
    """
    reason = clean(reason)
    if wrong := find_unwanted(reason) if reason else "is empty; say why, for its author":
        raise InvalidInput(f"reason: {wrong}")
    event = _take(session, event_id, "refuse")
    event.state, event.refusal = EventState.REFUSED, reason
    session.flush()
    _notice_review(session, event, "refused", now=now)
    return event


def cancel(session: Session, event_id: UUID, *, now: datetime) -> Event:
    """Cancel a published event: calendars show it as cancelled until it has passed.

    Raises NotFound or Conflict.
    """
    event = _take(session, event_id, "cancel")
    _keep_state(session, event, now=now)
    event.cancelled_at = now
    session.flush()
    _notice(session, event, now=now)
    return event


def cancel_date(
    session: Session, event_id: UUID, on: date, *, zone: ZoneInfo, now: datetime
) -> Event:
    """Cancel one date of a published event: calendars show that date as cancelled.

    What was before is kept as a past version.

    Raises:
        NotFound, Conflict: The event does not exist, its state does not allow it, or the date is
            cancelled already.
        InvalidInput: The day is no date of the event.
    """
    return _change_date(session, event_id, on, zone=zone, now=now, cancelled=True)


def restore_date(
    session: Session, event_id: UUID, on: date, *, zone: ZoneInfo, now: datetime
) -> Event:
    """Undo the cancellation of one date of a published event: it takes place as on every date.

    Raises:
        NotFound, Conflict: The event does not exist, its state does not allow it, or the date is
            not cancelled.
    """
    return _change_date(session, event_id, on, zone=zone, now=now, cancelled=False)


def delete(session: Session, event_id: UUID, *, now: datetime) -> Event | None:
    """Delete an event and return it, or None for a draft, which cannot be restored.

    Calendars show a deleted event that was published as cancelled. Raises NotFound or Conflict.
    """
    event = _take(session, event_id, "delete")
    _keep_state(session, event, now=now)
    if event.state == EventState.DRAFT:
        session.delete(event)
        session.flush()
        return None
    event.deleted_at = now
    session.flush()
    _notice(session, event, now=now)
    return event


def restore(session: Session, event_id: UUID, *, now: datetime) -> Event:
    """Undo the deletion of an event or, if it is not deleted, its cancellation.

    An event that was cancelled and then deleted is cancelled again. Raises NotFound or Conflict.
    """
    event = _take(session, event_id, "restore")
    _keep_state(session, event, now=now)
    if event.deleted_at is not None:
        event.deleted_at = None
    else:
        event.cancelled_at = None
    session.flush()
    _notice(session, event, now=now)
    return event


def list_events(
    session: Session,
    *,
    zone: ZoneInfo,
    standing: Standing | None = None,
    first: date | None = None,
    last: date | None = None,
) -> list[dict[str, Any]]:
    """Return events by their start, with the names that they name.

    Only those of a standing, and only those on days from `first` to `last`.
    """
    chosen = select(Event.id)
    if standing is not None:
        chosen = chosen.where(stands == standing)
    if first is not None:
        chosen = chosen.where(
            or_(
                Event.ends_at >= _instant(first, zone),
                Event.ends_on >= first,
                Event.last_on >= first,
            )
        )
    if last is not None:
        chosen = chosen.where(
            or_(
                Event.starts_at < _instant(last + timedelta(days=1), zone),
                Event.starts_on <= last,
                Event.first_on <= last,
            )
        )
    return _list(session, chosen, zone)


def list_versions(session: Session, event_id: UUID, *, zone: ZoneInfo) -> list[dict[str, Any]]:
    """Return an event and all its versions, as `list_events` does; the event is the first.

    `event_id` may be a version's. An event that does not exist has none.
    """
    versions = select(Event.version_of_id).where(Event.id == event_id).scalar_subquery()
    original = func.coalesce(versions, event_id)
    chosen = select(Event.id).where(or_(Event.id == original, Event.version_of_id == original))
    found = _list(session, chosen, zone)
    return sorted(found, key=lambda row: row["version_of"] is not None)


def _list(session: Session, chosen: Select[UUID], zone: ZoneInfo) -> list[dict[str, Any]]:
    names = _names(session, chosen)
    changes = read_changes(session, Event.id.in_(chosen))
    rows = session.execute(
        select(Event, stands, User.email)
        .outerjoin(User, User.id == Event.author_id)
        .where(Event.id.in_(chosen))
    )
    found = [
        {"id": event.id, "state": now_is, "version_of": event.version_of_id, "author": author}
        | {
            name: value.astimezone(zone) if isinstance(value, datetime) else value
            for name, value in _said(event, names[event.id]).items()
        }
        | {"dates": [_show_change(one, zone) for one in changes.get(event.id, ())]}
        | {"addressed": event.addressed, "refusal": event.refusal}
        for event, now_is, author in rows
    ]
    return sorted(found, key=lambda row: (_instant(row["starts"], zone), row["id"]))


# --- Rows and what they say ---


def _take(session: Session, event_id: UUID, action: str) -> Event:
    """Lock an event's row, and return it as it is now.

    Raises NotFound, and Conflict when its state does not allow the action.
    """
    query = (
        select(Event, stands)
        .where(Event.id == event_id)
        .with_for_update(of=Event)
        .execution_options(populate_existing=True)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no event {event_id}")
    event: Event = row[0]
    standing: Standing = row[1]
    if action not in ALLOWED[standing]:
        allowed = ", ".join(ALLOWED[standing]) or "nothing"
        raise Conflict(
            f"cannot {action} event {event_id}: its state is {standing}, which allows {allowed}"
        )
    return event


def _notice(session: Session, event: Event, *, now: datetime) -> None:
    """Enqueue the mail to those whom a published event concerns, for when it has settled."""
    if event.state == EventState.PUBLISHED:
        enqueue(session, NoticeEvent(event_id=event.id), now=now, debounce=SETTLED)


def _notice_review(
    session: Session,
    event: Event,
    step: Literal["requested", "accepted", "refused"],
    *,
    now: datetime,
) -> None:
    """Enqueue the mail about a step of a review. Of steps that follow soon, the last is told."""
    args = NoticeReview(event_id=event.id, step=step)
    enqueue(session, args, now=now, debounce=REVIEW_SETTLED)


def _keep_state(session: Session, event: Event, *, now: datetime) -> None:
    """Keep whether a published event is cancelled, before that changes."""
    if event.state == EventState.PUBLISHED:
        cancelled = event.cancelled_at is not None or event.deleted_at is not None
        _keep_what_was(session, event.id, before_id=event.id, cancelled=cancelled, now=now)


def _keep_what_was(
    session: Session, event_id: UUID, *, before_id: UUID, cancelled: bool, now: datetime
) -> None:
    """Keep what calendars show of an event that another program wrote, before our first change.

    `before_id` is the row that holds it.
    """
    first = select(EventNotice).where(EventNotice.event_id == event_id)
    known = session.execute(first.order_by(EventNotice.version.desc()).limit(1)).scalar()
    if known is None:
        session.add(
            EventNotice(
                event_id=event_id,
                version=0,
                told_at=now,
                before_id=before_id,
                before_cancelled=cancelled,
            )
        )
    elif known.before_id == event_id and known.content is None:
        # It was cancelled or restored, and no reader was told yet. Now its content moves, too.
        known.before_id = before_id
    session.flush()


def _write(
    session: Session, event: Event, new: EventDetails, *, author: str | None, addressed: bool
) -> Event:
    named = {column: _ids(session, column, getattr(new, column)) for column in LINKS}
    if author is not None:
        (event.author_id,) = _ids(session, "author", (author,))
    for name in ("title", "description", "location", "audience", "teaching_affected"):
        setattr(event, name, getattr(new, name))
    for name, moment in (("starts", new.starts), ("ends", new.ends)):
        for column, value in split_moment(name, moment).items():
            setattr(event, column, value)
    event.rrule = new.repeats
    event.addressed = addressed or any(named.values())
    session.add(event)
    session.flush()
    for column, link in LINKS.items():
        relink(session, link, [event.id], {(event.id, other) for other in named[column]})
    return event


# --- Single dates ---


def _read_change(on: date, cells: Mapping[str, Any], zone: ZoneInfo) -> DateChange:
    """Return what is otherwise on a date, checked by the rules of event_dates.csv."""
    said = {name: clean(cell) if isinstance(cell, str) else cell for name, cell in cells.items()}
    said = {name: cell for name, cell in said.items() if cell and name not in ("on", "state")}
    row, wrong = validate(
        EventDateRow, {"event": "-", "date": on.isoformat(), "state": "changed", **said}, zone
    )
    if row is None or wrong:
        raise InvalidInput("\n".join(f"{name}: {reason}" for name, reason in wrong))
    return make_change(on, row.model_dump())


def _check(change: DateChange, session: Session, event: Event, zone: ZoneInfo) -> None:
    series = read_series(session, Event.id == event.id)[event.id]
    if wrong := check_change(change, series, zone):
        raise InvalidInput("\n".join(f"{name}: {reason}" for name, reason in wrong))


def _set_changes(
    session: Session,
    event: Event,
    changes: Iterable[DateChange],
    *,
    zone: ZoneInfo,
    strict: bool,
) -> None:
    """Write what is otherwise on the dates of an event.

    What its rule does not have is refused with `strict`, and else deleted.
    """
    session.flush()
    series = read_series(session, Event.id == event.id)[event.id]
    kept = []
    for change in changes:
        if wrong := check_change(change, series, zone):
            if strict:
                raise InvalidInput("\n".join(f"{name}: {reason}" for name, reason in wrong))
            continue
        kept.append(change)
    find_occurrences(series._replace(changes=tuple(kept)), zone)  # One date must be left.
    write_changes(session, event.id, kept)
    spread(session, [event.id], zone)


def _change_date(
    session: Session, event_id: UUID, on: date, *, zone: ZoneInfo, now: datetime, cancelled: bool
) -> Event:
    current = _take(session, event_id, "cancel")
    series = read_series(session, Event.id == event_id)[event_id]
    dates = {one.on: one for one in series.changes}
    before = dates.get(on)
    if (before is not None and before.state == DateState.CANCELLED) == cancelled:
        raise Conflict(f"{on} is {'already' if cancelled else 'not'} cancelled in event {event_id}")
    if before is not None and before.state == DateState.LEFT_OUT:
        raise InvalidInput(f"date: event {event_id} does not take place on {on}")
    if cancelled:
        change = DateChange(on, DateState.CANCELLED)
        _check(change, session, current, zone)
        dates[on] = change
    else:
        del dates[on]
    # What was becomes a past version, so that readers are told the difference.
    past = Event(version_of_id=event_id, created_at=now)
    for name in CONTENT:
        setattr(past, name, getattr(current, name))
    session.add(past)
    session.flush()
    for link in LINKS.values():
        pairs = {(past.id, other) for _, other in read_links(session, link, [event_id])}
        relink(session, link, [past.id], pairs)
    write_changes(session, past.id, series.changes)
    _keep_what_was(session, event_id, before_id=past.id, cancelled=False, now=now)
    write_changes(session, event_id, dates.values())
    spread(session, [event_id], zone)
    _notice(session, current, now=now)
    return current


def _show_change(change: DateChange, zone: ZoneInfo) -> dict[str, Any]:
    return {
        name: value.astimezone(zone) if isinstance(value, datetime) else value
        for name, value in change._asdict().items()
        if value is not None
    }


def write(session: Session, event: Event, new: EventDetails) -> Event:
    """Write what an event says into its row, whatever its state: for one that comes from elsewhere.

    Its state, its author and single dates stay as they are. No reader is told.
    """
    return _write(session, event, new, author=None, addressed=False)


def _ids(session: Session, column: str, names: tuple[str, ...]) -> set[Any]:
    """Return the ids that a link table holds for these names. Raises InvalidInput."""
    for reason in _find_unknown(session, column, names):
        raise InvalidInput(f"{column}: {reason}")
    if (file := EventRow.references.get(column)) is None:
        return set(names)
    kind = ROW_OF[file]
    keys = {kind.identify(name) for name in names}
    return set(find_ids(session, TARGETS[file], keys).values())


def _find_unknown(session: Session, column: str, names: tuple[str, ...]) -> Iterator[str]:
    """Yield for each name that the database does not have what to do about it."""
    if (file := EventRow.references.get(column)) is None:
        return
    kind, target = ROW_OF[file], TARGETS[file]
    ids = find_ids(session, target, {kind.identify(name) for name in names})
    for name in names:
        if kind.identify(name) not in ids:
            # A mistyped address must not reveal another user's.
            known = (
                []
                if target.model is User
                else session.scalars(select(target.table.c[target.key])).all()
            )
            near = ", ".join(get_close_matches(name, known))
            fix = f"did you mean {near}?" if near else "correct the name, or add it first"
            yield f"there is no {kind.noun} {name!r}; {fix}"


def _swap(session: Session, one: Event, two: Event) -> None:
    for name in CONTENT:
        mine, yours = getattr(one, name), getattr(two, name)
        setattr(one, name, yours)
        setattr(two, name, mine)
    for link in LINKS.values():
        swapped = {
            (two.id if owner == one.id else one.id, other)
            for owner, other in read_links(session, link, [one.id, two.id])
        }
        relink(session, link, [one.id, two.id], swapped)
    session.flush()
    changes = read_changes(session, Event.id.in_([one.id, two.id]))
    for event, other in ((one, two), (two, one)):
        write_changes(session, event.id, changes.get(other.id, ()))


def _said(event: Event, names: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return what an event says, by the names of EventDetails' fields."""
    return {
        "title": event.title,
        "description": event.description,
        "location": event.location,
        "starts": event.starts_at or event.starts_on,
        "ends": event.ends_at or event.ends_on,
        "repeats": event.rrule,
        "audience": event.audience,
        "teaching_affected": event.teaching_affected,
    } | {column: sorted(names[column]) for column in LINKS}


def _names(
    session: Session, events: Select[UUID]
) -> defaultdict[UUID, defaultdict[str, list[str]]]:
    """Return the names of what some events name, by event and field."""
    names: defaultdict[UUID, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for column, link in LINKS.items():
        owner, other = link.table.c[link.owner], link.table.c[link.other]
        query = select(owner, other)
        if file := EventRow.references.get(column):
            target = TARGETS[file]
            query = select(owner, target.table.c[target.key]).join(
                target.table, target.table.c.id == other
            )
        for event_id, name in session.execute(query.where(owner.in_(events))):
            names[event_id][column].append(name)
    return names


def _instant(moment: date, zone: ZoneInfo) -> datetime:
    return moment if isinstance(moment, datetime) else datetime.combine(moment, time(), zone)
