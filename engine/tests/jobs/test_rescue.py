"""Signs of life, and the jobs of workers that gave their last one."""

from datetime import timedelta
from uuid import uuid4

import pytest
from job_rows import (
    LONG_AGO,
    Once,
    Only,
    Plain,
    batch,
    beat,
    change,
    columns,
    count,
    numbers,
    only_on_postgres,
    put,
    row,
    state,
    take,
    try_claim,
)
from nightshift.database import ago, read_clock, utc_now
from nightshift.jobs import claims, relay, rescue
from nightshift.jobs.models import Job, JobState, Worker
from sqlalchemy import select, update

SILENT_AFTER = timedelta(seconds=30)
SECOND = timedelta(seconds=1)


def make_judge(session, *, steady=SILENT_AFTER + SECOND):
    """Return a worker whose heartbeats have gone on for `steady`."""
    worker_id = beat(session)
    since = update(Worker).where(Worker.id == worker_id).values(steady_since=ago(steady))
    session.execute(since)
    return rescue.Judge(worker_id, SILENT_AFTER)


def set_last_beat(session, worker_id, span):
    """Make a worker's last sign of life as old as `span`."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(heartbeat_at=ago(span)))


def set_start(session, job_id, span):
    """Make a job one that has been running for `span`."""
    session.execute(update(Job).where(Job.id == job_id).values(started_at=ago(span)))


def living(session):
    found = rescue.find_living_workers(session, silent_after=SILENT_AFTER)
    return [worker.name for worker in found]


def worker(session, worker_id):
    found = select(Worker).where(Worker.id == worker_id)
    return session.execute(found.execution_options(populate_existing=True)).scalar_one()


def assert_released(session, job_id, reason):
    """Assert that the first attempt of a job was charged and it is due again."""
    job = row(session, job_id)
    assert (job.state, job.attempt, job.claim_id) == (JobState.SCHEDULED, 1, None)
    assert [(one["attempt"], one["type"], one["message"]) for one in job.errors] == [
        (1, "WorkerLost", reason)
    ]
    assert count(session, Job.id == job_id, Job.run_at <= utc_now()) == 1


# --- signs of life ---


def test_first_sign_of_life_writes_the_worker(session):
    one = worker(session, beat(session, name="w1@test", queues="default,side", pid=77))
    assert (one.name, one.queues, one.pid, one.stopped_at) == ("w1@test", "default,side", 77, None)
    assert one.started_at == one.heartbeat_at


def test_next_sign_of_life_moves_only_its_time(session):
    worker_id = beat(session)
    set_last_beat(session, worker_id, timedelta(hours=1))
    started_at = worker(session, worker_id).started_at
    beat(session, worker_id)
    one = worker(session, worker_id)
    assert (one.started_at, living(session)) == (started_at, ["w1@test"])
    assert one.heartbeat_at >= started_at


def test_living_workers_are_those_heard_of_lately_by_name(session):
    beat(session, name="b")
    beat(session, name="a")
    set_last_beat(session, beat(session, name="silent"), SILENT_AFTER + SECOND)
    set_last_beat(session, beat(session, name="just"), SILENT_AFTER - 5 * SECOND)
    rescue.mark_stopped(session, beat(session, name="stopped"))
    assert living(session) == ["a", "b", "just"]


def test_worker_that_was_thought_to_have_stopped_lives_again(session):
    worker_id = beat(session)
    rescue.mark_stopped(session, worker_id)
    assert living(session) == []
    beat(session, worker_id)
    assert living(session) == ["w1@test"]


def test_workers_that_ended_long_ago_are_deleted_when_one_stops(session):
    set_last_beat(session, beat(session, name="old"), rescue.KEEP_WORKERS + SECOND)
    set_last_beat(session, beat(session, name="yesterday"), rescue.KEEP_WORKERS - SILENT_AFTER)
    rescue.mark_stopped(session, beat(session, name="now"))
    names = session.execute(select(Worker.name).order_by(Worker.name)).scalars().all()
    assert names == ["now", "yesterday"]


def test_running_jobs_of_a_worker_are_found_with_their_processes(session):
    worker_id = beat(session)
    first = take(session, put(session), worker_id=worker_id, pid=11)
    second = take(session, put(session), worker_id=worker_id, pid=12)
    claims.succeed(
        session, take(session, put(session), worker_id=worker_id), claims.Notes(), result=1
    )
    take(session, put(session), worker_id=beat(session))
    assert rescue.find_running(session, worker_id) == {first.claim_id: 11, second.claim_id: 12}


# --- releasing ---


def test_job_of_a_killed_process_is_released(session):
    claim, other = take(session, put(session)), take(session, put(session))
    assert rescue.release_claims(session, [claim.claim_id, uuid4()]) == 1
    assert_released(session, claim.job_id, "the process that ran it was killed")
    assert state(session, other.job_id) == JobState.RUNNING


def test_no_claims_release_nothing(session):
    claim = take(session, put(session))
    assert rescue.release_claims(session, []) == 0
    assert state(session, claim.job_id) == JobState.RUNNING


def test_jobs_of_a_killed_worker_are_released(session):
    worker_id = beat(session)
    ids = [take(session, put(session), worker_id=worker_id).job_id for _ in range(2)]
    other = take(session, put(session))
    assert rescue.release_worker(session, worker_id) == 2
    for job_id in ids:
        assert_released(session, job_id, "its worker was killed")
    assert state(session, other.job_id) == JobState.RUNNING
    assert rescue.release_worker(session, worker_id) == 0


def test_jobs_that_have_ended_are_not_released(session):
    claim = take(session, put(session))
    claims.succeed(session, claim, claims.Notes(), result=None)
    before = columns(session, claim.job_id)
    assert rescue.release_claims(session, [claim.claim_id]) == 0
    assert columns(session, claim.job_id) == before


@pytest.mark.parametrize("end", ["silence", "stop", "no trace"])
def test_jobs_of_silent_workers_are_released(session, end):
    worker_id = beat(session) if end != "no trace" else uuid4()
    claim = take(session, put(session), worker_id=worker_id)
    set_start(session, claim.job_id, SILENT_AFTER + SECOND)
    if end == "silence":
        set_last_beat(session, worker_id, SILENT_AFTER + SECOND)
    elif end == "stop":
        rescue.mark_stopped(session, worker_id)
    assert rescue.release_silent_workers(session, make_judge(session)) == 1
    assert_released(session, claim.job_id, "its worker gave no sign of life for 30 s")


def test_jobs_of_living_workers_are_not_released(session):
    claim = take(session, put(session), worker_id=beat(session))
    set_start(session, claim.job_id, timedelta(hours=1))
    assert rescue.release_silent_workers(session, make_judge(session)) == 0
    assert state(session, claim.job_id) == JobState.RUNNING


def test_job_that_has_just_started_is_not_released(session):
    """Its worker may have written no sign of life yet."""
    claim = take(session, put(session), worker_id=uuid4())
    assert rescue.release_silent_workers(session, make_judge(session)) == 0
    assert state(session, claim.job_id) == JobState.RUNNING


def test_job_beyond_its_time_limit_is_released(session):
    late, in_time, slow = (take(session, put(session)).job_id for _ in range(3))
    limit = Plain.policy.time_limit + rescue.OVERDUE
    set_start(session, late, limit + SECOND)
    set_start(session, in_time, limit - 5 * SECOND)
    change(session, slow, time_limit=3600)
    set_start(session, slow, limit + SECOND)
    assert rescue.release_overdue(session, make_judge(session)) == 1
    assert_released(session, late, "it ran beyond its time limit")
    assert [state(session, job_id) for job_id in (in_time, slow)] == ["running", "running"]


# --- what becomes of them ---


def release_by_claim(session, claim):
    return rescue.release_claims(session, [claim.claim_id])


def release_by_worker(session, claim):
    return rescue.release_worker(session, row(session, claim.job_id).worker_id)


def release_by_silence(session, claim):
    change(session, claim.job_id, started_at=LONG_AGO)
    return rescue.release_silent_workers(session, make_judge(session))


def release_by_time(session, claim):
    change(session, claim.job_id, started_at=LONG_AGO)
    return rescue.release_overdue(session, make_judge(session))


RELEASES = [release_by_claim, release_by_worker, release_by_silence, release_by_time]


@pytest.mark.parametrize("release", RELEASES)
def test_poison_job_ends_when_its_attempts_are_used_up(session, release):
    job_id = put(session, Only())
    for attempt in range(1, 6):
        claim = take(session, job_id)
        assert (claim.attempt, release(session, claim)) == (attempt, 1)
    job = row(session, job_id)
    assert (job.state, job.attempt, len(job.errors), job.unique_key) == ("failed", 5, 5, None)
    assert {error["type"] for error in job.errors} == {"WorkerLost"}


@pytest.mark.parametrize("release", RELEASES)
def test_job_with_one_attempt_ends_at_once(session, release):
    claim = take(session, put(session, Once()))
    assert release(session, claim) == 1
    assert (state(session, claim.job_id), try_claim(session, claim.job_id)) == ("failed", None)


def test_body_that_was_thought_dead_cannot_end_its_job(session):
    claim = take(session, put(session))
    rescue.release_claims(session, [claim.claim_id])
    with pytest.raises(claims.LostClaim):
        claims.succeed(session, claim, claims.Notes(), result=1)
    assert take(session, claim.job_id).attempt == 2


def test_child_is_counted_when_its_last_attempt_died(session):
    parent, (child,) = batch(session, 1, then=False)
    change(session, child, max_attempts=2)
    rescue.release_claims(session, [take(session, child).claim_id])
    assert numbers(session, parent) == (JobState.WAITING, 1, 0)
    rescue.release_claims(session, [take(session, child).claim_id])
    assert numbers(session, parent) == (JobState.FAILED, 0, 1)


@only_on_postgres
def test_job_that_just_ends_is_not_waited_for(runtime):
    worker_id = uuid4()
    with runtime.unit_of_work() as session:
        ending, dead = (take(session, put(session), worker_id=worker_id) for _ in range(2))
    with runtime.unit_of_work() as session:
        claims.mark_ended(session, ending, JobState.SUCCEEDED, claims.Notes())
        with runtime.unit_of_work() as keeper:
            assert rescue.release_worker(keeper, worker_id) == 1
    with runtime.read_only() as session:
        states = [state(session, claim.job_id) for claim in (ending, dead)]
    assert states == [JobState.SUCCEEDED, JobState.SCHEDULED]


# --- who may judge ---


def silent_job(session):
    claim = take(session, put(session), worker_id=uuid4())
    set_start(session, claim.job_id, SILENT_AFTER + SECOND)
    return claim.job_id


@pytest.mark.parametrize("release", [rescue.release_silent_workers, rescue.release_overdue])
@pytest.mark.parametrize("flaw", ["new", "silent", "stopped", "unknown", "of the release before"])
def test_judge_that_is_not_steady_itself_releases_nothing(session, release, flaw):
    job_id = silent_job(session)
    change(session, job_id, started_at=LONG_AGO)
    judge = make_judge(session, steady=SILENT_AFTER - SECOND if flaw == "new" else 2 * SILENT_AFTER)
    if flaw == "silent":
        set_last_beat(session, judge.worker_id, judge.unbroken + SECOND)
    elif flaw == "stopped":
        rescue.mark_stopped(session, judge.worker_id)
    elif flaw == "unknown":
        judge = rescue.Judge(uuid4(), SILENT_AFTER)
    elif flaw == "of the release before":
        session.execute(update(Worker).values(steady_since=None))
    assert release(session, judge) == 0
    assert state(session, job_id) == JobState.RUNNING


def test_series_of_heartbeats_goes_on_while_they_are_close(session):
    judge = make_judge(session, steady=timedelta(hours=1))
    before = worker(session, judge.worker_id).steady_since
    set_last_beat(session, judge.worker_id, judge.unbroken - SECOND)
    beat(session, judge.worker_id, silent_after=SILENT_AFTER)
    assert worker(session, judge.worker_id).steady_since == before


@pytest.mark.parametrize("gap", ["silence", "stop"])
def test_series_of_heartbeats_begins_again_after_a_gap(session, gap):
    judge = make_judge(session, steady=timedelta(hours=1))
    before = worker(session, judge.worker_id).steady_since
    if gap == "silence":
        set_last_beat(session, judge.worker_id, judge.unbroken + SECOND)
    else:
        rescue.mark_stopped(session, judge.worker_id)
    beat(session, judge.worker_id, silent_after=SILENT_AFTER)
    assert worker(session, judge.worker_id).steady_since > before + timedelta(minutes=59)


# --- kinds that no worker knows ---

DAY = timedelta(days=1)


def postpone(session, job_id, *, known=()):
    kinds = {kind.policy.kind: kind for kind in known}
    return rescue.postpone_unknown(session, job_id, kinds=kinds, at_most=DAY)


def make_due(session, job_id):
    change(session, job_id, run_at=LONG_AGO)
    relay.queue_due(session)


def test_job_of_an_unknown_kind_waits_without_being_charged(session):
    job_id = put(session)
    for _ in range(3):
        make_due(session, job_id)
        assert postpone(session, job_id) == JobState.SCHEDULED
    job = row(session, job_id)
    assert (job.attempt, job.sent_at, len(job.errors)) == (0, None, 1)
    assert job.errors[0]["message"] == "no task is called 'test.plain'"
    assert take(session, job_id).attempt == 1


def test_job_of_a_kind_that_stays_unknown_is_discarded(session):
    parent, (child,) = batch(session, 1, then=False)
    make_due(session, child)
    postpone(session, child)
    error = row(session, child).errors[0]
    day_ago = (read_clock(session) - DAY - SECOND).isoformat()
    change(session, child, errors=[{**error, "at": day_ago}])
    make_due(session, child)
    assert postpone(session, child) == JobState.DISCARDED
    assert row(session, child).errors[-1]["message"] == (
        "no worker has known the kind 'test.plain' for 1 day, 0:00:00"
    )
    assert numbers(session, parent) == (JobState.FAILED, 0, 1)


def test_job_that_ran_after_its_kind_was_unknown_waits_again(session):
    job_id = put(session)
    make_due(session, job_id)
    postpone(session, job_id)
    error = row(session, job_id).errors[0]
    started = read_clock(session) - DAY
    before = {**error, "at": (started - DAY).isoformat()}
    change(session, job_id, errors=[before], started_at=started)
    make_due(session, job_id)
    assert postpone(session, job_id) == JobState.SCHEDULED


def test_job_that_was_retried_after_a_discard_waits_again(session):
    job_id = put(session)
    old = {"type": "Discarded", "at": LONG_AGO.isoformat(), "message": "", "traceback": ""}
    change(session, job_id, errors=[{**old, "type": "UnknownJob"}, old])
    assert postpone(session, job_id) == JobState.SCHEDULED


@pytest.mark.parametrize("why", ["known", "running", "not there"])
def test_job_that_only_a_message_calls_unknown_is_left_alone(session, why):
    job_id = uuid4() if why == "not there" else put(session)
    if why == "running":
        take(session, job_id)
    assert postpone(session, job_id, known=[Plain] if why == "known" else []) is None
    assert count(session, Job.state == JobState.SCHEDULED) == 0


# --- claims whose runs never started ---


def test_claim_that_never_started_is_undone(session):
    claim, other = take(session, put(session)), take(session, put(session))
    assert claims.undo_claims(session, [claim.claim_id, uuid4()]) == [claim.job_id]
    job = row(session, claim.job_id)
    assert (job.state, job.attempt, job.claim_id, job.sent_at) == ("queued", 0, None, None)
    assert state(session, other.job_id) == JobState.RUNNING
    assert take(session, claim.job_id).attempt == 1


# --- jobs that ran together ---


def take_together(session, number, **worker):
    """Claim jobs that one message has named."""
    taken = [take(session, put(session), **worker) for _ in range(number)]
    message = update(Job).where(Job.id.in_([claim.job_id for claim in taken]))
    session.execute(message.values(message_id=uuid4(), claim_id=taken[0].claim_id))
    return taken[0].claim_id, [claim.job_id for claim in taken]


def release_by_claim(session, claim_id, _worker_id):
    return rescue.release_claims(session, [claim_id])


def release_by_worker(session, _claim_id, worker_id):
    return rescue.release_worker(session, worker_id)


@pytest.mark.parametrize("release", [release_by_claim, release_by_worker])
def test_death_is_not_charged_to_jobs_that_ran_together(session, release):
    worker_id = uuid4()
    claim_id, ids = take_together(session, 3, worker_id=worker_id)
    other = take(session, put(session))
    assert release(session, claim_id, worker_id) == 3
    for job_id in ids:
        job = row(session, job_id)
        assert (job.state, job.attempt, job.sent_at, job.errors) == ("queued", 0, None, None)
        assert job.message_id == job_id
    assert state(session, other.job_id) == JobState.RUNNING


def test_death_is_charged_to_a_job_that_ran_alone_after_it_ran_together(session):
    worker_id = uuid4()
    claim_id, (job_id,) = take_together(session, 1)
    rescue.release_claims(session, [claim_id])
    take(session, job_id, worker_id=worker_id)
    assert rescue.release_worker(session, worker_id) == 1
    job = row(session, job_id)
    assert (job.state, job.attempt, len(job.errors)) == ("scheduled", 1, 1)
