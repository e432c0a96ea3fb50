"""Write a school's tables as the CSV files that `loading` reads."""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from nightshift.database import Session
from nightshift.errors import InvalidInput
from sqlalchemy import Select, select

from services.school.loading import TARGETS, WITH_MOMENTS, Link, Target, read_links
from services.school.models import Event, EventDate
from services.school.rows import ROWS, SEPARATOR, EventDateRow, EventRow, Row

# Rows that are in memory at once, with what their list cells name.
CHUNK = 900

Names = dict[str, dict[Any, str]]


def export(session: Session, folder: Path) -> dict[str, int]:
    """Write a file for each table into a folder, and return how many rows each has.

    Loading them into the same database changes nothing. Deleted events, keys and calendars'
    addresses are not in them. The files are UTF-8 with a byte order mark, by which Excel knows
    them.

    Raises:
        InvalidInput: The folder cannot be made, or has such a file already.

    """
    files = [folder / kind.file for kind in ROWS]
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if there := [file.name for file in files if file.exists()]:
            raise InvalidInput(
                f"{folder}: {', '.join(there)} would be overwritten; name an empty folder"
            )
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from error
    names: Names = {}
    try:
        return {
            kind.file.removesuffix(".csv"): _write(session, kind, file, names)
            for kind, file in zip(ROWS, files, strict=True)
        }
    except BaseException as error:
        # Half a school is none.
        for file in files:
            file.unlink(missing_ok=True)
        if made:
            folder.rmdir()
        if isinstance(error, OSError):
            raise InvalidInput(f"{error.filename}: {error.strerror}") from error
        raise


def _write(session: Session, kind: type[Row], file: Path, names: Names) -> int:
    """Write one table, and note in `names` what its rows are called by others."""
    target, rows = TARGETS[kind.file], 0
    own = names[kind.file] = _read_names(session, kind, target)
    with file.open("x", encoding="utf-8-sig", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_columns(kind))
        for some in _read_chunks(session, target, own):
            links = {
                column: _read_linked(session, link, [row["id"] for row in some])
                for column, link in target.links.items()
            }
            for row in some:
                writer.writerow(_make_cells(kind, target, row, links, names))
            rows += len(some)
    return rows


def _columns(kind: type[Row]) -> list[str]:
    """Return a file's columns, the key first."""
    return sorted(kind.columns(), key=lambda column: column != kind.key_column)


def _read_names(session: Session, kind: type[Row], target: Target) -> dict[Any, str]:
    """Return what the rows of a table are called, by their ids: of those that are written."""
    if target.key == "user_id":
        # A subscription is its user's. No other table names one.
        return dict.fromkeys(session.execute(select(target.table.c.user_id)).scalars(), "")
    table = target.table.c
    named = select(table.id, table[target.key])
    if kind is EventRow:
        named = named.where(_is_kept())
    if kind is EventDateRow:
        named = named.join(Event, Event.id == EventDate.event_id).where(_is_kept())
    return {key: str(name) for key, name in session.execute(named)}


def _is_kept() -> Any:
    """Return the condition that an event, and the one that it is a version of, is not deleted."""
    deleted = select(Event.id).where(Event.deleted_at.is_not(None))
    return Event.deleted_at.is_(None) & (
        Event.version_of_id.is_(None) | Event.version_of_id.not_in(deleted)
    )


def _read_chunks(
    session: Session, target: Target, own: dict[Any, str]
) -> Iterator[list[dict[str, Any]]]:
    """Yield a table's rows in the order of their keys, each with its `id`."""
    table = target.table
    key = table.c[target.key]
    last: Any = None
    while True:
        rows: Select[Any] = select(table).order_by(key).limit(CHUNK)
        if last is not None:
            rows = rows.where(key > last)
        found = [dict(row._mapping) for row in session.execute(rows)]  # noqa: SLF001 - it is public
        if not found:
            return
        last = found[-1][target.key]
        for row in found:
            row.setdefault("id", row[target.key])
        yield [row for row in found if row["id"] in own]


def _read_linked(session: Session, link: Link, owners: list[Any]) -> dict[Any, list[Any]]:
    linked: dict[Any, list[Any]] = defaultdict(list)
    for owner, other in sorted(read_links(session, link, owners)):
        linked[owner].append(other)
    return linked


def _make_cells(
    kind: type[Row],
    target: Target,
    row: dict[str, Any],
    links: dict[str, dict[Any, list[Any]]],
    names: Names,
) -> Iterator[str]:
    for column in _columns(kind):
        called: Callable[[Any], str] = str
        if file := kind.references.get(column):
            called = names[file].get  # type: ignore[assignment]
        if column in target.links:
            yield SEPARATOR.join(
                sorted(filter(None, map(called, links[column].get(row["id"], ()))))
            )
        elif kind in WITH_MOMENTS and column in ("starts", "ends"):
            yield _write_out(row[f"{column}_at"] or row[f"{column}_on"])
        else:
            value = row[target.columns.get(column, column)]
            yield _write_out(called(value) if file and value is not None else value)


def _write_out(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case time():
            return value.isoformat(timespec="minutes")
        case date():
            return value.isoformat()
    return str(value)
