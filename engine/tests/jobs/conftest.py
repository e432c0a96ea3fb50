"""A runtime whose transactions commit, for tests where commits or two connections matter."""

from collections.abc import Iterator

import pytest
from job_rows import COMPOSITION
from nightshift.database import Base
from nightshift.jobs.models import (
    Action,
    Job,
    JobLog,
    JobStart,
    PausedEntry,
    PausedQueue,
    ScheduleEntry,
    Worker,
)
from nightshift.runtime import Runtime
from sqlalchemy import delete

TABLES: tuple[type[Base], ...] = (
    JobLog, JobStart, Job, PausedQueue, PausedEntry, ScheduleEntry, Worker, Action,
)  # fmt: skip


@pytest.fixture
def runtime(database_url: str) -> Iterator[Runtime]:
    """Yield a runtime without a publisher, for kinds of any component; what it wrote is removed."""
    runtime = COMPOSITION.runtime(database_url=database_url, _env_file=None)
    yield runtime
    with runtime.unit_of_work() as session:
        for table in TABLES:
            session.execute(delete(table))
    runtime.close()
