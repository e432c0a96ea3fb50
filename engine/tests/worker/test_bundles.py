"""Jobs that run together on real workers: what one of them does is not the others' harm."""

import itertools
import os
import signal
from datetime import timedelta
from uuid import uuid4

import probe_app as probe
import pytest
from nightshift.jobs import enqueue, enqueue_many
from nightshift.jobs.models import Job, JobState
from probing import count_effects, put
from sqlalchemy import func, select, text, update

# More than a caller sends itself: the relay finds all of them waiting.
MANY = 250


@pytest.fixture(autouse=True)
def _without_earlier_jobs(working):
    """Let the jobs of the test before end."""
    working.until(lambda: working.open_jobs() == 0)


def put_many(working, jobs):
    with working.runtime.unit_of_work() as session:
        return enqueue_many(session, jobs, now=working.runtime.now())


def rows(working, ids):
    with working.runtime.read_only() as session:
        return list(session.execute(select(Job).where(Job.id.in_(ids))).scalars())


def count_open(working, ids):
    open_ones = select(func.count()).where(Job.id.in_(ids), Job.finished_at.is_(None))
    with working.runtime.read_only() as session:
        return session.execute(open_ones).scalar_one()


def wait(working, ids):
    """Wait for the end of jobs and return their rows."""
    working.until(lambda: count_open(working, ids) == 0)
    return rows(working, ids)


def outcomes(found):
    return {(row.state, row.attempt, row.errors is None) for row in found}


ONCE = {(JobState.SUCCEEDED, 1, True)}


def find_a_bundles_process(working, killed):
    several = select(Job.pid).where(Job.state == JobState.RUNNING, Job.pid.not_in(killed))
    several = several.group_by(Job.claim_id, Job.pid).having(func.count() > 1)
    with working.runtime.read_only() as session:
        return session.execute(several).scalars().first()


def test_many_short_jobs_run_together_and_each_once(working):
    before = count_effects(working.runtime)
    ids = put_many(working, [probe.Leave(number=n) for n in range(MANY)])
    found = wait(working, ids)
    assert outcomes(found) == ONCE
    assert {row.result for row in found} == set(range(MANY))
    assert count_effects(working.runtime) - before == MANY
    assert sum(row.message_id not in (None, row.id) for row in found) > MANY / 2
    assert all(row.created_at <= row.started_at <= row.finished_at for row in found)
    by_process = sorted(found, key=lambda row: (row.pid, row.started_at))
    for earlier, later in itertools.pairwise(by_process):
        assert earlier.pid != later.pid or earlier.finished_at <= later.started_at


def test_death_in_the_middle_loses_and_doubles_and_charges_nothing(working):
    before = count_effects(working.runtime)
    ids = put_many(working, [probe.Leave(number=n, milliseconds=20) for n in range(MANY)])
    killed = []
    for _ in range(2):
        killed.append(working.until(lambda: find_a_bundles_process(working, killed)))
        os.kill(killed[-1], signal.SIGKILL)
    assert outcomes(wait(working, ids)) == ONCE
    assert count_effects(working.runtime) - before == MANY


def test_job_that_kills_its_process_is_charged_alone(working):
    before = count_effects(working.runtime)
    ids = put_many(working, [probe.Mixed() for _ in range(MANY)])
    poison = put_many(working, [probe.Mixed(dies=True)])
    found = wait(working, [*ids, *poison])
    assert outcomes(row for row in found if row.id in ids) == ONCE
    (row,) = (row for row in found if row.id in poison)
    assert (row.state, row.attempt, len(row.errors)) == (JobState.FAILED, 3, 3)
    assert count_effects(working.runtime) - before == MANY


def test_time_limit_holds_for_each_job(working):
    jobs = [probe.Brief() for _ in range(MANY)]
    ids = put_many(working, [*jobs[:-1], probe.Brief(seconds=60)])
    found = wait(working, ids)
    (stuck,) = (row for row in found if row.args["seconds"])
    assert outcomes(row for row in found if row is not stuck) == ONCE
    assert (stuck.state, stuck.attempt, len(stuck.errors)) == (JobState.FAILED, 3, 3)


def test_jobs_do_not_wait_for_a_slow_one(working):
    now = working.runtime.now()
    with working.runtime.unit_of_work() as session:
        # The first of its message.
        first = enqueue(session, probe.Mixed(seconds=1.7), now=now, run_at=now - timedelta(hours=1))
        ids = enqueue_many(session, [probe.Mixed()] * MANY, now=now)
    found = wait(working, [first, *ids])
    (slow,) = (row for row in found if row.id == first)
    assert outcomes(found) == ONCE
    assert (slow.finished_at - slow.started_at).total_seconds() >= 1.7
    assert slow.message_id not in (None, slow.id)
    assert [row.id for row in found if row.message_id == slow.message_id] == [slow.id]
    # Those behind it were sent again, each alone.
    behind = [row for row in found if row.message_id == row.id]
    assert behind
    assert all(row.started_at >= slow.finished_at for row in behind)


def test_slow_jobs_are_shared_out(working):
    ids = put_many(working, [probe.Mixed(seconds=0.2) for _ in range(40)])
    found = wait(working, ids)
    assert outcomes(found) == ONCE
    ran = [sum(row.pid == pid for row in found) for pid in {row.pid for row in found}]
    assert len(ran) == 2
    assert min(ran) >= 12


def test_urgent_job_overtakes_many_short_ones(working):
    ids = put_many(working, [probe.Leave(number=n, milliseconds=5) for n in range(4 * MANY)])
    with working.runtime.unit_of_work() as session:
        urgent = enqueue(session, probe.Leave(), now=working.runtime.now(), priority=0)
    found = wait(working, [*ids, urgent])
    (first,) = (row for row in found if row.id == urgent)
    later = sum(row.started_at > first.started_at for row in found)
    assert later > 0
    assert outcomes(found) == ONCE


def test_jobs_that_would_deadlock_together_run_alone(working):
    for _ in range(2):
        working.ended(put(working.runtime, probe.Leave()))
    with working.runtime.read_only() as session:
        rows_ = list(session.execute(text("select id from effect order by id limit 2")).scalars())
    one, two = rows_
    jobs = [probe.Mixed(locks=(one, two)[n % 2], seconds=0.004) for n in range(MANY)]
    before = count_effects(working.runtime)
    found = wait(working, put_many(working, jobs))
    assert outcomes(found) == ONCE
    assert count_effects(working.runtime) - before == MANY


def test_message_of_several_jobs_whose_first_is_not_there_runs_the_others(working):
    with working.runtime.unit_of_work() as session:
        ids = enqueue_many(
            session, [probe.Leave(number=n) for n in range(3)], now=working.runtime.now()
        )
        named = [str(uuid4()), *map(str, ids)]
        working.app.send_task(
            "probe.leave", kwargs={"job_ids": named}, task_id=named[0], queue="default"
        )
    assert outcomes(wait(working, ids)) == ONCE


def put_one_message(working, jobs):
    """Enqueue jobs and send them in one message; return their ids in the order of `jobs`."""
    ids = []
    with working.runtime.unit_of_work() as session:
        for number, one in enumerate(jobs):
            ids.append(enqueue(session, one, now=working.runtime.now(), delay=timedelta(days=1)))
            put_in = {"state": JobState.QUEUED, "run_at": working.runtime.now()}
            change = update(Job).where(Job.id == ids[number])
            session.execute(change.values(sent_at=working.runtime.now(), **put_in))
        message = update(Job).where(Job.id.in_(ids))
        session.execute(message.values(message_id=uuid4()))
    named = list(map(str, ids))
    working.app.send_task(
        jobs[0].policy.kind, kwargs={"job_ids": named}, task_id=named[0], queue="default"
    )
    return ids


@pytest.mark.parametrize("which", [0, 3])
@pytest.mark.parametrize("terminate", [False, True])
def test_revoked_is_one_job_and_not_its_neighbours(working, which, terminate):
    ids = put_one_message(working, [probe.Mixed(seconds=1.8)] + [probe.Mixed()] * 5)
    working.until(lambda: working.job(ids[0]).state == JobState.RUNNING)
    working.app.control.revoke(str(ids[which]), terminate=terminate)
    found = {row.id: row for row in wait(working, ids)}
    assert found.pop(ids[which]).state == JobState.CANCELLED
    assert outcomes(found.values()) == ONCE


def test_revoked_before_it_starts_is_one_job_and_not_its_neighbours(working):
    busy = [put(working.runtime, probe.Sleep(seconds=100)) for _ in range(2)]
    working.until(lambda: all(working.job(one).state == JobState.RUNNING for one in busy))
    ids = put_one_message(working, [probe.Mixed()] * 5)
    working.until(lambda: str(ids[0]) in str(working.app.control.inspect(timeout=1).reserved()))
    working.app.control.revoke(str(ids[0]))
    working.app.control.revoke([str(one) for one in busy], terminate=True)
    found = {row.id: row for row in wait(working, ids)}
    assert found.pop(ids[0]).state == JobState.CANCELLED
    assert outcomes(found.values()) == ONCE
