"""How many jobs of a limited kind may be sent."""

from datetime import timedelta
from uuid import uuid4

import pytest
from job_rows import (
    KINDS,
    LONG_AGO,
    QUEUES,
    Limited,
    Plain,
    Rated,
    change,
    finish,
    put,
    row,
    take,
    try_claim,
)
from nightshift.database import read_clock
from nightshift.jobs import Rate, claims, limits, relay
from nightshift.jobs.models import JobStart
from sqlalchemy import func, select

RATED = Rated.policy
HOUR = timedelta(hours=1)
THREE = Rate(3, HOUR)


def send(session):
    messages = relay.mark_due_sent(session, kinds=KINDS, queues=QUEUES, buffer=100)
    return [message.lead for message in messages]


def start(session, job_id):
    """Claim a job as a worker of this release does, which records the start."""
    claim = take(session, job_id)
    known = session.execute(select(JobStart.at).where(JobStart.job_id == job_id)).scalars().all()
    if claim.started_at not in known:
        limits.record_start(session.connection(), job_id, claim.kind, at=claim.started_at)
    return claim


def count_recorded(session):
    return session.execute(select(func.count()).select_from(JobStart)).scalar_one()


def test_rate_counts_each_start_of_a_job_that_is_retried(session):
    job_id = put(session, Rated())
    for starts in (1, 2, 3):
        claims.record_failure(session, start(session, job_id), {}, retry_after=timedelta())
        # The row keeps its newest start only.
        change(session, job_id, run_at=LONG_AGO)
        assert limits.count_starts(session, RATED, THREE) == starts
    assert (send(session), row(session, job_id).sent_at) == ([], None)


def test_start_that_row_and_record_both_have_counts_once(session):
    finish(session, put(session, Rated()))
    claim = start(session, put(session, Rated()))
    assert row(session, claim.job_id).started_at == claim.started_at
    assert limits.count_starts(session, RATED, THREE) == 2


def test_starts_are_counted_up_to_what_the_rate_admits(session):
    for _ in range(5):
        start(session, put(session, Rated()))
    for admitted in (1, 4, 9):
        rate = Rate(admitted, HOUR)
        assert limits.count_starts(session, RATED, rate) == min(admitted, 5)


def test_start_by_a_worker_of_the_release_before_counts(session):
    """It claims the row, and records nothing beside it."""
    take(session, put(session, Rated()))
    assert limits.count_starts(session, RATED, THREE) >= 1


def test_starts_of_other_kinds_and_of_long_ago_do_not_count(session):
    now = read_clock(session)
    for kind, at in (("test.plain", now), ("test.rated", now - 2 * HOUR)):
        limits.record_start(session.connection(), uuid4(), kind, at=at)
    assert limits.count_starts(session, RATED, THREE) == 0


def test_admission_deletes_a_bounded_number_of_old_starts(session):
    now = read_clock(session)
    connection, number = session.connection(), limits.BATCH + 5
    for minutes in range(number):
        at = now - 3 * HOUR - timedelta(minutes=minutes)
        limits.record_start(connection, uuid4(), "test.rated", at=at)
    limits.record_start(connection, uuid4(), "test.rated", at=now - 1.5 * HOUR)
    limits.record_start(connection, uuid4(), "test.plain", at=LONG_AGO)
    left = []
    for _ in range(3):
        limits.count_admissible(session, RATED, sent=0, running=0)
        left.append(count_recorded(session))
    assert left == [7, 2, 2]


@pytest.mark.parametrize(("sent", "running", "room"), [(0, 0, 2), (1, 0, 1), (1, 1, 0), (2, 1, -1)])
def test_room_is_what_is_neither_sent_nor_running(session, sent, running, room):
    policy = Limited.policy
    assert limits.count_admissible(session, policy, sent=sent, running=running) == room


def test_open_jobs_are_counted_by_kind(session):
    for kind in (Limited, Limited, Plain):
        put(session, kind())
    first, *_ = send(session)
    claim = try_claim(session, first)
    sent, running = limits.count_open(session)
    assert sent + running == {"test.limited": 2, "test.plain": 1}
    assert running == {claim.kind: 1}


def test_rate_and_sent_jobs_together_are_within_the_limit(session):
    start(session, put(session, Rated()))
    ids = [put(session, Rated()) for _ in range(5)]
    assert len(send(session)) == 2
    assert send(session) == []
    assert len([job_id for job_id in ids if row(session, job_id).sent_at is None]) == 3
