"""What an alert says: probes that began or ceased to fail, and jobs that failed for good."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import cast

from nightshift.database import Session
from nightshift.jobs.models import Job, JobState
from sqlalchemy import func, select

from services.alerts.jobs import SendAlert

# Not more often than this: what turns meanwhile is told together.
AT_MOST_EVERY = timedelta(minutes=5)

# How far back the first alert looks for failed jobs.
AT_FIRST = timedelta(minutes=10)

# A job's end is dated before its commit.
COMMITTED_WITHIN = timedelta(seconds=5)

FAILED = (JobState.FAILED, JobState.DISCARDED)
LONGEST_LINE = 300


def find(session: Session, failing: Mapping[str, str], *, now: datetime) -> SendAlert | None:
    """Return the alert that is due, or None.

    `failing` has what each probe that fails says. They are compared with the newest alert, which is
    in the ledger; where prune has removed that, what still fails is told again.
    """
    newest = select(Job.id, Job.args, Job.started_at).where(Job.kind == SendAlert.policy.kind)
    newest = newest.where(Job.started_at.is_not(None)).order_by(Job.started_at.desc()).limit(1)
    last = session.execute(newest).one_or_none()
    if last is not None and now - last.started_at < AT_MOST_EVERY:
        return None
    told = None if last is None else cast("SendAlert", SendAlert.from_row(last.args))
    before, since = (set(told.failing), told.until) if told else (set[str](), now - AT_FIRST)
    until = now - COMMITTED_WITHIN
    lines = [f"{name} fails: {failing[name]}" for name in sorted(failing.keys() - before)]
    lines += [f"{name} does not fail any more" for name in sorted(before - failing.keys())]
    lines += [
        f"{number} jobs {kind} failed for good: celery -A project jobs list --kind {kind}"
        for kind, number in _count_failed(session, since, until).items()
    ]
    if not lines:
        return None
    return SendAlert(
        after="the first" if last is None else str(last.id),
        failing=tuple(sorted(failing)),
        lines=tuple(line[:LONGEST_LINE] for line in lines),
        until=until,
    )


def _count_failed(session: Session, since: datetime, until: datetime) -> dict[str, int]:
    """Return by kind how many jobs failed for good, without those that tell it."""
    query = (
        select(Job.kind, func.count())
        .where(Job.finished_at.is_not(None), Job.finished_at > since, Job.finished_at <= until)
        .where(Job.state.in_(FAILED), Job.kind != SendAlert.policy.kind)
        .group_by(Job.kind)
        .order_by(Job.kind)
    )
    return dict(session.execute(query).all())
