"""The change log's notes of revisions: who leaves none, and which events they cast doubt on.

The database's triggers note every write of what feeds read. A sync and a refresh write revisions,
too, and then bring the feeds up to date themselves: notes of that would only start another refresh.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from nightshift.database import LONGEST_LIST, Session
from sqlalchemy import delete, insert, select

from services.calendars.models import ChangeLog, OwnWrite

# The kind that the log has for a write of a revision or a rendering. Without an event: of all.
REVISION = "revision"

# Events whose stored revision must be compared with what it should be; None for all events.
Doubted = Collection[UUID] | None


@contextmanager
def unnoted(session: Session) -> Iterator[None]:
    """Let this block's writes of revisions, renderings and feeds leave no notes.

    Only for a caller that brings the feeds up to date. The triggers look for the row that exists
    during the block. It is never committed, so no other transaction sees it.
    """
    session.flush()  # What was changed before the block is noted.
    with session.begin_nested():
        mark = uuid4()
        session.execute(insert(OwnWrite).values(id=mark))
        yield
        session.flush()
        session.execute(delete(OwnWrite).where(OwnWrite.id == mark))


def find_doubted(session: Session) -> Doubted:
    """Return the events whose revision or rendering another program may have written."""
    noted = select(ChangeLog.event_id).where(ChangeLog.kind == REVISION).distinct()
    found = session.scalars(noted.limit(LONGEST_LIST + 1)).all()
    return None if None in found or len(found) > LONGEST_LIST else set(filter(None, found))
