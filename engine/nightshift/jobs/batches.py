"""Jobs that wait for their children.

Whatever ends a child calls `record_child_end`, once for each child.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, case, func, select, update
from sqlalchemy.orm import aliased

from nightshift.database import Session, utc_now
from nightshift.errors import PermanentError
from nightshift.jobs.args import JobArgs
from nightshift.jobs.enqueue import build_declared_columns, enqueue_declared, enqueue_many
from nightshift.jobs.models import Job, JobState
from nightshift.jobs.session import get_carried


def spawn(
    session: Session,
    parent_id: UUID,
    children: Sequence[JobArgs],
    *,
    then: JobArgs | None,
    now: datetime,
) -> None:
    """Write the children of a running job. They exist once its finish commits with them.

    Raises PermanentError in a session that no Runtime opened: it would not refuse to commit the
    children without the finish.
    """
    carried = get_carried(session)
    if not carried.guarded:
        raise PermanentError("run.spawn needs a session of run.unit_of_work")
    if session.in_nested_transaction():
        raise PermanentError("run.spawn cannot be undone: do not call it inside begin_nested()")
    enqueue_many(session, children, now=now, parent_id=parent_id)
    follow_ups = carried.follow_ups
    # All columns of the row: the process that ends the last child may not know this kind.
    follow_ups[parent_id] = (
        follow_ups.get(parent_id) if then is None else build_declared_columns(then)
    )


def build_waiting_columns(session: Session, job_id: UUID) -> dict[str, Any] | None:
    """Return what to write when a job begins to wait for its children.

    Return None when it spawned nothing in this transaction.
    """
    follow_ups = get_carried(session).follow_ups
    if job_id not in follow_ups:
        return None
    # Counted in the table: `spawn` may have been called several times.
    number = session.execute(
        select(func.count()).where(Job.parent_id == job_id, Job.counted_at.is_(None))
    ).scalar_one()
    return {
        "state": JobState.WAITING,
        "children": number,
        "children_open": number,
        "children_failed": 0,
        "follow_up": follow_ups.pop(job_id),
    }


def build_ended_columns(state: JobState | BindParameter[JobState]) -> dict[str, Any]:
    """Return what to write when a job ends.

    Its unique key is free again, and its parent need not count it any more.
    """
    return {
        "state": state,
        "finished_at": utc_now(),
        "unique_key": None,
        "counted_at": func.coalesce(Job.counted_at, utc_now()),
    }


def record_child_end(session: Session, parent_id: UUID, *, failed: bool, number: int = 1) -> None:
    """Write in the parent that one child has ended, or `number` children at once.

    After the last child the follow-up is enqueued; after the follow-up the parent ends.
    """
    # The update locks the parent, so that of two last children only one sees zero. A job may have
    # children that were written before it waited for any: by the release before, or by a caller.
    row = session.execute(
        update(Job)
        .where(Job.id == parent_id, Job.children_open > 0)
        .values(
            children_open=case((Job.children_open > number, Job.children_open - number), else_=0),
            children_failed=Job.children_failed + number * int(failed),
        )
        .returning(Job.children_open)
    ).one_or_none()
    if row is not None and row.children_open == 0:
        advance_parent(session, parent_id)


def advance_parent(session: Session, parent_id: UUID) -> None:
    """Enqueue the follow-up of a waiting job without open children, or end a job that has none.

    Do nothing when the job is not waiting.
    """
    parent = session.execute(
        select(
            Job.follow_up,
            Job.children_failed,
            Job.parent_id,
            Job.counted_at,
            utc_now().label("now"),
        ).where(Job.id == parent_id, Job.state == JobState.WAITING)
    ).one_or_none()
    if parent is None:
        return
    if parent.follow_up is not None:
        session.execute(
            update(Job)
            .where(Job.id == parent_id)
            .values(follow_up=None, children_open=1, children=Job.children + 1)
        )
        enqueue_declared(session, parent.follow_up, now=parent.now, parent_id=parent_id)
        return
    state = JobState.FAILED if parent.children_failed else JobState.SUCCEEDED
    session.execute(
        update(Job)
        .where(Job.id == parent_id, Job.state == JobState.WAITING)
        .values(build_ended_columns(state))
    )
    if parent.parent_id is not None and parent.counted_at is None:
        record_child_end(session, parent.parent_id, failed=state == JobState.FAILED)


def select_children(parent_id: UUID) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for the children of a job's newest run: an earlier run had others."""
    parent = aliased(Job)
    began = select(parent.started_at).where(parent.id == parent_id, parent.children > 0)
    return Job.parent_id == parent_id, Job.created_at >= began.scalar_subquery()


def read_children(session: Session, parent_id: UUID, kind: str) -> list[dict[str, Any]]:
    """Return id, args, state, result and last error of the newest run's children of one kind."""
    columns = (Job.id, Job.args, Job.state, Job.result, Job.errors)
    rows = session.execute(select(*columns).where(*select_children(parent_id), Job.kind == kind))
    # SLF001: SQLAlchemy documents `_mapping` as public.
    return [{**row._mapping, "error": (row.errors or [None])[-1]} for row in rows]  # noqa: SLF001


def count_children(session: Session, parent_id: UUID) -> tuple[int, int]:
    """Return how many children of a job's newest run have ended, and how many there are."""
    counts = select(func.count(Job.counted_at), func.count()).where(*select_children(parent_id))
    return session.execute(counts).one()
