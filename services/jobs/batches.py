"""Jobs that wait for other jobs. Every way in which a child can end comes through `count`, once a child."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, case, func, select, update

from services.database import Session, utc_now
from services.jobs.args import JobArgs
from services.jobs.enqueue import declared, enqueue_declared, enqueue_many
from services.jobs.models import Job, JobState

SPAWNED = "spawned"


def spawn(session: Session, parent_id: UUID, children: Sequence[JobArgs], *, then: JobArgs | None, now: datetime) -> None:
    """Write the children of a running job, unseen by anyone until its finish commits with them."""
    enqueue_many(session, children, now=now, parent_id=parent_id)
    follow_ups = session.info.setdefault(SPAWNED, {})
    # All of the row, so that whoever ends the last child need not know the follow-up's kind.
    follow_ups[parent_id] = follow_ups.get(parent_id) if then is None else declared(then)


def spawned(session: Session, job_id: UUID) -> dict[str, Any] | None:
    """Return the columns of a job that goes on to wait, or None when it spawned nothing in this transaction."""
    follow_ups = session.info.get(SPAWNED, {})
    if job_id not in follow_ups:
        return None
    # What is there and not what was asked for: there may have been several calls, and a savepoint may have taken one back.
    number = session.execute(select(func.count()).where(Job.parent_id == job_id, Job.counted_at.is_(None))).scalar_one()
    batch = {"children": number, "children_open": number, "children_failed": 0}
    return {"state": JobState.WAITING, **batch, "follow_up": follow_ups.pop(job_id)}


def ended(state: JobState | BindParameter[JobState]) -> dict[str, Any]:
    """Return the columns of a job that ended: it no longer keeps others of its unique key away, and counts as counted."""
    return {"state": state, "finished_at": utc_now(), "unique_key": None, "counted_at": func.coalesce(Job.counted_at, utc_now())}


def count(session: Session, parent_id: UUID, *, failed: bool) -> None:
    """Count one child that ended; the last one brings the follow-up, and the end of that ends the parent."""
    # The update locks the parent, so that of two last children only one sees zero.
    row = session.execute(
        update(Job)
        .where(Job.id == parent_id)
        .values(children_open=Job.children_open - 1, children_failed=Job.children_failed + int(failed))
        .returning(Job.children_open)
    ).one_or_none()
    if row is not None and row.children_open == 0:
        close(session, parent_id)


def close(session: Session, parent_id: UUID) -> None:
    """Go on with a waiting job that has no open child: its follow-up, if it has not run yet, else its end."""
    parent = session.execute(
        select(Job.follow_up, Job.children_failed, Job.parent_id, Job.counted_at, utc_now().label("now")).where(
            Job.id == parent_id, Job.state == JobState.WAITING
        )
    ).one_or_none()
    if parent is None:
        return
    if parent.follow_up is not None:
        session.execute(update(Job).where(Job.id == parent_id).values(follow_up=None, children_open=1, children=Job.children + 1))
        enqueue_declared(session, parent.follow_up, now=parent.now, parent_id=parent_id)
        return
    state = JobState.FAILED if parent.children_failed else JobState.SUCCEEDED
    session.execute(update(Job).where(Job.id == parent_id, Job.state == JobState.WAITING).values(ended(state)))
    if parent.parent_id is not None and parent.counted_at is None:
        count(session, parent.parent_id, failed=state == JobState.FAILED)


def children(session: Session, parent_id: UUID, kind: str) -> list[dict[str, Any]]:
    """Return id, args, state, result and last error of the children of one kind."""
    columns = (Job.id, Job.args, Job.state, Job.result, Job.errors)
    rows = session.execute(select(*columns).where(Job.parent_id == parent_id, Job.kind == kind))
    return [{**row._mapping, "error": (row.errors or [None])[-1]} for row in rows]  # noqa: SLF001 - public, in spite of its name


def progress(session: Session, parent_id: UUID) -> tuple[int, int]:
    """Return how many children have ended, and how many there are."""
    done = func.coalesce(func.sum(case((Job.counted_at.is_not(None), 1), else_=0)), 0)
    row = session.execute(select(done, func.count()).where(Job.parent_id == parent_id)).one()
    return int(row[0]), int(row[1])
