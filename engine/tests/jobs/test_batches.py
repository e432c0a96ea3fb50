"""Jobs that wait for other jobs."""

import threading
from datetime import timedelta
from functools import partial

import pytest
from job_rows import (
    KINDS,
    NOW,
    Limited,
    Once,
    Only,
    Parent,
    Plain,
    Then,
    batch,
    change,
    children_of,
    count,
    finish,
    numbers,
    of_kind,
    put,
    row,
    run,
    spawn,
    state,
    take,
)
from nightshift.database import Session
from nightshift.errors import PermanentError
from nightshift.jobs import Cancel, Discard, Snooze, batches, care, claims, insight
from nightshift.jobs.models import Job, JobState
from nightshift.jobs.session import get_carried
from sqlalchemy import create_engine

BAD_ENDS = ["failed", "discarded", "cancelled"]


# --- children ---


def test_children_are_seen_when_their_parent_waits(runtime):
    with runtime.unit_of_work() as session:
        job_id = put(session, Parent())
        parent = run(session, job_id)
    with runtime.unit_of_work() as session:
        parent.spawn(session, [Plain(number=1), Plain(number=2)])
        with runtime.read_only() as other:
            assert count(other, Job.parent_id == job_id) == 0
        parent.finish(session)
    with runtime.read_only() as session:
        assert numbers(session, job_id) == (JobState.WAITING, 2, 0)
        assert count(session, Job.parent_id == job_id, Job.state == JobState.QUEUED) == 2


def fail_after_spawn(runtime, parent):
    with runtime.unit_of_work() as session:
        parent.spawn(session, [Plain()])
        raise ConnectionError


def test_children_of_an_attempt_that_failed_never_were(runtime):
    with runtime.unit_of_work() as session:
        job_id = put(session, Parent())
        parent = run(session, job_id)
    with pytest.raises(ConnectionError):
        fail_after_spawn(runtime, parent)
    with runtime.unit_of_work() as session:
        parent.finish(session)
    with runtime.read_only() as session:
        assert (state(session, job_id), count(session)) == (JobState.SUCCEEDED, 1)


def spawn_and(runtime, parent, end, children=()):
    """Spawn and end the job in one transaction."""
    with runtime.unit_of_work() as session:
        parent.spawn(session, children, then=Then())
        end(session)


@pytest.mark.parametrize("children", [[], [Plain()]])
@pytest.mark.parametrize(
    "outcome", [Discard("no use"), Cancel("not wanted"), Snooze(timedelta(hours=1))]
)
def test_job_that_spawned_can_only_succeed(runtime, outcome, children):
    with runtime.unit_of_work() as session:
        parent = run(session, put(session, Parent()))
    end = partial(parent.finish, outcome=outcome, last=True)
    with pytest.raises(PermanentError, match="return no Discard, Cancel or Snooze"):
        spawn_and(runtime, parent, end, children)
    with runtime.read_only() as session:
        assert (state(session, parent.id), count(session)) == (JobState.RUNNING, 1)


def test_spawn_in_a_transaction_before_the_last_is_refused(runtime):
    with runtime.unit_of_work() as session:
        parent = run(session, put(session, Parent()))
    with pytest.raises(PermanentError, match="in the job's last transaction"):
        spawn_and(runtime, parent, lambda _session: None, [Plain()])
    with runtime.unit_of_work() as session:
        parent.finish(session)
    with runtime.read_only() as session:
        assert (numbers(session, parent.id), count(session)) == ((JobState.SUCCEEDED, 0, 0), 1)


@pytest.mark.parametrize("retry_after", [None, timedelta()])
def test_failure_in_a_transaction_that_spawned_is_refused(runtime, retry_after):
    with runtime.unit_of_work() as session:
        parent = run(session, put(session, Parent()))
    end = partial(parent.fail, error=claims.describe(RuntimeError("no")), retry_after=retry_after)
    with pytest.raises(PermanentError, match=r"run\.spawn"):
        spawn_and(runtime, parent, end, [Plain()])
    with runtime.read_only() as session:
        assert (state(session, parent.id), count(session)) == (JobState.RUNNING, 1)


def test_spawn_in_a_session_that_no_runtime_opened_is_refused(runtime, database_url):
    with runtime.unit_of_work() as session:
        parent = run(session, put(session, Parent()))
    engine = create_engine(database_url)
    with Session(engine) as session, pytest.raises(PermanentError, match=r"run\.unit_of_work"):
        parent.spawn(session, [Plain()])
    engine.dispose()


def test_child_that_is_not_of_the_batch_leaves_the_count_at_zero(session):
    """Written by the release before, which let a body spawn before its last transaction."""
    parent = put(session, Parent())
    a_run = run(session, parent)
    early = [put(session, parent_id=parent) for _ in range(3)]
    for child in early[:2]:
        finish(session, child)
    assert numbers(session, parent) == (JobState.RUNNING, 0, 0)
    a_run.spawn(session, [Plain(number=1)], then=Then())
    a_run.finish(session)
    assert numbers(session, parent) == (JobState.WAITING, 2, 0)
    for child in children_of(session, parent):
        if state(session, child) == JobState.QUEUED:
            finish(session, child)
    (follow_up,) = of_kind(session, Then)
    finish(session, follow_up)
    assert numbers(session, parent) == (JobState.SUCCEEDED, 0, 0)


def test_spawn_is_refused_where_it_could_be_undone(session):
    parent = run(session, put(session, Parent()))
    with session.begin_nested(), pytest.raises(PermanentError, match="inside begin_nested"):
        parent.spawn(session, [Plain()], then=Then())
    parent.finish(session)
    assert parent.state == JobState.SUCCEEDED


def test_children_of_several_calls_are_one_batch(session):
    job_id = put(session, Parent())
    parent = run(session, job_id)
    parent.spawn(session, [Plain(number=1)], then=Then())
    parent.spawn(session, [Plain(number=2), Plain(number=3)])
    parent.finish(session)
    assert numbers(session, job_id) == (JobState.WAITING, 3, 0)
    for child in children_of(session, job_id):
        assert of_kind(session, Then) == []
        finish(session, child)
    (follow_up,) = of_kind(session, Then)
    finish(session, follow_up)
    assert (numbers(session, job_id), row(session, job_id).children) == (
        (JobState.SUCCEEDED, 0, 0),
        4,
    )


def test_unique_child_that_is_there_already_is_not_waited_for(session):
    put(session, Only(number=1))
    job_id = put(session, Parent())
    spawn(session, job_id, [Only(number=1), Only(number=2)])
    assert numbers(session, job_id) == (JobState.WAITING, 1, 0)


def test_result_of_the_parent_is_kept_while_it_waits(session):
    job_id = put(session, Parent())
    parent = run(session, job_id)
    parent.spawn(session, [Plain()])
    parent.finish(session, "spawned")
    assert (row(session, job_id).result, state(session, job_id)) == ("spawned", JobState.WAITING)


# --- counting ---


def test_parent_waits_for_the_last_child(session):
    parent, children = batch(session, 3, then=False)
    for child, open_ in zip(children, (2, 1), strict=False):
        finish(session, child)
        assert numbers(session, parent) == (JobState.WAITING, open_, 0)
    finish(session, children[2])
    assert numbers(session, parent) == (JobState.SUCCEEDED, 0, 0)


@pytest.mark.parametrize("ends", BAD_ENDS)
def test_child_that_did_not_succeed_makes_its_parent_fail(session, ends):
    parent, children = batch(session, 2, then=False)
    finish(session, children[0], JobState(ends))
    assert numbers(session, parent) == (JobState.WAITING, 1, 1)
    finish(session, children[1])
    assert numbers(session, parent) == (JobState.FAILED, 0, 1)


def test_child_that_is_tried_again_is_counted_once_at_its_end(session):
    parent, (child,) = batch(session, 1, then=False)
    for _ in range(3):
        claims.record_failure(session, take(session, child), {}, retry_after=timedelta())
        assert numbers(session, parent) == (JobState.WAITING, 1, 0)
    finish(session, child)
    assert numbers(session, parent) == (JobState.SUCCEEDED, 0, 0)


def test_child_that_runs_again_after_its_end_is_not_counted_again(session):
    parent, children = batch(session, 2, then=False)
    finish(session, children[0])
    change(session, children[0], state=JobState.SCHEDULED)
    finish(session, children[0], JobState.CANCELLED)
    assert numbers(session, parent) == (JobState.WAITING, 1, 0)
    change(session, children[0], state=JobState.SCHEDULED)
    claims.record_failure(session, take(session, children[0]), {}, retry_after=None)
    assert numbers(session, parent) == (JobState.WAITING, 1, 0)


def test_parent_that_is_gone_is_not_missed(session):
    batches.record_child_end(session, put(session), failed=False)
    assert count(session, Job.state == JobState.QUEUED) == 1


def test_end_of_a_parent_frees_its_unique_key(session):
    job_id = put(session, Only())
    spawn(session, job_id, [Plain()])
    assert put(session, Only()) == job_id
    finish(session, *children_of(session, job_id))
    assert state(session, job_id) == JobState.SUCCEEDED
    assert put(session, Only()) != job_id


# --- the follow-up ---


@pytest.mark.parametrize("ends", ["succeeded", *BAD_ENDS])
def test_follow_up_runs_once_after_the_last_child_however_that_ended(session, ends):
    parent, children = batch(session, 2)
    finish(session, children[0], JobState(ends))
    assert of_kind(session, Then) == []
    finish(session, children[1], JobState(ends))
    (follow_up,) = of_kind(session, Then)
    assert (state(session, follow_up), state(session, parent)) == ("queued", "waiting")
    finish(session, follow_up)
    assert of_kind(session, Then) == [follow_up]
    assert state(session, parent) == ("succeeded" if ends == "succeeded" else "failed")


def test_parent_of_a_follow_up_that_failed_fails(session):
    parent, (child,) = batch(session, 1)
    finish(session, child)
    finish(session, *of_kind(session, Then), JobState.FAILED)
    assert numbers(session, parent) == (JobState.FAILED, 0, 1)


def test_follow_up_of_no_children_runs_at_once(session):
    parent, children = batch(session, 0)
    assert children == of_kind(session, Then)
    assert (numbers(session, parent), len(children)) == ((JobState.WAITING, 1, 0), 1)
    finish(session, *children)
    assert numbers(session, parent) == (JobState.SUCCEEDED, 0, 0)


def test_parent_of_no_children_ends_at_once(session):
    parent, children = batch(session, 0, then=False)
    assert (children, numbers(session, parent)) == ([], (JobState.SUCCEEDED, 0, 0))
    assert row(session, parent).finished_at is not None


def test_later_follow_up_takes_the_place_of_an_earlier_one(session):
    job_id = put(session, Parent())
    parent = run(session, job_id)
    parent.spawn(session, [], then=Then())
    parent.spawn(session, [], then=Once())
    parent.finish(session)
    assert (of_kind(session, Then), len(of_kind(session, Once))) == ([], 1)


def test_follow_up_has_the_policy_of_its_kind(session):
    job_id = put(session, Parent())
    spawn(session, job_id, [], then=Once())
    follow_up = row(session, *of_kind(session, Once))
    assert (follow_up.max_attempts, follow_up.queue, follow_up.parent_id) == (1, "default", job_id)


def test_follow_up_of_a_unique_kind_runs_also_when_an_equal_job_is_there(session):
    there = put(session, Only(number=1))
    parents = [put(session, Parent()) for _ in range(2)]
    for job_id in parents:
        spawn(session, job_id, [], then=Only(number=1))
    assert len(of_kind(session, Only)) == 3
    for job_id in parents:
        finish(session, *children_of(session, job_id))
    assert [state(session, job_id) for job_id in (there, *parents)] == [
        "queued",
        "succeeded",
        "succeeded",
    ]


def test_follow_up_may_spawn_too(session):
    parent, (child,) = batch(session, 1)
    finish(session, child)
    (follow_up,) = of_kind(session, Then)
    spawn(session, follow_up, [Plain(number=9)])
    assert (state(session, follow_up), state(session, parent)) == ("waiting", "waiting")
    finish(session, *children_of(session, follow_up))
    assert (state(session, follow_up), state(session, parent)) == ("succeeded", "succeeded")


# --- batches in batches ---


@pytest.mark.parametrize(("ends", "outcome"), [("succeeded", "succeeded"), ("failed", "failed")])
def test_inner_batch_is_counted_when_its_last_child_has_ended(session, ends, outcome):
    outer, (inner,) = batch(session, 1, then=False)
    spawn(session, inner, [Plain(), Plain()])
    first, second = children_of(session, inner)
    finish(session, first)
    assert numbers(session, outer) == (JobState.WAITING, 1, 0)
    finish(session, second, JobState(ends))
    assert (state(session, inner), state(session, outer)) == (outcome, outcome)


def test_inner_batch_of_no_children_is_counted_at_once(session):
    outer, (inner,) = batch(session, 1, then=False)
    spawn(session, inner, [])
    assert (state(session, inner), state(session, outer)) == ("succeeded", "succeeded")


# --- at the same time ---


def test_last_two_children_that_end_at_once_bring_one_follow_up(runtime):
    with runtime.unit_of_work() as session:
        parent, children = batch(session, 6)
        taken = [take(session, child) for child in children]

    def end(claim):
        with runtime.unit_of_work() as session:
            claims.succeed(session, claim, claims.Notes(), result=None)

    threads = [threading.Thread(target=end, args=(claim,)) for claim in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    with runtime.read_only() as session:
        assert len(of_kind(session, Then)) == 1
        assert numbers(session, parent) == (JobState.WAITING, 1, 0)


def test_child_that_ends_waits_for_the_one_that_is_just_being_counted(runtime):
    with runtime.unit_of_work() as session:
        parent, children = batch(session, 2)
        first, second = (take(session, child) for child in children)

    def end():
        with runtime.unit_of_work() as session:
            claims.succeed(session, second, claims.Notes(), result=None)

    thread = threading.Thread(target=end)
    with runtime.unit_of_work() as session:
        claims.succeed(session, first, claims.Notes(), result=None)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(100)
    with runtime.read_only() as session:
        assert (len(of_kind(session, Then)), numbers(session, parent)) == (1, ("waiting", 1, 0))


# --- what there is to see ---


def test_children_of_a_kind_tell_what_became_of_them(session):
    job_id = put(session, Parent())
    spawn(session, job_id, [Plain(number=1), Plain(number=2), Once()])
    first, second = of_kind(session, Plain)
    error = {"type": "A", "message": "no", "traceback": ""}
    claims.record_failure(session, take(session, first), error, retry_after=None)
    claims.succeed(session, take(session, second), claims.Notes(), result=7)
    found = {child["id"]: child for child in batches.read_children(session, job_id, "test.plain")}
    assert set(found) == {first, second}
    assert (found[first]["state"], found[first]["error"]["message"]) == ("failed", "no")
    assert (found[second]["state"], found[second]["result"]) == ("succeeded", 7)
    assert (found[second]["args"], found[second]["error"]) == (
        row(session, second).args,
        None,
    )


def test_progress_of_a_batch_counts_each_child_that_has_ended(session):
    parent, children = batch(session, 3)
    assert batches.count_children(session, parent) == (0, 3)
    finish(session, children[0])
    finish(session, children[1], JobState.FAILED)
    assert batches.count_children(session, parent) == (2, 3)


def test_batch_that_runs_again_shows_the_children_of_its_newest_run_alone(session):
    parent, children = batch(session, 3, then=False)
    for child in children:
        finish(session, child, JobState.FAILED)
    assert batches.count_children(session, parent) == (3, 3)
    care.retry(session, [parent], kinds=KINDS, now=NOW)
    # Also before it has spawned again.
    assert batches.count_children(session, parent) == (0, 0)
    parent_run = run(session, parent)
    for child in children:
        change(session, child, created_at=parent_run.now - timedelta(minutes=1))
    parent_run.spawn(session, [Plain(number=9)])
    parent_run.finish(session)
    assert batches.count_children(session, parent) == (0, 1)
    (shown,) = batches.read_children(session, parent, "test.plain")
    assert shown["args"] == {"number": 9}
    details = insight.read_details(session, parent)
    assert details.children_by_state == {"queued": 1}
    assert [child.id for child in details.children] == [shown["id"]]


def test_follow_up_is_counted_with_the_children(session):
    parent, (child,) = batch(session, 1)
    finish(session, child)
    assert batches.count_children(session, parent) == (1, 2)


@pytest.mark.parametrize("kinds", [KINDS, None])
def test_follow_up_of_a_limited_kind_says_so_where_its_kind_is_known(session, kinds):
    parent = put(session, Parent())
    a_run = run(session, parent)
    a_run.spawn(session, [], then=Limited())
    get_carried(session).kinds = kinds
    a_run.finish(session)
    (follow_up,) = of_kind(session, Limited)
    assert row(session, follow_up).limited == (kinds is not None)


def test_follow_up_is_written_so_that_the_release_before_can_enqueue_it(session):
    """Its table of jobs has no column `limited`."""
    parent, _ = batch(session, 1)
    assert sorted(row(session, parent).follow_up) == [
        "args",
        "kind",
        "max_attempts",
        "priority",
        "queue",
        "time_limit",
    ]


def test_progress_of_no_batch_is_nothing(session):
    assert batches.count_children(session, put(session)) == (0, 0)


def test_spawn_collects_the_children_for_the_early_send(session):
    job_id = put(session, Parent())
    batches.spawn(session, job_id, [Plain()], then=None, now=NOW)
    assert batches.build_waiting_columns(session, job_id)["children_open"] == 1
    assert batches.build_waiting_columns(session, job_id) is None
