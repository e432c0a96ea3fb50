"""Two transactions of which one waits for the other."""

import threading

from nightshift.database import Session
from sqlalchemy import text

BLOCKED = text(
    "select count(*) from pg_locks"
    " where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))"
)


def wait_until_blocked(session: Session, thread: threading.Thread) -> None:
    """Return when another transaction waits for a lock that this one holds."""
    while not session.scalar(BLOCKED):
        assert thread.is_alive()
