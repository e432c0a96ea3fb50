"""Turn change-log rows into refreshed feeds.

The cost depends on the feeds concerned, not on the size of the school. A row of the log says what
was changed. Which calendars show it is read from the tables as they are now. A link that led there
and was deleted has left a row of its own.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from nightshift.database import LONGEST_LIST, Session, batched, reader
from nightshift.jobs import Run, enqueue_many
from sqlalchemy import Select, and_, delete, func, or_, select, union, union_all

from services.calendars import feeds, revisions
from services.calendars.feeds import Owners
from services.calendars.models import ChangeLog, EventRevision, Feed, FeedKind
from services.calendars.notes import REVISION, Doubted
from services.calendars.store import FeedStore
from services.calendars.sync import FEEDS_A_CHUNK, Rules, build_jobs
from services.school.models import (
    CLASS_GROUP_LENGTH,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    EventState,
    EventUser,
    LessonChange,
    LessonChangeTeacher,
    LessonClass,
    LessonTeacher,
    SchoolClass,
    SubscribedClass,
    SubscribedDepartment,
    User,
)

# From the first change that is noticed to the refresh, which takes the changes in between with it.
# Later changes do not postpone it: a long import must not delay all other changes.
COLLECT_FOR = timedelta(seconds=2)

# What an event names, by the kind that the log has for it.
NAMED = {
    "class": select(EventClass.event_id, EventClass.class_id),
    "group": select(EventClassGroup.event_id, EventClassGroup.class_group),
    "department": select(EventDepartment.event_id, EventDepartment.department_id),
    "user": select(EventUser.event_id, EventUser.user_id),
}


@dataclass(frozen=True, slots=True)
class Touched:
    """What rows of the log, and the events among them, name.

    `keys` by kind, or `all_feeds`: all feeds. `events` is None for all events. The stored revisions
    of `doubted` events must be compared with what they should be.
    """

    log_ids: list[int]
    keys: dict[str, set[Any]]
    events: set[UUID] | None
    all_feeds: bool
    doubted: Doubted

    @property
    def owners(self) -> Owners | None:
        """Return the owners that may have gained or lost the right to a feed; None for all."""
        return None if self.all_feeds else {kind: self.keys[kind.value] for kind in FeedKind}


def has_changes(session: Session) -> bool:
    """Return whether the log has a row: a change that no refresh has handled."""
    first = select(ChangeLog.id).order_by(ChangeLog.id).limit(1)
    return session.execute(first).one_or_none() is not None


def refresh(run: Run, store: FeedStore, rules: Rules) -> None:
    """Bring the events and feeds that the log's rows lead to up to date, and delete these rows.

    Read the rows before all else, so the changes that they note are seen. A row that is written
    meanwhile stays for the next refresh. The last transaction deletes the rows. Many feeds are
    built in separate jobs. A second run reads the same rows, or none.
    """
    window = rules.window(run.now)
    with run.read_only() as session:
        touched = read_log(session)
        if not touched.log_ids:
            return
        outdated = revisions.find_outdated(
            session,
            window,
            domain=rules.domain,
            event_ids=touched.events,
            doubted=touched.doubted,
        )
        found = list(outdated)
    with run.unit_of_work() as session:
        revisions.record(
            session,
            window,
            found,
            domain=rules.domain,
            now=run.now,
            event_ids=touched.events,
            doubted=touched.doubted,
            builds_feeds=True,
        )
        revisions.mark_hidden(session, window, domain=rules.domain, doubted=touched.doubted)
        feeds.add_missing(session, touched.owners)
        removed, errors = feeds.remove_orphans(session, store, touched.owners)
    with run.unit_of_work() as session:
        ids = find_concerned(session, touched)
        outcome: dict[str, Any] = {"feeds": len(ids), "removed": removed, "errors": errors}
        if len(ids) > FEEDS_A_CHUNK:
            enqueue_many(session, build_jobs(run.id, ids), now=run.now)
        elif ids:
            built = feeds.build(
                session,
                window,
                store,
                school_name=rules.school_name,
                feed_ids=ids,
                run_id=run.id,
                now=run.now,
            )
            outcome |= built | {"errors": [*errors, *built["errors"]]}
        for some in batched(touched.log_ids, LONGEST_LIST):
            session.execute(delete(ChangeLog).where(ChangeLog.id.in_(some)))
        run.finish(session, outcome)


def read_log(session: Session) -> Touched:
    """Return the log's rows and what their events name."""
    rows = reader(session)(select(ChangeLog.id, ChangeLog.kind, ChangeLog.key, ChangeLog.event_id))
    log_ids = [row.id for row in rows]
    notes = {(row.kind, row.key, row.event_id) for row in rows}
    keys: dict[str, set[Any]] = defaultdict(set)
    # An event that was deleted and inserted again under its id has lost its revision, but calendars
    # still show it.
    rewritten = {event_id for kind, _, event_id in notes if kind == REVISION}
    doubted: Doubted = None if None in rewritten else rewritten
    if len(notes) > LONGEST_LIST:
        doubted = None if len(rewritten) > LONGEST_LIST else doubted
        return Touched(log_ids, keys, None, all_feeds=True, doubted=doubted)
    known = _known(session, {event_id for _, _, event_id in notes if event_id})
    events: set[UUID] = set()
    all_feeds = all_events = False
    renamed: dict[str, set[int]] = defaultdict(set)
    for kind, key, event_id in notes:
        event = known.get(event_id)
        shown = event is None or event.revised or event_id in rewritten
        if event is not None and not (event.is_current or shown):
            continue  # A draft, which is in no calendar.
        if event_id is not None:
            events.add(event_id)
        elif kind in NAMED:
            renamed[kind].add(int(key))
        # An event that was for all before it was addressed or removed concerns all feeds, unless no
        # calendar has shown it.
        all_feeds |= kind == "all" and shown
        all_feeds |= event is not None and event.is_current and not event.addressed
        all_events |= kind in ("all", REVISION) and event_id is None
        keys[kind].add(key if kind == "group" else key and int(key))
    # A renamed class or department changes every event that shows the name.
    for kind in ("class", "department"):
        event, other = NAMED[kind].selected_columns
        events.update(session.scalars(select(event).where(other.in_(renamed[kind]))))
    if all_events or len(events) > LONGEST_LIST:
        return Touched(log_ids, keys, None, all_feeds=True, doubted=doubted)
    for kind, links in NAMED.items():
        keys[kind].update(
            other
            for _, other in session.execute(
                links.where(links.selected_columns.event_id.in_(events))
            )
        )
    return Touched(log_ids, keys, events, all_feeds, doubted)


def _known(session: Session, ids: Iterable[UUID]) -> dict[UUID, Any]:
    """Return what a refresh needs of those of these events that exist."""
    current = and_(Event.state == EventState.PUBLISHED, Event.version_of_id.is_(None)).label(
        "is_current"
    )
    revised = EventRevision.event_id.is_not(None).label("revised")
    query = select(Event.id, Event.addressed, current, revised).join(
        EventRevision, EventRevision.event_id == Event.id, isouter=True
    )
    return {row.id: row for row in session.execute(query.where(Event.id.in_(ids)))}


def find_concerned(session: Session, touched: Touched) -> list[int]:
    """Return the ids of the feeds that may have changed, in order: all that did, few others."""
    if touched.all_feeds:
        return list(session.scalars(select(Feed.id).order_by(Feed.id)))
    keys = touched.keys
    group = func.substr(SchoolClass.name, 1, CLASS_GROUP_LENGTH)
    named = or_(
        SchoolClass.id.in_(keys["class"]),
        group.in_(keys["group"]),
        SchoolClass.department_id.in_(keys["department"]),
    )
    found = session.execute(select(SchoolClass.id, SchoolClass.department_id).where(named)).all()
    classes = keys["class"] | {row.id for row in found}
    departments = (
        keys["department"] | keys["department_feed"] | {row.department_id for row in found}
    )
    teaching = select(LessonTeacher.user_id).join(
        LessonClass, LessonClass.lesson_id == LessonTeacher.lesson_id
    )
    substituting = (
        select(LessonChangeTeacher.user_id)
        .join(LessonChange, LessonChange.id == LessonChangeTeacher.change_id)
        .join(LessonClass, LessonClass.lesson_id == LessonChange.lesson_id, isouter=True)
    )
    users = union(
        select(User.id).where(or_(User.id.in_(keys["user"]), User.class_id.in_(classes))),
        teaching.where(LessonClass.class_id.in_(classes)),
        substituting.where(LessonClass.class_id.in_(classes)),
        select(LessonTeacher.user_id).where(LessonTeacher.lesson_id.in_(keys["lesson"])),
        substituting.where(LessonChange.lesson_id.in_(keys["lesson"])),
        select(SubscribedClass.user_id).where(SubscribedClass.class_id.in_(classes)),
        select(SubscribedDepartment.user_id).where(
            SubscribedDepartment.department_id.in_(departments)
        ),
    )

    def of(kind: FeedKind, owners: Any) -> Select[int]:
        return select(Feed.id).where(Feed.kind == kind, Feed.owner_id.in_(owners))

    ours = union_all(
        of(FeedKind.USER, users),
        of(FeedKind.CLASS, classes),
        of(FeedKind.DEPARTMENT, departments - {None}),
    )
    return sorted(session.scalars(ours))
