"""What a person may do to jobs."""

import threading
from datetime import timedelta
from functools import partial

import pytest
from job_rows import (
    KINDS,
    LONG_AGO,
    NOW,
    QUEUES,
    Limited,
    Only,
    Plain,
    Side,
    Then,
    batch,
    change,
    children_of,
    count,
    finish,
    numbers,
    of_kind,
    only_on_postgres,
    put,
    row,
    spawn,
    state,
    take,
    try_claim,
)
from nightshift.database import read_clock
from nightshift.errors import Conflict, InvalidInput
from nightshift.jobs import care, claims, enqueue_many, relay
from nightshift.jobs.models import Job, JobLog, JobStart, JobState, PausedQueue
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError

KEEP = care.build_retention(succeeded=timedelta(days=7), failed=timedelta(days=30))


# --- cancel ---


@pytest.mark.parametrize("before", ["scheduled", "queued", "held"])
def test_cancel_ends_what_has_not_started(session, before):
    job_id = put(session, delay=timedelta(hours=1) if before == "scheduled" else None)
    if before == "held":
        care.hold(session, [job_id])
    assert state(session, job_id) == before
    assert care.cancel(session, [job_id]) == [job_id]
    job = row(session, job_id)
    assert (job.state, job.finished_at is not None) == (JobState.CANCELLED, True)
    assert care.cancel(session, [job_id]) == []


def test_cancel_of_a_running_job_refuses_its_finish_and_its_progress(session):
    job_id = put(session)
    claim = take(session, job_id)
    care.cancel(session, [job_id])
    for write in (
        lambda: claims.require_valid(session, claim),
        lambda: claims.write_notes(session, claim, claims.Notes(done=1, total=2)),
        lambda: claims.succeed(session, claim, claims.Notes(), result=1),
        lambda: claims.record_failure(session, claim, {}, retry_after=timedelta()),
    ):
        with pytest.raises(claims.LostClaim):
            write()
    assert (state(session, job_id), row(session, job_id).result) == (JobState.CANCELLED, None)


def test_cancel_frees_the_unique_key(session):
    first = put(session, Only())
    assert put(session, Only()) == first
    care.cancel(session, [first])
    assert put(session, Only()) != first


def test_cancelled_child_is_counted_once_and_the_last_one_brings_the_follow_up(session):
    parent, children = batch(session, 2)
    care.cancel(session, children[:1])
    assert numbers(session, parent) == (JobState.WAITING, 1, 1)
    care.cancel(session, children)
    (follow_up,) = of_kind(session, Then)
    assert numbers(session, parent) == (JobState.WAITING, 1, 2)
    finish(session, follow_up)
    assert numbers(session, parent) == (JobState.FAILED, 0, 2)


def test_many_children_are_counted_together(session):
    parent, children = batch(session, 20)
    care.cancel(session, children[:15])
    assert numbers(session, parent) == (JobState.WAITING, 5, 15)


def test_running_child_that_was_cancelled_is_not_counted_by_its_refused_finish(session):
    parent, children = batch(session, 2)
    claim = take(session, children[0])
    care.cancel(session, [children[0]])
    with pytest.raises(claims.LostClaim):
        claims.succeed(session, claim, claims.Notes(), result=None)
    assert numbers(session, parent) == (JobState.WAITING, 1, 1)


def test_cancel_of_a_waiting_parent_cancels_its_open_children_and_runs_no_follow_up(session):
    parent, children = batch(session, 3)
    finish(session, children[0])
    claim = take(session, children[1])
    assert set(care.cancel(session, [parent])) == {parent, *children[1:]}
    assert numbers(session, parent) == (JobState.CANCELLED, 0, 2)
    assert [state(session, child) for child in children] == ["succeeded", "cancelled", "cancelled"]
    with pytest.raises(claims.LostClaim):
        claims.succeed(session, claim, claims.Notes(), result=None)
    assert of_kind(session, Then) == []


def test_child_that_is_cancelled_with_its_parent_and_by_itself_is_counted_once(session):
    parent, children = batch(session, 3)
    assert len(care.cancel(session, [children[1], parent, children[1]])) == 4
    assert numbers(session, parent) == (JobState.CANCELLED, 0, 3)


def test_cancel_of_an_inner_batch_is_counted_by_the_outer_one(session):
    outer, children = batch(session, 1, then=False)
    spawn(session, children[0], [Plain(), Plain()])
    care.cancel(session, children)
    assert numbers(session, children[0]) == (JobState.CANCELLED, 0, 2)
    assert numbers(session, outer) == (JobState.FAILED, 0, 1)


def test_cancel_goes_down_every_generation(session):
    outer, children = batch(session, 1)
    spawn(session, children[0], [Plain(), Plain()])
    assert len(care.cancel(session, [outer])) == 4
    assert count(session, Job.finished_at.is_(None)) == 0


# --- clear ---


def test_clear_cancels_what_has_not_started_in_a_queue(session):
    mails = [
        put(session, Side()),
        put(session, Side(), delay=timedelta(days=1)),
        put(session, Side()),
    ]
    other = put(session)
    running = put(session, Side())
    take(session, running)
    care.hold(session, mails[2:])
    assert [care.clear(session, queue="side", limit=2) for _ in range(3)] == [2, 1, 0]
    assert [state(session, job_id) for job_id in mails] == ["cancelled"] * 3
    assert (state(session, other), state(session, running)) == ("queued", "running")


def test_clear_of_children_ends_their_parent(session):
    parent, _ = batch(session, 5, then=False)
    assert care.clear(session, kind="test.plain") == 5
    assert numbers(session, parent) == (JobState.FAILED, 0, 5)


def test_clear_takes_the_oldest_first(session):
    late, early = put(session, run_at=NOW), put(session, run_at=LONG_AGO)
    assert care.clear(session, queue="default", limit=1) == 1
    assert (state(session, late), state(session, early)) == ("scheduled", "cancelled")


def test_clear_needs_to_know_what(session):
    with pytest.raises(ValueError, match="queue or a kind"):
        care.clear(session)


# --- retry ---


@pytest.mark.parametrize("ends", ["succeeded", "failed", "discarded", "cancelled"])
def test_retry_runs_the_stored_row_again_with_all_its_attempts(session, ends):
    job_id = put(session, Plain(number=7))
    change(session, job_id, errors=[{"attempt": 1}], result="old")
    finish(session, job_id, JobState(ends))
    assert care.retry(session, [job_id], kinds=KINDS, now=NOW) == [job_id]
    job = row(session, job_id)
    assert (job.state, job.attempt, job.args, job.errors) == (
        "scheduled",
        0,
        {"number": 7},
        [{"attempt": 1}],
    )
    # By the database's clock, whatever the caller's says.
    assert timedelta() <= read_clock(session) - job.run_at < timedelta(minutes=1)
    assert (job.result, job.finished_at, job.claim_id, job.sent_at) == (None, None, None, None)
    assert take(session, job_id).attempt == 1


def test_retry_waits_for_a_run_that_was_cancelled_and_goes_on(session):
    job_id = put(session)
    claim = take(session, job_id)
    care.cancel(session, [job_id])
    care.retry(session, [job_id], kinds=KINDS, now=NOW)
    limit = Plain.policy.time_limit
    assert (state(session, job_id), row(session, job_id).run_at) == (
        "scheduled",
        claim.started_at + limit,
    )
    claims.note_return(session.connection(), claim)
    assert timedelta() <= read_clock(session) - row(session, job_id).run_at < timedelta(minutes=1)
    assert take(session, job_id).attempt == 1
    claims.note_return(session.connection(), claim)
    assert state(session, job_id) == "running"


def test_retry_does_not_wait_for_a_cancelled_run_beyond_its_time_limit(session):
    job_id = put(session)
    take(session, job_id)
    care.cancel(session, [job_id])
    change(session, job_id, started_at=NOW)
    care.retry(session, [job_id], kinds=KINDS, now=NOW)
    assert timedelta() <= read_clock(session) - row(session, job_id).run_at < timedelta(minutes=1)


@pytest.mark.parametrize("ends", [JobState.CANCELLED, JobState.SUCCEEDED])
def test_run_that_has_come_back_is_not_waited_for(session, ends):
    job_id = put(session)
    claims.mark_ended(session, take(session, job_id), ends, claims.Notes())
    care.retry(session, [job_id], kinds=KINDS, now=NOW)
    assert timedelta() <= read_clock(session) - row(session, job_id).run_at < timedelta(minutes=1)


def test_retry_leaves_alone_what_has_not_ended(session):
    job_id = put(session)
    assert care.retry(session, [job_id], kinds=KINDS, now=NOW) == []
    assert state(session, job_id) == "queued"


def test_retry_takes_the_unique_key_again(session):
    job_id = put(session, Only(number=1))
    finish(session, job_id, JobState.FAILED)
    care.retry(session, [job_id], kinds=KINDS, now=NOW)
    assert put(session, Only(number=1)) == job_id


def test_retry_onto_a_taken_unique_key_names_its_holder_and_changes_nothing(session):
    first = put(session, Only(number=2))
    finish(session, first, JobState.FAILED)
    holder = put(session, Only(number=2))
    with pytest.raises(Conflict, match=str(holder)):
        care.retry(session, [first], kinds=KINDS, now=NOW)
    assert (state(session, first), state(session, holder)) == ("failed", "queued")


def test_retry_of_an_unknown_kind_or_of_invalid_arguments_is_refused(session):
    unknown, invalid = put(session), put(session)
    for job_id in (unknown, invalid):
        finish(session, job_id, JobState.DISCARDED)
    change(session, unknown, kind="test.gone")
    change(session, invalid, args={"number": "many"})
    with pytest.raises(InvalidInput, match=r"test\.gone"):
        care.retry(session, [unknown], kinds=KINDS, now=NOW)
    with pytest.raises(InvalidInput, match="number"):
        care.retry(session, [invalid], kinds=KINDS, now=NOW)


def test_retried_child_is_not_counted_again(session):
    parent, children = batch(session, 2, then=False)
    finish(session, children[0], JobState.FAILED)
    care.retry(session, children[:1], kinds=KINDS, now=NOW)
    finish(session, children[0])
    assert numbers(session, parent) == (JobState.WAITING, 1, 1)
    finish(session, children[1])
    assert numbers(session, parent) == (JobState.FAILED, 0, 1)


def test_retried_parent_starts_a_new_batch(session):
    parent, children = batch(session, 2)
    care.cancel(session, [parent])
    care.retry(session, [parent], kinds=KINDS, now=NOW)
    spawn(session, parent, [Plain()])
    assert numbers(session, parent) == (JobState.WAITING, 1, 0)
    (new,) = set(children_of(session, parent)) - set(children)
    finish(session, new)
    assert numbers(session, parent) == (JobState.SUCCEEDED, 0, 0)


def test_retry_failed_takes_all_of_a_kind_and_of_equal_unique_ones_the_newest(session):
    plain = [put(session) for _ in range(3)]
    for job_id in plain[:2]:
        finish(session, job_id, JobState.FAILED)
    finish(session, plain[2], JobState.CANCELLED)
    now = read_clock(session)
    assert care.retry_failed(session, "test.plain", kinds=KINDS, now=now) == (2, None)
    assert [state(session, job_id) for job_id in plain] == ["scheduled", "scheduled", "cancelled"]
    unique = []
    for age in (3, 1, 2):
        unique.append(put(session, Only()))
        finish(session, unique[-1], JobState.FAILED)
        change(session, unique[-1], finished_at=NOW - timedelta(hours=age))
    assert care.retry_failed(session, "test.only", kinds=KINDS, now=now) == (1, None)
    assert [state(session, job_id) for job_id in unique] == ["failed", "scheduled", "failed"]


@pytest.mark.parametrize("kind", [Plain, Only])
def test_retry_failed_goes_on_where_the_call_before_ended(session, kind):
    ids = []
    for number in range(5):
        ids.append(put(session, kind(number=number)))
        finish(session, ids[-1], JobState.FAILED)
        change(session, ids[-1], finished_at=NOW - timedelta(hours=number // 2))
    # An open job has the key of the newest: it stays as it is, and must not stop the others.
    blocked = kind is Only
    if blocked:
        put(session, Only(number=0))
    numbers, after = [], None
    while True:
        number, after = care.retry_failed(
            session, kind.policy.kind, kinds=KINDS, now=NOW, after=after, limit=2
        )
        numbers.append(number)
        assert count(session, Job.id.in_(ids), Job.state == JobState.SCHEDULED) == sum(numbers)
        if after is None:
            break
    assert (sum(numbers), max(numbers)) == (5 - blocked, 2)
    assert state(session, ids[0]) == (JobState.FAILED if blocked else JobState.SCHEDULED)


def test_retry_failed_leaves_what_failed_after_it_began(session):
    job_id = put(session)
    finish(session, job_id, JobState.FAILED)
    change(session, job_id, finished_at=NOW + timedelta(seconds=1))
    assert care.retry_failed(session, "test.plain", kinds=KINDS, now=NOW) == (0, None)
    assert state(session, job_id) == JobState.FAILED


@pytest.mark.parametrize("flagged", [False, True])
def test_retry_flags_limited_kinds_and_no_others(session, flagged):
    limited, plain = put(session, Limited()), put(session)
    for job_id in (limited, plain):
        finish(session, job_id, JobState.FAILED)
        # The release that wrote the row, or the one that runs now, may have another limit.
        change(session, job_id, limited=flagged)
    care.retry(session, [limited], kinds=KINDS, now=NOW)
    care.retry_failed(session, "test.plain", kinds=KINDS, now=read_clock(session))
    assert [row(session, job_id).limited for job_id in (limited, plain)] == [True, False]


# --- hold, pause ---


def test_held_job_is_not_claimed_and_is_released_by_its_time(session):
    now_due, later = put(session), put(session, delay=timedelta(hours=1))
    change(session, now_due, run_at=LONG_AGO)
    assert set(care.hold(session, [now_due, later])) == {now_due, later}
    relay.queue_due(session)
    assert try_claim(session, now_due) is None
    assert care.hold(session, [now_due]) == []
    assert set(care.release(session, [now_due, later])) == {now_due, later}
    assert (state(session, now_due), state(session, later)) == ("queued", "scheduled")
    assert care.release(session, [now_due]) == []


def test_paused_queue_starts_nothing_and_what_was_sent_is_sent_again(session):
    job_id = put(session, Side())
    change(session, job_id, run_at=LONG_AGO, sent_at=LONG_AGO)
    assert [care.pause(session, "side", now=NOW), care.pause(session, "side", now=NOW)] == [
        True,
        False,
    ]
    assert try_claim(session, job_id) is None
    assert [care.resume(session, "side"), care.resume(session, "side")] == [2, 0]
    messages = relay.mark_due_sent(session, kinds=KINDS, queues=QUEUES, buffer=10_000)
    assert [message.lead for message in messages] == [job_id]
    assert session.execute(select(func.count()).select_from(PausedQueue)).scalar_one() == 0


def test_resume_writes_a_bounded_number_of_rows_and_ends_with_the_pause(session):
    ids = [put(session, Side()) for _ in range(5)]
    for minutes, job_id in enumerate(ids):
        change(session, job_id, sent_at=LONG_AGO + timedelta(minutes=minutes))
    care.pause(session, "side", now=NOW)
    unsent = []
    for written in (2, 2, 2, 0):
        assert care.resume(session, "side", limit=2) == written
        unsent.append([row(session, job_id).sent_at is None for job_id in ids].count(True))
        still = session.execute(select(func.count()).select_from(PausedQueue)).scalar_one()
        assert still == (len(unsent) < 3)
    assert unsent == [2, 4, 5, 5]
    assert care.resume(session, "default") == 0


# --- prune ---


def old(session, ends=JobState.SUCCEEDED, *, days, args=None, parent_id=None):
    job_id = put(session, args, parent_id=parent_id)
    finish(session, job_id, ends)
    at = NOW - timedelta(days=days)
    change(session, job_id, finished_at=at, started_at=at)
    return job_id


def exists(session, job_id):
    return count(session, Job.id == job_id) == 1


def test_prune_keeps_each_state_for_its_time_and_the_last_good_run(session):
    gone = [
        old(session, days=8),
        old(session, days=9),
        *(old(session, JobState(s), days=31) for s in ("failed", "discarded", "cancelled")),
    ]
    last_good = old(session, days=50, args=Side())
    kept = [
        last_good,
        old(session, days=6),
        put(session),
        *(old(session, JobState(s), days=29) for s in ("failed", "cancelled")),
    ]
    session.add(JobLog(job_id=gone[0], attempt=1, at=NOW, line="a line"))
    session.flush()
    pruned = [care.prune(session, KEEP, now=NOW, limit=3) for _ in range(4)]
    # The last good run is the oldest, and takes one of the three places each time.
    assert pruned == [(2, True), (2, True), (1, True), (0, False)]
    assert [exists(session, job_id) for job_id in gone] == [False] * 5
    assert [exists(session, job_id) for job_id in kept] == [True] * 5
    assert session.execute(select(func.count()).where(JobLog.job_id == gone[0])).scalar_one() == 0


def test_prune_spares_open_batches_and_parents_before_their_children(session):
    old(session, days=0)  # so that no other is the last good run
    parent, children = batch(session, 2, then=False)
    for child in children:
        change(session, child, finished_at=LONG_AGO, started_at=LONG_AGO, state="succeeded")
    assert care.prune(session, KEEP, now=NOW) == (0, False)
    change(session, parent, state=JobState.FAILED, finished_at=LONG_AGO)
    assert [care.prune(session, KEEP, now=NOW)[0] for _ in range(3)] == [2, 1, 0]
    assert not exists(session, parent)


def count_rows(session, model, job_id):
    return session.execute(select(func.count()).where(model.job_id == job_id)).scalar_one()


def test_prune_deletes_the_oldest_first(session):
    newer, older = old(session, days=31, ends=JobState.FAILED), old(session, days=90)
    old(session, days=0)  # so that no other is the last good run
    assert care.prune(session, KEEP, now=NOW, limit=1) == (1, True)
    assert (exists(session, newer), exists(session, older)) == (True, False)


def test_start_that_a_rate_may_count_outlives_its_job(runtime):
    keep = {"succeeded": timedelta(days=7), "failed": timedelta(days=30)}
    with runtime.unit_of_work() as session:
        old(session, days=0)
        job_id = old(session, days=90)
        for days in (90, 300, *range(400, 405)):
            at = NOW - timedelta(days=days)
            session.add(JobStart(job_id=job_id, at=at, kind="test.dropped"))
    assert care.prune_all(runtime.unit_of_work, **keep, now=NOW) == 1
    with runtime.unit_of_work() as session:
        assert count_rows(session, JobStart, job_id) == 2
        session.execute(delete(JobStart))


def test_prune_deletes_a_bounded_number_of_log_lines_before_their_job(session):
    old(session, days=0)  # so that no other is the last good run
    job_id = old(session, days=50)
    session.add_all(JobLog(job_id=job_id, attempt=1, at=NOW, line=str(n)) for n in range(5))
    session.flush()
    left = []
    while True:
        number, more = care.prune(session, KEEP, now=NOW, limit=2)
        left.append((number, count_rows(session, JobLog, job_id), exists(session, job_id)))
        if not more:
            break
    assert left == [(0, 3, True), (0, 1, True), (1, 0, False), (0, 0, False)]


def test_prune_of_everything_goes_on_after_the_log_lines(runtime):
    with runtime.unit_of_work() as session:
        old(session, days=0)
        job_id = old(session, days=50)
        lines = [
            {"job_id": job_id, "attempt": 1, "at": NOW, "line": ""}
            for _ in range(2 * care.BATCH + 1)
        ]
        session.execute(insert(JobLog), lines)
    keep = {"succeeded": timedelta(days=7), "failed": timedelta(days=30)}
    assert care.prune_all(runtime.unit_of_work, **keep, now=NOW) == 1
    with runtime.read_only() as session:
        assert (exists(session, job_id), count_rows(session, JobLog, job_id)) == (False, 0)


# --- at the same time ---


def test_cancel_of_a_parent_waits_for_the_last_child_and_catches_the_follow_up(runtime):
    with runtime.unit_of_work() as session:
        parent, (child,) = batch(session, 1)
        claim = take(session, child)
    cancelled = []

    def cancel():
        with runtime.unit_of_work() as session:
            cancelled.extend(care.cancel(session, [parent]))

    with runtime.unit_of_work() as session:
        claims.succeed(session, claim, claims.Notes(), result=None)
        thread = threading.Thread(target=cancel)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(100)
    with runtime.read_only() as session:
        (follow_up,) = of_kind(session, Then)
        assert set(cancelled) == {parent, follow_up}
        assert numbers(session, parent) == (JobState.CANCELLED, 0, 1)
        assert state(session, child) == JobState.SUCCEEDED


def test_cancel_of_a_job_that_just_finishes_changes_nothing(runtime):
    with runtime.unit_of_work() as session:
        claim = take(session, put(session))
    cancelled = []

    def cancel():
        with runtime.unit_of_work() as session:
            cancelled.append(care.cancel(session, [claim.job_id]))

    with runtime.unit_of_work() as session:
        claims.succeed(session, claim, claims.Notes(), result=1)
        thread = threading.Thread(target=cancel)
        thread.start()
        thread.join(0.3)
    thread.join(100)
    with runtime.read_only() as session:
        assert (cancelled, state(session, claim.job_id)) == ([[]], JobState.SUCCEEDED)


def test_two_cancels_of_one_batch_count_each_child_once(runtime):
    with runtime.unit_of_work() as session:
        parent, children = batch(session, 30, then=False)

    def cancel(ids):
        with runtime.unit_of_work() as session:
            care.cancel(session, ids)

    threads = [
        threading.Thread(target=cancel, args=(ids,))
        for ids in (children[:20], children[10:], [parent])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    with runtime.read_only() as session:
        left, open_, failed = numbers(session, parent)
        assert (left in {"cancelled", "failed"}, open_, failed) == (True, 0, 30)


@only_on_postgres
def test_clear_comes_back_for_what_somebody_just_holds(runtime):
    with runtime.unit_of_work() as session:
        job_id, other = put(session), put(session)
    numbers = []

    def clear():
        for _ in range(3):
            with runtime.unit_of_work() as session:
                numbers.append(care.clear(session, kind="test.plain"))

    with runtime.unit_of_work() as session:
        session.execute(select(Job.id).where(Job.id == job_id).with_for_update())
        thread = threading.Thread(target=clear)
        thread.start()
        thread.join(0.5)
        assert numbers == [1]
    thread.join(100)
    with runtime.read_only() as session:
        assert (numbers, state(session, job_id), state(session, other)) == (
            [1, 1, 0],
            "cancelled",
            "cancelled",
        )


@only_on_postgres
@pytest.mark.parametrize("again", ["retry", "retry_failed"])
def test_retry_takes_unique_keys_in_the_order_of_callers(runtime, again):
    jobs = [Only(number=number) for number in range(300)]
    with runtime.unit_of_work() as session:
        ids = enqueue_many(session, jobs, now=NOW)
        ended = {"state": JobState.FAILED, "finished_at": NOW, "unique_key": None}
        session.execute(update(Job).values(ended))
    errors = []

    def work(change):
        try:
            with runtime.unit_of_work() as session:
                change(session)
        except (DBAPIError, Conflict) as error:
            errors.append(type(error).__name__)

    def retry(session):
        if again == "retry":
            care.retry(session, ids, kinds=KINDS, now=NOW)
        else:
            care.retry_failed(session, "test.only", kinds=KINDS, now=NOW)

    changes = [retry, partial(enqueue_many, jobs=jobs, now=NOW)]
    threads = [threading.Thread(target=work, args=(change,)) for change in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # The one that came second may find the keys taken, and says so; neither is a deadlock's victim.
    assert set(errors) <= {"Conflict"}
