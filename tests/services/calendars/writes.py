"""What other programs may write into the tables that feeds read."""

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from nightshift.database import Base
from sqlalchemy import Column, Enum, Integer, Table, and_

from services.calendars.models import Feed
from services.school.models import Event
from tests.services.calendars.conftest import LONG_AGO

TABLES = {
    model.__tablename__: model.__table__
    for model in Base.__subclasses__()
    if model.__module__ in (Event.__module__, Feed.__module__)
}

OTHERS: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: value % 7 + 1,
    str: lambda value: f"{value[:1]}x",
    bytes: lambda value: value + b"x",
    UUID: lambda value: UUID(int=value.int ^ 1),
    datetime: lambda value: value + timedelta(hours=1),
    date: lambda value: value + timedelta(days=1),
    time: lambda value: value.replace(minute=value.minute ^ 1),
}


def _key(row: Any, table: Table) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in table.primary_key)


def other_value(column: Column[Any], row: Any, rows: list[Any]) -> Any:
    """Return a value that the column may have and that the row has not."""
    value = row[column.name]
    if column.foreign_keys:
        itself = any(key.column.table is column.table for key in column.foreign_keys)
        taken = [_key(one, column.table) for one in rows]
        for one in rows:
            other = one["id" if itself else column.name]
            new = dict(row) | {column.name: other}
            is_free = not column.primary_key or _key(new, column.table) not in taken
            if other not in (None, value) and is_free:
                return other
        return OTHERS[type(value)](value)
    if isinstance(column.type, Enum):
        return next(one for one in column.type.enums if one != value)
    if isinstance(column.type, Integer) and column.primary_key:
        return value + 90_000
    if value is None:
        days = {"_at": LONG_AGO, "_on": LONG_AGO.date(), "_to": LONG_AGO.date()}
        is_clock = column.name in ("starts", "ends")
        return time(7) if is_clock else days.get(column.name[-3:], "x")
    return OTHERS[type(value)](value)


def key_of(table: Table, row: Any) -> Any:
    return and_(*(column == row[column.name] for column in table.primary_key))
