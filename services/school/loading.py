"""A school's tables into the database: an upsert by natural key that writes only what differs.

All is read and checked before the first write, in sets. So the number of statements depends on the
files and not on their rows, except for the chunks that SQLite's limit on parameters needs.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, cast
from zoneinfo import ZoneInfo

from nightshift.database import Base, Session, batched, insert_many_or
from sqlalchemy import Table, and_, bindparam, delete, exists, or_, select, update

from services.school.models import (
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDate,
    EventDepartment,
    EventUser,
    Holiday,
    IgnoredEvent,
    Lesson,
    LessonClass,
    LessonTeacher,
    SchoolClass,
    Semester,
    SubscribedClass,
    SubscribedDepartment,
    Subscription,
    User,
)
from services.school.recurrences import Series, check_change, make_change
from services.school.rows import ROW_OF, EventDateRow, EventRow, Row, RowKey, split
from services.school.series import read_series, spread
from services.school.sheets import Entry, InvalidRows, Problem, Sheet, read_sheets

__all__ = [
    "TARGETS",
    "InvalidRows",
    "Problem",
    "check",
    "find_ids",
    "load",
    "read_links",
    "relink",
]

# SQLite before 3.32 takes 999 variables in a statement.
CHUNK = 900

# Their cells `starts` and `ends` are instants, or dates for whole days.
WITH_MOMENTS = (EventRow, EventDateRow)

Ids = dict[str, dict[RowKey, Any]]


@dataclass(frozen=True)
class Link:
    """A table that joins a loaded row, `owner`, with what a list cell names, `other`."""

    model: type[Base]
    owner: str
    other: str

    @property
    def table(self) -> Table:
        return cast("Table", self.model.__table__)


@dataclass(frozen=True)
class Target:
    """The table of a file's rows.

    `key` is the column of the natural key, `columns` are those whose names in the file differ.
    """

    model: type[Base]
    key: str
    columns: dict[str, str] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        return cast("Table", self.model.__table__)


TARGETS = {
    "departments.csv": Target(Department, "name"),
    "classes.csv": Target(SchoolClass, "name", {"department": "department_id"}),
    "users.csv": Target(User, "email", {"class": "class_id"}),
    "semesters.csv": Target(Semester, "name", {"starts": "starts_on", "ends": "ends_on"}),
    "holidays.csv": Target(Holiday, "key", {"id": "key", "starts": "starts_on", "ends": "ends_on"}),
    "lessons.csv": Target(
        Lesson,
        "key",
        {"id": "key", "semester": "semester_id", "class_teacher": "is_class_teachers"},
        {
            "classes": Link(LessonClass, "lesson_id", "class_id"),
            "teachers": Link(LessonTeacher, "lesson_id", "user_id"),
        },
    ),
    "events.csv": Target(
        Event,
        "id",
        {
            "author": "author_id",
            "version_of": "version_of_id",
            "cancelled": "cancelled_at",
            "repeats": "rrule",
        },
        {
            "classes": Link(EventClass, "event_id", "class_id"),
            "class_groups": Link(EventClassGroup, "event_id", "class_group"),
            "departments": Link(EventDepartment, "event_id", "department_id"),
            "users": Link(EventUser, "event_id", "user_id"),
        },
    ),
    "event_dates.csv": Target(EventDate, "id", {"event": "event_id", "date": "original_on"}),
    "subscriptions.csv": Target(
        Subscription,
        "user_id",
        {"email": "user_id"},
        {
            "departments": Link(SubscribedDepartment, "user_id", "department_id"),
            "classes": Link(SubscribedClass, "user_id", "class_id"),
            "ignored_events": Link(IgnoredEvent, "user_id", "event_id"),
        },
    ),
}


class Loaded(NamedTuple):
    """How many rows a table has, and how many of them were new or changed."""

    rows: int
    written: int


def load(
    session: Session, path: Path, *, zone: ZoneInfo, now: datetime, encoding: str = "utf-8"
) -> dict[str, Loaded]:
    """Write the rows of a school's tables, all or none, and return what each table did.

    `path` is a folder, or one file. A row is found by its natural key. A row that is equal is not
    written, so calendars see no change. A column that the header leaves out, and a row that the
    tables leave out, stays as it is. `zone` is that of the events' wall-clock times, `encoding`
    that of CSV files.

    Raises:
        InvalidRows: Rows are wrong; nothing was written.
        InvalidInput: There is no school, or a file cannot be read.

    """
    session.flush()
    sheets, holders = _read_checked(session, path, zone, encoding)
    _release_untis_ids(session, holders)
    named = _named_keys(sheets)
    ids: Ids = {}
    written: dict[str, set[Any]] = {file: set() for file in sheets}
    # Also for tables that are missing: the others' rows name rows of these.
    for file, target in TARGETS.items():
        keys = set()
        for some in _chunks(_in_order(sheets[file])) if file in sheets else ():
            keys |= _upsert(session, target, _values(sheets[file], some, ids, now))
        ids[file] = (
            ids["users.csv"]
            if target.model is Subscription
            else find_ids(session, target, named[file])
        )
        if file in sheets:
            written[file] = {ids[file].get(key, key) for key in keys}
            for some in _chunks(sheets[file].entries):
                written[file] |= _link(session, sheets[file], some, ids)
            if target.model is Event:
                _address(session, sheets[file], ids)
    spread(session, _find_series(sheets, ids), zone)
    session.expire_all()
    return {
        file.removesuffix(".csv"): Loaded(len(sheet.entries), len(written[file]))
        for file, sheet in sheets.items()
    }


def check(
    session: Session, path: Path, *, zone: ZoneInfo, encoding: str = "utf-8"
) -> dict[str, int]:
    """Return how many rows each table has, and write nothing. Raises what `load` would raise."""
    sheets, _ = _read_checked(session, path, zone, encoding)
    return {file.removesuffix(".csv"): len(sheet.entries) for file, sheet in sheets.items()}


def _read_checked(
    session: Session, path: Path, zone: ZoneInfo, encoding: str
) -> tuple[dict[str, Sheet], dict[str, str]]:
    """Return the sheets, and the users that must give up an untis_id. Raises InvalidRows."""
    sheets = read_sheets(path, zone, encoding=encoding)
    holders = _holders_of_untis_ids(session, sheets.get("users.csv"))
    problems = [problem for sheet in sheets.values() for problem in sheet.problems]
    problems += _unknown_references(session, sheets)
    problems += _versions_of_versions(session, sheets)
    problems += _foreign_untis_ids(sheets.get("users.csv"), holders)
    problems += _dates_of_no_series(session, sheets, zone)
    if problems:
        places = [sheet.place for sheet in sheets.values()]
        raise InvalidRows(sorted(problems, key=lambda one: (places.index(one.file), one.line)))
    return sheets, holders


def _references(kind: type[Row], cells: dict[str, str]) -> Iterator[tuple[str, type[Row], str]]:
    """Yield the column, the kind and the text of each name in a row's cells."""
    for column, file in kind.references.items():
        if cell := cells.get(column):
            listed = column in TARGETS[kind.file].links
            for name in split(cell) if listed else [cell]:
                yield column, ROW_OF[file], name


def _named_keys(sheets: dict[str, Sheet]) -> dict[str, set[RowKey]]:
    """Return all keys that a folder has, as a row's own or as a reference, by their file."""
    named: dict[str, set[RowKey]] = {file: set() for file in TARGETS}
    for file, sheet in sheets.items():
        for entry in sheet.entries:
            named[file].add(entry.key)
            for _, kind, name in _references(sheet.kind, entry.cells):
                named[kind.file].add(kind.identify(name))
    return named


def _unknown_references(session: Session, sheets: dict[str, Sheet]) -> Iterator[Problem]:
    named = _named_keys(sheets)
    known: dict[str, set[RowKey]] = {}
    for file, target in TARGETS.items():
        own = {entry.key for entry in sheets[file].entries} if file in sheets else set()
        elsewhere = named[file] - own if target.model is not Subscription else set()
        known[file] = own | find_ids(session, target, elsewhere).keys()
    # The keys of a file whose header was refused are unknown: fix that problem first.
    unread = {file for file, sheet in sheets.items() if not sheet.columns}
    for sheet in sheets.values():
        for entry in sheet.entries:
            for column, kind, name in _references(sheet.kind, entry.cells):
                if kind.file not in unread and kind.identify(name) not in known[kind.file]:
                    there = sheets[kind.file].place if kind.file in sheets else kind.file
                    reason = (
                        f"there is no {kind.noun} {name!r}, neither in {there} nor in the"
                        " database; add it or correct the name"
                    )
                    yield Problem(sheet.place, entry.line, column, reason, entry.cells[column])


def _versions_of_versions(session: Session, sheets: dict[str, Sheet]) -> Iterator[Problem]:
    """Yield rows whose `version_of` is itself a version: it would never be shown or published."""
    sheet = sheets.get("events.csv")
    if sheet is None or "version_of" not in sheet.columns:
        return
    originals = {
        entry.key: EventRow.identify(entry.cells["version_of"])
        for entry in sheet.entries
        if "version_of" in entry.cells
    }
    elsewhere = set(originals.values()) - {entry.key for entry in sheet.entries}
    stored = [
        select(Event.id).where(Event.id.in_(chunk), Event.version_of_id.is_not(None))
        for chunk in _chunks(cast("Any", elsewhere))
    ]
    versions = originals.keys() | {key for query in stored for key in session.scalars(query)}
    for entry in sheet.entries:
        if originals.get(entry.key) in versions:
            reason = (
                f"{entry.cells['version_of']!r} is itself a version; name the event that is current"
            )
            cell = entry.cells["version_of"]
            yield Problem(sheet.place, entry.line, "version_of", reason, cell)


def _dates_of_no_series(
    session: Session, sheets: dict[str, Sheet], zone: ZoneInfo
) -> Iterator[Problem]:
    """Yield rows of dates that the event's rule does not have, or that do not fit the event."""
    sheet = sheets.get("event_dates.csv")
    entries = [one for one in sheet.entries if one.values is not None] if sheet else []
    if sheet is None or not entries:
        return
    named = {EventRow.identify(entry.cells["event"]) for entry in entries}
    series: dict[Any, Series] = {}
    for some in _chunks(named):
        series |= read_series(session, Event.id.in_(some))
    refused = set()
    for entry in sheets["events.csv"].entries if "events.csv" in sheets else ():
        if entry.values is None:
            refused.add(entry.key)
            continue
        says = dict(zip(sheets["events.csv"].columns, entry.values, strict=True))
        before = series.get(entry.key)
        rule = says.get("repeats", before.rrule if before else "")
        series[entry.key] = Series(says["starts"], says["ends"], rule)
    for entry in entries:
        says = dict(zip(sheet.columns, entry.values or (), strict=True))
        key = EventRow.identify(entry.cells["event"])
        if key not in series or key in refused:
            continue
        change = make_change(says["date"], says)
        for column, reason in check_change(change, series[key], zone):
            cell = entry.cells.get(column, "")
            yield Problem(sheet.place, entry.line, column, reason, cell)


def _find_series(sheets: dict[str, Sheet], ids: Ids) -> set[Any]:
    """Return the ids of the events whose dates the tables may have changed."""
    found = (
        {ids["events.csv"][one.key] for one in sheets["events.csv"].entries}
        if ("events.csv" in sheets)
        else set()
    )
    for entry in sheets["event_dates.csv"].entries if "event_dates.csv" in sheets else ():
        found.add(ids["events.csv"][EventRow.identify(entry.cells["event"])])
    return found


def _holders_of_untis_ids(session: Session, sheet: Sheet | None) -> dict[str, str]:
    """Return, by untis_id, the users that hold one which the sheet gives to another user."""
    wanted = (
        {entry.cells["untis_id"]: entry.key for entry in sheet.entries if "untis_id" in entry.cells}
        if sheet
        else {}
    )
    queries = (
        select(User.untis_id, User.email).where(User.untis_id.in_(chunk))
        for chunk in _chunks(wanted)
    )
    return {
        untis_id: email
        for query in queries
        for untis_id, email in session.execute(query)
        if untis_id and wanted[untis_id] != email
    }


def _foreign_untis_ids(sheet: Sheet | None, holders: dict[str, str]) -> Iterator[Problem]:
    if sheet is None:
        return
    own = {entry.key for entry in sheet.entries}
    for entry in sheet.entries:
        holder = holders.get(entry.cells.get("untis_id", ""))
        if holder and holder not in own:
            reason = (
                f"belongs to {holder}, who is in the database and not in this file; give that"
                " user's row as well"
            )
            cell = entry.cells["untis_id"]
            yield Problem(sheet.place, entry.line, "untis_id", reason, cell)


def _release_untis_ids(session: Session, holders: dict[str, str]) -> None:
    """Take the ids that others get from their holders.

    Otherwise two users who swap theirs would hold the same id in between.
    """
    for chunk in _chunks(holders):
        session.execute(update(User).where(User.untis_id.in_(chunk)).values(untis_id=None))


def _in_order(sheet: Sheet) -> list[Entry]:
    """Return the rows as they can be written: a version needs the current event to be there."""
    return sorted(sheet.entries, key=lambda entry: "version_of" in entry.cells)


def _values(
    sheet: Sheet, entries: Iterable[Entry], ids: Ids, now: datetime
) -> list[dict[str, Any]]:
    """Return the values that rows give for the table's columns, with `created_at`."""
    kind, target = sheet.kind, TARGETS[sheet.kind.file]
    always = {"created_at": now} if "created_at" in target.table.c else {}
    result = []
    for entry in entries:
        values: dict[str, Any] = dict(always)
        if kind is EventDateRow:
            values["id"] = entry.key
        for column, value in zip(sheet.columns, entry.values or (), strict=True):
            name = target.columns.get(column, column)
            if column in target.links:
                continue
            if kind in WITH_MOMENTS and column in ("starts", "ends"):
                timed = isinstance(value, datetime)
                values |= {
                    f"{column}_at": value if timed else None,
                    f"{column}_on": None if timed else value,
                }
            elif kind is EventRow and column in ("id", "version_of"):
                values[name] = value and EventRow.identify(value)
            elif column in kind.references:
                values[name] = (
                    value
                    and ids[kind.references[column]][
                        ROW_OF[kind.references[column]].identify(value)
                    ]
                )
            else:
                values[name] = value
        result.append(values)
    return result


def _upsert(session: Session, target: Target, rows: Sequence[dict[str, Any]]) -> set[RowKey]:
    """Write the rows that are new or differ, and return their keys."""
    if not (rows := _find_differing(session, target, rows)):
        return set()
    columns = target.table.c
    insert, values = insert_many_or(session, target.model, rows)
    stated = [name for name in rows[0] if name not in (target.key, "created_at")]
    new = {name: insert.excluded[name] for name in stated}
    if new:
        changes = or_(*(columns[name].is_distinct_from(new[name]) for name in stated))
        put = insert.on_conflict_do_update(index_elements=[target.key], set_=new, where=changes)
    else:
        put = insert.on_conflict_do_nothing(index_elements=[target.key])
    session.connection().execute(put, values)
    return {row[target.key] for row in rows}


def _find_differing(
    session: Session, target: Target, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows that the database does not have as they are.

    Postgres takes an id for every row that is offered to it, also for one that it then has.
    """
    if not rows:
        return []
    stated = [name for name in rows[0] if name != "created_at"]
    columns, key = [target.table.c[name] for name in stated], target.table.c[target.key]
    there = {
        tuple(row)
        for chunk in _chunks(row[target.key] for row in rows)
        for row in session.execute(select(*columns).where(key.in_(chunk)))
    }
    return [row for row in rows if tuple(row[name] for name in stated) not in there]


def find_ids(session: Session, target: Target, keys: Collection[RowKey]) -> dict[RowKey, Any]:
    """Return the ids of those keys that the database has."""
    key = target.table.c[target.key]
    queries = (select(key, target.table.c.id).where(key.in_(chunk)) for chunk in _chunks(keys))
    return {name: found for query in queries for name, found in session.execute(query)}


def _link(session: Session, sheet: Sheet, entries: Sequence[Entry], ids: Ids) -> set[Any]:
    """Write the link tables of rows, as their list cells say; return changed rows' ids."""
    changed: set[Any] = set()
    kind, target = sheet.kind, TARGETS[sheet.kind.file]
    owners = [ids[kind.file][entry.key] for entry in entries]
    for position, column in enumerate(sheet.columns):
        if not (link := target.links.get(column)):
            continue
        wanted: set[tuple[Any, Any]] = set()
        for owner_id, entry in zip(owners, entries, strict=True):
            names = (entry.values or ())[position]
            if file := kind.references.get(column):
                names = [ids[file][ROW_OF[file].identify(name)] for name in names]
            wanted.update((owner_id, name) for name in names)
        changed |= relink(session, link, owners, wanted)
    return changed


def read_links(session: Session, link: Link, owners: Iterable[Any]) -> set[tuple[Any, Any]]:
    """Return the pairs of a link table that belong to these owners."""
    owner, other = link.table.c[link.owner], link.table.c[link.other]
    queries = (select(owner, other).where(owner.in_(chunk)) for chunk in _chunks(owners))
    return {(one, two) for query in queries for one, two in session.execute(query)}


def relink(
    session: Session, link: Link, owners: Iterable[Any], wanted: set[tuple[Any, Any]]
) -> set[Any]:
    """Replace the pairs that a link table has of these owners; write only what differs.

    Return the owners whose pairs have changed.
    """
    owner, other = link.table.c[link.owner], link.table.c[link.other]
    present = read_links(session, link, owners)
    missing = [{link.owner: one, link.other: two} for one, two in sorted(wanted - present)]
    for some in batched(missing, CHUNK):
        insert, values = insert_many_or(session, link.model, some)
        session.connection().execute(insert.on_conflict_do_nothing(), values)
    if surplus := [{"one": one, "two": two} for one, two in sorted(present - wanted)]:
        session.execute(
            delete(link.table).where(and_(owner == bindparam("one"), other == bindparam("two"))),
            surplus,
        )
    return {one for one, _ in wanted ^ present}


def _address(session: Session, sheet: Sheet, ids: Ids) -> None:
    """Mark events that name a class, department or user; unmark those whose row names none."""
    named = or_(
        *(
            exists().where(link.table.c.event_id == Event.id)
            for link in TARGETS["events.csv"].links.values()
        )
    )
    says_all = set(TARGETS["events.csv"].links) <= set(sheet.columns)
    for chunk in _chunks(ids[sheet.kind.file][entry.key] for entry in sheet.entries):
        ours = update(Event).where(Event.id.in_(chunk)).execution_options(synchronize_session=False)
        session.execute(ours.where(named, Event.addressed.is_(False)).values(addressed=True))
        if says_all:
            session.execute(ours.where(~named, Event.addressed.is_(True)).values(addressed=False))


def _chunks(keys: Iterable[Any]) -> Iterator[list[Any]]:
    ordered = list(keys)
    return (ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK))
