"""What tests do with the probe's jobs: enqueue one, count what they have left."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from nightshift.celery.link import Word
from nightshift.jobs import JobArgs, enqueue
from nightshift.jobs.models import Job
from nightshift.runtime import Runtime
from probe_app import Effect, Leave
from sqlalchemy import func, select, update


def put(runtime: Runtime, args: JobArgs, **options: Any) -> UUID:
    """Enqueue a job in a transaction of its own and return its id."""
    with runtime.unit_of_work() as session:
        return enqueue(session, args, now=runtime.now(), **options)


def put_changed(runtime: Runtime, **columns: Any) -> UUID:
    """Enqueue a job with other values in its row, as another release may, and return its id."""
    soon = timedelta(seconds=1)
    with runtime.unit_of_work() as session:
        job_id = enqueue(session, Leave(), now=runtime.now(), delay=soon)
        session.execute(update(Job).where(Job.id == job_id).values(**columns))
        return job_id


def count_effects(runtime: Runtime, job_id: UUID | None = None) -> int:
    """Return how many effects there are, of one job or of all."""
    counted = select(func.count()).select_from(Effect)
    if job_id is not None:
        counted = counted.where(Effect.job_id == job_id.hex)
    with runtime.read_only() as session:
        return session.execute(counted).scalar_one()


def untimed(words: Iterable[tuple[Word, UUID | None, float]]) -> list[tuple[Word, UUID | None]]:
    """Return words as they are said, without when."""
    return [(word, about) for word, about, _ in words]
