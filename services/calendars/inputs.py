"""A digest of everything that the calendars are made from, so that a run in which nothing changed need not work them all out."""

import hashlib
from datetime import date

from sqlalchemy import select

from services.calendars import ics
from services.calendars.window import Window
from services.database import Base, Session, reader
from services.school.models import Event, TeachingAffected

# All tables of the school: one that is added later is looked at without anybody's thinking of it.
TABLES = sorted(model.__tablename__ for model in Base.__subclasses__() if model.__module__ == Event.__module__)

NOTHING = ics.EventContent("-", "-", "", "", date(2000, 1, 1), date(2000, 1, 1), False, TeachingAffected.NO, ())


def digest(session: Session, window: Window, rules: str) -> bytes | None:
    """Return a digest of the school's tables, the window's events, the rules and the renderer, or None where that has no cheap way.

    Rows are hashed as Postgres copies them out, in no order: an order that changed looks like a change, and is worked out in vain.
    SQLite has nothing like it, and schools on it are small.
    """
    if session.get_bind().dialect.name != "postgresql":
        return None
    found = hashlib.blake2b(f"{rules} {window.first} {window.last}".encode(), digest_size=16)
    found.update(ics.source_digest(NOTHING) + ics.calendar_head("", window.zone))
    # A cancelled event leaves the window by the clock alone.
    found.update(b"".join(sorted(row.id.bytes for row in reader(session)(select(Event.id).where(window.current())))))
    connection = session.connection().connection.driver_connection
    assert connection is not None
    with connection.cursor() as cursor:
        for table in TABLES:
            # With the version of each row: one that was changed and changed back is not what it was, for whoever read it in between.
            with cursor.copy(f"COPY (SELECT xmin, * FROM {table}) TO STDOUT") as rows:  # noqa: S608 - names of our own
                for some in rows:
                    found.update(some)
    return found.digest()
