"""A digest of all that the calendars are made from.

A sync compares it with that of the last run: when nothing has changed, it need not work out what
every calendar should hold.
"""

import hashlib
from datetime import date

from nightshift.database import Base, Session, reader
from sqlalchemy import select

from services.calendars import ics
from services.calendars.audience import RULES_VERSION
from services.calendars.window import Window
from services.school.models import Event, TeachingAffected

# All tables of the school, so that one which is added later is included.
TABLES = sorted(
    model.__tablename__ for model in Base.__subclasses__() if model.__module__ == Event.__module__
)

NOTHING = ics.EventContent(
    "-", "-", "", "", date(2000, 1, 1), date(2000, 1, 1), False, TeachingAffected.NO, ()
)


def digest(session: Session, window: Window, rules: str) -> bytes | None:
    """Return a digest of the school's tables, the window's events, the rules and the renderer.

    Return None on SQLite, which has no cheap way to read it all; schools on it are small. Postgres
    copies rows out in any order. Another order looks like a change, and only costs time.
    """
    if session.get_bind().dialect.name != "postgresql":
        return None
    found = hashlib.blake2b(
        f"{RULES_VERSION} {rules} {window.first} {window.last}".encode(), digest_size=16
    )
    found.update(ics.digest_source(NOTHING) + ics.render_head("", window.zone))
    # A cancelled event leaves the window when its time has passed, without a change of its row.
    found.update(
        b"".join(
            sorted(
                row.id.bytes for row in reader(session)(select(Event.id).where(window.current()))
            )
        )
    )
    connection = session.connection().connection.driver_connection
    assert connection is not None
    with connection.cursor() as cursor:
        for table in TABLES:
            # With each row's version: a row that was changed and changed back is a change, since a
            # run may have read it in between.
            with cursor.copy(f"COPY (SELECT xmin, * FROM {table}) TO STDOUT") as rows:  # noqa: S608 - names of our own
                for some in rows:
                    found.update(some)
    return found.digest()
