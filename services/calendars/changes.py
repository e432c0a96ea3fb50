"""A change travels: what the triggers noted becomes refreshed feeds, at the cost of the feeds concerned and not of the school.

A row of the log says what was touched. Whose calendars that leads to is read from the tables as they are now: a link on the way that
is gone as well has left a row of its own.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, delete, func, or_, select, union, union_all

from services.calendars import feeds, revisions
from services.calendars.feeds import Owners
from services.calendars.models import ChangeLog, EventRevision, Feed, FeedKind
from services.calendars.store import FeedStore
from services.calendars.sync import FEEDS_A_CHUNK, Rules, chunks
from services.database import LONGEST_LIST, Session, reader
from services.jobs import Run, enqueue_many
from services.school.models import (
    CLASS_GROUP_LENGTH,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    EventState,
    EventUser,
    LessonClass,
    LessonTeacher,
    SchoolClass,
    SubscribedClass,
    SubscribedDepartment,
    User,
)

# From the first change that is noticed; those that come within are refreshed with it. It is not pushed back by later ones: a long import
# must not keep everybody else's changes from travelling.
COLLECT_FOR = timedelta(seconds=2)

# What an event names, by the kind of the log that it is noted under.
NAMED = {
    "class": select(EventClass.event_id, EventClass.class_id),
    "group": select(EventClassGroup.event_id, EventClassGroup.class_group),
    "department": select(EventDepartment.event_id, EventDepartment.department_id),
    "user": select(EventUser.event_id, EventUser.user_id),
}


@dataclass(frozen=True, slots=True)
class Touched:
    """What some rows of the log, and the events among them, name: keys by kind, or `everybody`. `events` is None for all of them."""

    log_ids: list[int]
    keys: dict[str, set[Any]]
    events: set[UUID] | None
    everybody: bool

    @property
    def owners(self) -> Owners | None:
        """Return those who may have gained a feed or lost it."""
        return None if self.everybody else {kind: self.keys[kind.value] for kind in FeedKind}


def pending(session: Session) -> bool:
    """Say whether something changed that no refresh has seen to yet."""
    return session.execute(select(ChangeLog.id).order_by(ChangeLog.id).limit(1)).one_or_none() is not None


def refresh(run: Run, store: FeedStore, rules: Rules) -> None:
    """Bring the events and the feeds that the log's rows lead to up to date, and delete just these rows in the last transaction.

    Rows are read first and everything else after them, so what they tell of is seen; one that is written meanwhile stays for the next
    refresh. Of many feeds the building is left to jobs of their own.
    """
    window = rules.window(run.now)
    with run.read_only() as session:
        touched = read(session)
        if not touched.log_ids:
            return
        found = list(revisions.changes(session, window, domain=rules.domain, event_ids=touched.events))
    with run.unit_of_work() as session:
        revisions.record(session, window, found, domain=rules.domain, now=run.now, event_ids=touched.events)
        feeds.ensure(session, touched.owners)
        removed, errors = feeds.remove_orphans(session, store, touched.owners)
    with run.unit_of_work() as session:
        ids = concerned(session, touched)
        outcome: dict[str, Any] = {"feeds": len(ids), "removed": removed, "errors": errors}
        if len(ids) > FEEDS_A_CHUNK:
            enqueue_many(session, chunks(run.id, ids), now=run.now)
        elif ids:
            built = feeds.build(session, window, store, school_name=rules.school_name, feed_ids=ids, run_id=run.id, now=run.now)
            outcome |= built | {"errors": [*errors, *built["errors"]]}
        for at in range(0, len(touched.log_ids), LONGEST_LIST):
            session.execute(delete(ChangeLog).where(ChangeLog.id.in_(touched.log_ids[at : at + LONGEST_LIST])))
        run.finish(session, outcome)


def read(session: Session) -> Touched:
    """Read the log and what its events name."""
    rows = reader(session)(select(ChangeLog.id, ChangeLog.kind, ChangeLog.key, ChangeLog.event_id))
    log_ids = [row.id for row in rows]
    notes = {(row.kind, row.key, row.event_id) for row in rows}
    keys: dict[str, set[Any]] = defaultdict(set)
    if len(notes) > LONGEST_LIST:
        return Touched(log_ids, keys, None, everybody=True)
    known = _known(session, {event_id for _, _, event_id in notes if event_id})
    events: set[UUID] = set()
    everybody = all_events = False
    renamed: dict[str, set[int]] = defaultdict(set)
    # With an event that was deleted and written anew under its id its revision went, and not what calendars show of it.
    rewritten = {event_id for kind, _, event_id in notes if kind == "revision"}
    for kind, key, event_id in notes:
        event = known.get(event_id)
        shown = event is None or event.revised or event_id in rewritten
        if event is not None and not (event.is_current or shown):
            continue  # A draft, which nobody has seen.
        if event_id is not None:
            events.add(event_id)
        elif kind in NAMED:
            renamed[kind].add(int(key))
        # What was for all before it was addressed, or removed, concerns all, unless no calendar has shown it yet.
        everybody |= kind == "all" and shown
        everybody |= event is not None and event.is_current and not event.addressed
        all_events |= kind == "all" and event_id is None
        keys[kind].add(key if kind == "group" else key and int(key))
    # What names a class or a department shows its name, to everybody who sees it.
    for kind in ("class", "department"):
        event, other = NAMED[kind].selected_columns
        events.update(session.scalars(select(event).where(other.in_(renamed[kind]))))
    if all_events or len(events) > LONGEST_LIST:
        return Touched(log_ids, keys, None, everybody=True)
    for kind, links in NAMED.items():
        keys[kind].update(other for _, other in session.execute(links.where(links.selected_columns.event_id.in_(events))))
    return Touched(log_ids, keys, events, everybody)


def _known(session: Session, ids: Iterable[UUID]) -> dict[UUID, Any]:
    """Return what the refresh has to know of those of these events that there are."""
    current = and_(Event.state == EventState.PUBLISHED, Event.version_of_id.is_(None)).label("is_current")
    revised = EventRevision.event_id.is_not(None).label("revised")
    query = select(Event.id, Event.addressed, current, revised).join(
        EventRevision, EventRevision.event_id == Event.id, isouter=True
    )
    return {row.id: row for row in session.execute(query.where(Event.id.in_(ids)))}


def concerned(session: Session, touched: Touched) -> list[int]:
    """Return the ids of the feeds that may have changed, in order: all that do, and few others."""
    if touched.everybody:
        return list(session.scalars(select(Feed.id).order_by(Feed.id)))
    keys = touched.keys
    group = func.substr(SchoolClass.name, 1, CLASS_GROUP_LENGTH)
    named = or_(SchoolClass.id.in_(keys["class"]), group.in_(keys["group"]), SchoolClass.department_id.in_(keys["department"]))
    found = session.execute(select(SchoolClass.id, SchoolClass.department_id).where(named)).all()
    classes = keys["class"] | {row.id for row in found}
    departments = keys["department"] | keys["department_feed"] | {row.department_id for row in found}
    teaching = select(LessonTeacher.user_id).join(LessonClass, LessonClass.lesson_id == LessonTeacher.lesson_id)
    users = union(
        select(User.id).where(or_(User.id.in_(keys["user"]), User.class_id.in_(classes))),
        teaching.where(LessonClass.class_id.in_(classes)),
        select(LessonTeacher.user_id).where(LessonTeacher.lesson_id.in_(keys["lesson"])),
        select(SubscribedClass.user_id).where(SubscribedClass.class_id.in_(classes)),
        select(SubscribedDepartment.user_id).where(SubscribedDepartment.department_id.in_(departments)),
    )

    def of(kind: FeedKind, owners: Any) -> Select[int]:
        return select(Feed.id).where(Feed.kind == kind, Feed.owner_id.in_(owners))

    ours = union_all(of(FeedKind.USER, users), of(FeedKind.CLASS, classes), of(FeedKind.DEPARTMENT, departments - {None}))
    return sorted(session.scalars(ours))
