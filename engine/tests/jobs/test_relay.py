"""Which rows the broker is told of, and when."""

import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from job_rows import (
    FAR_AHEAD,
    KINDS,
    LONG_AGO,
    NOW,
    QUEUES,
    Limited,
    Plain,
    Rated,
    Side,
    batch,
    change,
    count,
    finish,
    only_on_postgres,
    put,
    row,
    state,
    take,
    try_claim,
)
from nightshift.jobs import JobArgs, care, claims, enqueue_many, relay
from nightshift.jobs.models import Job, JobState
from nightshift.jobs.relay import Notification
from sqlalchemy import event, select, text, update

MINUTE = timedelta(minutes=1)


def send(session, *, queues=QUEUES, kinds=KINDS, buffer=100):
    """Mark what is due as sent, as the keeper does, and return the ids."""
    messages = relay.mark_due_sent(session, kinds=kinds, queues=queues, buffer=buffer)
    return [job_id for message in messages for job_id in message.job_ids]


def send_early(session, ids, *, buffer=100):
    """Mark jobs as sent, as the caller does after its commit, and return the ids."""
    messages = relay.mark_sent(session, ids, kinds=KINDS, buffer=buffer)
    return [job_id for message in messages for job_id in message.job_ids]


def send_lost(session, ready, *, queues=QUEUES, after=MINUTE):
    """Mark lost messages as not sent, where the broker has so many ready, and return the ids."""
    before = sent(session)
    relay.mark_lost_unsent(
        session, count_ready=lambda queue: ready[queue], queues=queues, after=after
    )
    return list(before - sent(session))


def sent(session):
    """Return the ids of the rows that are marked as sent."""
    return set(session.execute(select(Job.id).where(Job.sent_at.is_not(None))).scalars())


def put_many(session, number, kind=Plain, **options):
    return enqueue_many(session, [kind(number=n) for n in range(number)], now=NOW, **options)


# --- early, by the caller ---


def test_caller_sends_what_is_due(session):
    job_id = put(session, Side(number=3))
    messages = relay.mark_sent(session, [job_id], kinds=KINDS, buffer=10)
    assert messages == [Notification((job_id,), "test.side", "side", {"number": 3})]
    sent_at = row(session, job_id).sent_at
    assert abs(sent_at - datetime.now(UTC)) < MINUTE


def test_caller_sends_nothing_that_is_not_queued(session):
    scheduled, held, running = put(session, run_at=FAR_AHEAD), put(session), put(session)
    care.hold(session, [held])
    take(session, running)
    assert send_early(session, [scheduled, held, running, uuid4()]) == []
    assert sent(session) == set()


def test_caller_sends_nothing_twice(session):
    job_id = put(session)
    assert [send_early(session, [job_id]) for _ in range(2)] == [[job_id], []]


def test_caller_sends_no_limited_kind(session):
    assert send_early(session, [put(session, Limited()), put(session, Rated())]) == []


def test_caller_sends_to_no_full_queue(session):
    send_early(session, put_many(session, 3))
    here, there = put(session), put(session, Side())
    assert send_early(session, [here, there], buffer=3) == [there]


def test_caller_sends_to_no_paused_queue(session):
    care.pause(session, "side", now=NOW)
    here, there = put(session), put(session, Side())
    assert send_early(session, [here, there]) == [here]


@pytest.mark.parametrize(
    ("waits", "ours", "sent_early"),
    [
        ({"priority": 0}, {"priority": 9}, False),
        ({"priority": 5}, {"priority": 5}, False),
        ({"priority": 9}, {"priority": 0}, True),
    ],
)
def test_job_of_a_caller_does_not_overtake_what_waits_before_it(session, waits, ours, sent_early):
    for job_id in put_many(session, relay.OVERTAKEN + 1, **waits):
        change(session, job_id, run_at=LONG_AGO)
    job_id = put(session, **ours)
    assert send_early(session, [job_id]) == ([job_id] if sent_early else [])


def test_jobs_of_a_caller_do_not_wait_for_each_other(session):
    ids = [put(session, priority=priority) for priority in (0, 9, 5)]
    assert set(send_early(session, ids)) == set(ids)


def test_one_more_urgent_job_that_waits_is_not_overtaken(session):
    put(session, priority=3)
    same, less_urgent = put(session, priority=3), put(session, priority=4)
    assert send_early(session, [same, less_urgent]) == [same]


def test_callers_that_commit_at_the_same_time_both_send(session):
    """Each sees the other's job as one that waits."""
    ids = [put(session) for _ in range(relay.OVERTAKEN)]
    for job_id in ids:
        change(session, job_id, run_at=LONG_AGO)
    last = put(session)
    assert send_early(session, [last]) == [last]


def test_job_that_was_enqueued_later_does_not_hold_an_equal_one_back(session):
    for job_id in put_many(session, relay.OVERTAKEN + 1):
        change(session, job_id, run_at=NOW + MINUTE)
    job_id = put(session)
    assert send_early(session, [job_id]) == [job_id]


@pytest.mark.parametrize("waits", ["side", "scheduled", "held", "limited"])
def test_job_of_a_caller_waits_for_none_that_does_not_come_before_it(session, waits):
    if waits == "side":
        put(session, Side(), priority=0)
    elif waits == "scheduled":
        put(session, priority=0, run_at=FAR_AHEAD)
    elif waits == "held":
        care.hold(session, [put(session, priority=0)])
    else:
        put(session, Limited(), priority=0)
    job_id = put(session, priority=9)
    assert send_early(session, [job_id]) == [job_id]


def test_caller_sends_no_row_that_is_flagged_as_limited(session):
    change(session, job_id := put(session), limited=True)
    assert send_early(session, [job_id]) == []


def test_callers_messages_are_in_turn(session):
    late = put(session, priority=5)
    urgent = put(session, priority=0)
    change(session, early := put(session, priority=5), run_at=LONG_AGO)
    assert send_early(session, [late, urgent, early]) == [urgent, early, late]


# --- what became due ---


def test_due_jobs_are_queued(session):
    due, later = put(session, run_at=LONG_AGO), put(session, run_at=FAR_AHEAD)
    relay.queue_due(session)
    assert (state(session, due), state(session, later)) == ("queued", "scheduled")


def test_job_that_is_retried_is_sent_again(session):
    job_id = put(session)
    send(session)
    claims.record_failure(session, try_claim(session, job_id), {}, retry_after=timedelta())
    assert row(session, job_id).sent_at is not None
    change(session, job_id, run_at=LONG_AGO)
    relay.queue_due(session)
    assert (state(session, job_id), row(session, job_id).sent_at) == ("queued", None)
    assert send(session) == [job_id]


# --- the relay ---


def test_relay_sends_what_is_due_of_every_queue_that_it_knows(session):
    scheduled = put(session, run_at=LONG_AGO)
    queued = put(session)
    put(session, run_at=FAR_AHEAD)
    side = put(session, Side())
    found = send(session)
    assert (found.index(scheduled) < found.index(queued), set(found)) == (
        True,
        {scheduled, queued, side},
    )
    assert sent(session) == set(found)
    assert send(session) == []


def test_relay_sends_by_priority_and_then_by_time(session):
    late = put(session, priority=5)
    change(session, early := put(session, priority=5), run_at=LONG_AGO)
    last, first = put(session, priority=9), put(session, priority=0)
    assert send(session, buffer=2) == [first, early]
    finish(session, first)
    finish(session, early)
    assert send(session, buffer=2) == [late, last]


def test_relay_fills_the_buffer_of_each_queue_and_no_more(session):
    put_many(session, 5)
    put_many(session, 2, Side)
    assert len(send(session, buffer=3)) == 3 + 2
    assert send(session, buffer=3) == []
    assert len(send(session, buffer=4)) == 1


def test_job_that_was_claimed_makes_room_in_the_buffer(session):
    put_many(session, 3)
    (first,) = send(session, buffer=1)
    take(session, first)
    assert len(send(session, buffer=1)) == 1


def test_relay_sends_at_most_a_batch_of_a_queue(session):
    put_many(session, relay.LARGEST_BATCH + 5)
    assert [len(send(session, buffer=10_000)) for _ in range(3)] == [relay.LARGEST_BATCH, 5, 0]


def test_rows_of_unknown_queues_are_left_alone_and_starve_nothing(session):
    unknown = put_many(session, relay.LARGEST_BATCH + 5, Side, priority=0)
    known = put_many(session, 3)
    assert send(session, queues=["default"], buffer=10) == known
    rows = session.execute(select(Job.state, Job.sent_at).where(Job.id.in_(unknown))).all()
    assert set(rows) == {(JobState.QUEUED, None)}
    assert set(send(session, queues=["default", "side"], buffer=1)) < set(unknown)


def test_relay_that_knows_no_queue_sends_nothing(session):
    put(session)
    assert send(session, queues=[]) == []


def test_relay_sends_jobs_of_a_kind_that_it_does_not_know(session):
    job_id = put(session)
    change(session, job_id, kind="test.newer")
    assert send(session) == [job_id]


def test_paused_queue_is_sent_nothing_until_it_is_resumed(session):
    here, there = put(session), put(session, Side())
    care.pause(session, "side", now=NOW)
    assert send(session) == [here]
    care.resume(session, "side")
    assert send(session) == [there]


def test_waiting_parents_and_held_jobs_are_not_sent(session):
    _, children = batch(session, 2)
    care.hold(session, children)
    assert send(session) == []


# --- limited kinds ---


def test_no_more_jobs_of_a_kind_are_sent_than_may_run(session):
    put_many(session, 5, Limited)
    first, second = send(session)
    assert send(session) == []
    claim = try_claim(session, first)
    assert send(session) == []
    claims.mark_ended(session, claim, JobState.SUCCEEDED, claims.Notes())
    (third,) = send(session)
    assert third not in {first, second}


def test_limit_of_one_kind_leaves_the_room_to_others(session):
    limited, plain = put_many(session, 5, Limited, priority=0), put_many(session, 5)
    found = send(session, buffer=6)
    assert (len(set(found) & set(limited)), len(set(found) & set(plain))) == (2, 4)
    assert set(found[:2]) <= set(limited)


def test_full_buffer_holds_limited_kinds_back_too(session):
    put_many(session, 2, Limited, priority=9)
    put_many(session, 3, priority=0)
    found = send(session, buffer=4)
    assert [row(session, job_id).kind for job_id in found] == ["test.plain"] * 3 + ["test.limited"]


def test_no_more_jobs_of_a_kind_are_started_in_a_period_than_its_rate(session):
    put_many(session, 7, Rated)
    first = send(session)
    assert (len(first), send(session)) == (3, [])
    for job_id in first:
        finish(session, job_id)
    assert send(session) == []
    change(session, first[0], started_at=LONG_AGO)
    assert len(send(session)) == 1


def without(kind):
    """Return the kinds that a release has which does not know this one."""
    return {name: one for name, one in KINDS.items() if one is not kind}


class WithoutLimit(JobArgs, kind="test.limited"):
    """The kind in a release that has no limit for it."""

    number: int = 0


@pytest.mark.parametrize(
    "kinds", [{}, without(Limited), {**KINDS, "test.limited": WithoutLimit}], ids=str
)
def test_limited_jobs_are_left_to_a_release_that_knows_the_limit(session, kinds):
    limited, plain = put_many(session, 5, Limited), put_many(session, 2)
    for job_id in limited:
        finish(session, put(session, Limited()))
        change(session, job_id, run_at=LONG_AGO)
    assert set(send(session, kinds=kinds)) == set(plain)
    assert len(send(session)) == 2


def test_row_that_the_release_before_wrote_without_the_flag_is_limited_too(session):
    ids = put_many(session, 5, Limited)
    for job_id in ids:
        change(session, job_id, limited=False)
    plain = put(session)
    found = send(session)
    assert (len(set(found) & set(ids)), plain in found) == (2, True)
    assert {row(session, job_id).limited for job_id in ids} == {True}
    assert send(session) == []


def test_flagging_is_bounded_and_ends(session):
    ids = put_many(session, 23, Limited)
    for job_id in ids:
        change(session, job_id, limited=False)
    last = put(session)
    change(session, last, run_at=NOW + MINUTE)
    assert set(send(session, buffer=10)) < set(ids)
    assert count(session, Job.limited) == 10
    looks = [send(session, buffer=10) for _ in range(3)]
    assert any(last in look for look in looks)


def test_job_of_a_kind_that_lost_its_limit_is_sent_when_no_release_knows_it(session):
    kinds = {**KINDS, "test.limited": WithoutLimit}
    young, old = put(session, Limited()), put(session, Limited())
    change(session, young, run_at=datetime.now(UTC))
    assert [send(session, kinds=kinds) for _ in range(2)] == [[], [old]]
    assert (row(session, young).limited, row(session, old).limited) == (True, False)


def test_limited_job_is_sent_also_when_its_kind_has_moved_to_another_queue(session):
    job_id = put(session, Limited())
    change(session, job_id, queue="side")
    assert send(session) == [job_id]


def test_held_job_that_is_released_is_admitted_again(session):
    first, second = put_many(session, 2, Limited)
    third = put(session, Limited())
    change(session, third, priority=9)
    assert set(send(session)) == {first, second}
    care.hold(session, [first])
    assert send(session) == [third]
    care.release(session, [first])
    # Its first message is still in the broker, but the row is not admitted: see claims.
    assert (send(session), row(session, first).sent_at) == ([], None)


@only_on_postgres
def test_two_keepers_admit_no_more_than_the_limit(runtime):
    with runtime.unit_of_work() as session:
        put_many(session, 5, Limited)
    with runtime.unit_of_work() as other:
        with runtime.unit_of_work() as one:
            # The other cannot see what the first has marked, and must not count in its place.
            assert [len(send(keeper)) for keeper in (one, other)] == [2, 0]
        assert send(other) == []
    with runtime.unit_of_work() as session:
        for job_id in sent(session):
            finish(session, job_id)
        assert len(send(session)) == 2


@only_on_postgres
def test_two_keepers_send_different_rows(runtime):
    with runtime.unit_of_work() as session:
        ids = put_many(session, 6)
    with runtime.unit_of_work() as one, runtime.unit_of_work() as other:
        first, second = send(one, buffer=4), send(other, buffer=4)
    assert (len(first), len(second), set(first) | set(second)) == (4, 2, set(ids))


@only_on_postgres
def test_two_keepers_queue_what_is_due_without_waiting_for_each_other(runtime):
    with runtime.unit_of_work() as session:
        put_many(session, 6, run_at=LONG_AGO)
    with runtime.unit_of_work() as one, runtime.unit_of_work() as other:
        relay.queue_due(one)
        relay.queue_due(other)
        found = send(one)
    assert len(found) == 6


# --- what the broker did not take ---


def test_job_whose_message_was_not_taken_is_sent_again(session):
    put_many(session, 3)
    first, *others = relay.mark_due_sent(session, kinds=KINDS, queues=QUEUES, buffer=100)
    relay.mark_unsent(session, others)
    assert sent(session) == {first.lead}
    assert set(send(session)) == {message.lead for message in others}


def test_job_that_a_worker_has_claimed_meanwhile_stays_as_it_is(session):
    job_id = put(session)
    messages = relay.mark_sent(session, [job_id], kinds=KINDS, buffer=10)
    try_claim(session, job_id)
    relay.mark_unsent(session, messages)
    assert row(session, job_id).sent_at is not None


def test_job_whose_message_cannot_be_made_is_held_with_the_reason(session):
    bad, good = put(session), put(session)
    send(session)
    relay.hold_unsendable(session, {bad: "its kind is too long"})
    job = row(session, bad)
    assert (job.state, job.sent_at) == (JobState.HELD, None)
    (error,) = job.errors
    assert (error["type"], error["message"], error["attempt"]) == (
        "Unsendable",
        "its kind is too long",
        0,
    )
    assert abs(datetime.fromisoformat(error["at"]) - datetime.now(UTC)) < MINUTE
    assert state(session, good) == JobState.QUEUED


def test_job_that_is_held_as_unsendable_is_sent_after_its_release(session):
    job_id = put(session)
    relay.hold_unsendable(session, {job_id: "no"})
    assert send(session) == []
    care.release(session, [job_id])
    assert send(session) == [job_id]


def test_reason_is_added_to_the_errors_that_are_there(session):
    job_id = put(session)
    claims.record_failure(session, take(session, job_id), {"type": "A"}, retry_after=timedelta())
    change(session, job_id, state=JobState.QUEUED)
    relay.hold_unsendable(session, {job_id: "no"})
    assert [error["type"] for error in row(session, job_id).errors] == ["A", "Unsendable"]


def test_job_that_is_no_longer_queued_is_not_held(session):
    running = put(session)
    take(session, running)
    relay.hold_unsendable(session, {running: "no", uuid4(): "no"})
    assert (state(session, running), row(session, running).errors) == ("running", None)


def test_queue_whose_messages_cannot_be_counted_holds_up_no_other(session, caplog):
    send_long_ago(session, 2)
    side = send_long_ago(session, 2, Side)

    def count_ready(queue):
        if queue == "default":
            raise LookupError("NOT_FOUND - no queue 'default'\nmore")
        return 0

    before = sent(session)
    found = relay.mark_lost_unsent(session, count_ready=count_ready, queues=QUEUES, after=MINUTE)
    assert (found, before - sent(session)) == (2, set(side))
    assert caplog.messages == [
        "the broker cannot count the messages of queue default: NOT_FOUND - no queue 'default'"
    ]


# --- the plans ---


# Lines of a plan that reads every job. These two indexes have only what the broker holds, and what
# runs.
WHOLE_TABLE = re.compile(
    r".*Seq Scan on job\b|SCAN (job|ours|other)\b(?! USING INDEX ix_job_(sent|running)\b)"
)


def fill(session):
    """Write so many rows that a plan which reads the whole table is the worst."""
    for kind, number in ((Plain, 3_000), (Limited, 600), (Side, 3)):
        put_many(session, number, kind)
    done = put_many(session, 600, Rated)
    ended = {"state": JobState.SUCCEEDED, "started_at": LONG_AGO, "finished_at": LONG_AGO}
    session.execute(update(Job).where(Job.id.in_(done)).values(ended))
    put_many(session, 600, run_at=LONG_AGO)
    session.execute(text("analyze"))


def look(session):
    """Do all that the keeper and a caller ask of the ledger, some of it for rows that are there."""
    put_many(session, 2, Rated)
    send(session)
    send_early(session, [put(session), put(session, Side())])
    change(session, send_long_ago(session, 1)[0], sent_at=LONG_AGO)
    nothing = {"count_ready": lambda _: 0, "queues": QUEUES, "after": MINUTE}
    assert relay.mark_lost_unsent(session, **nothing)


def explain(session, statement, parameters):
    """Return the plan of a statement: on Postgres the one for any values of its parameters."""
    if session.get_bind().dialect.name == "sqlite":
        rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "\n".join(row.detail for row in rows)
    names = sorted(parameters, key=len, reverse=True)
    for number, name in enumerate(names, 1):
        statement = statement.replace(f"%({name})s", f"${number}")
    run = session.connection().exec_driver_sql
    run("SET LOCAL plan_cache_mode = force_generic_plan")
    run(f"PREPARE examined AS {statement.replace('%%', '%')}")
    nulls = f"({', '.join(['NULL'] * len(names))})" if names else ""
    plan = "\n".join(row[0] for row in run(f"EXPLAIN EXECUTE examined{nulls}"))
    run("DEALLOCATE examined")
    return plan


def test_statements_of_relay_and_callers_read_no_whole_table(engine, session):
    fill(session)
    statements = {}

    def note(*arguments):
        if "FROM job" in arguments[2] or arguments[2].startswith("UPDATE job"):
            statements[arguments[2]] = arguments[3]

    event.listen(engine, "before_cursor_execute", note)
    try:
        look(session)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert len(statements) > 8
    for statement, parameters in statements.items():
        plan = explain(session, statement, parameters)
        assert not any(map(WHOLE_TABLE.match, plan.splitlines())), f"{statement}\n{plan}"


# --- without a broker ---


def test_next_due_job_is_the_one_of_the_first_priority_that_is_due_first(session):
    late = put(session, priority=1)
    change(session, early := put(session, priority=1), run_at=LONG_AGO)
    change(session, put(session, priority=5), run_at=LONG_AGO)
    due = relay.find_next_due(session)
    assert (due.id, due.kind, due.priority, due.run_at) == (early, "test.plain", 1, LONG_AGO)
    assert relay.find_next_due(session, without=[early]).id == late


def test_next_due_job_may_just_have_become_due(session):
    queued = put(session)
    scheduled = put(session, run_at=LONG_AGO)
    assert relay.find_next_due(session).id == scheduled
    assert (state(session, scheduled), state(session, queued)) == ("queued", "queued")


def test_no_job_is_next_where_none_is_due(session):
    put(session, run_at=FAR_AHEAD)
    change(session, put(session), run_at=FAR_AHEAD)
    assert relay.find_next_due(session) is None


def test_next_due_job_is_of_no_paused_queue(session):
    put(session, Side())
    care.pause(session, "side", now=NOW)
    assert relay.find_next_due(session) is None


def test_choice_of_the_next_due_job_is_narrowed(session):
    put(session, priority=0)
    side = put(session, Side())
    assert relay.find_next_due(session, Job.queue == "side").id == side
    assert relay.find_next_due(session, Job.queue == "side", Job.kind == "test.plain") is None


def test_next_due_job_is_found_whether_or_not_it_was_sent(session):
    job_id = put(session)
    send(session)
    assert relay.find_next_due(session).id == job_id


# --- what the broker lost ---


def send_long_ago(session, number, kind=Plain):
    """Write jobs that were sent one after the other long ago; return their ids in that order."""
    ids = put_many(session, number, kind)
    for index, job_id in enumerate(ids):
        change(session, job_id, sent_at=LONG_AGO + index * MINUTE)
    return ids


def test_as_many_as_the_broker_misses_are_sent_again_the_oldest_first(session):
    ids = send_long_ago(session, 5)
    assert set(send_lost(session, {"default": 3})) == set(ids[:2])
    assert send_lost(session, {"default": 5}) == []


def test_message_that_was_sent_lately_is_not_sent_again(session):
    put_many(session, 3)
    send(session)
    assert send_lost(session, {"default": 0}) == []


def test_lately_sent_messages_count_as_sent_but_only_old_ones_are_sent_again(session):
    old = send_long_ago(session, 1)
    put_many(session, 3)
    send(session)
    assert send_lost(session, {"default": 0}) == old


def test_broker_is_not_asked_about_a_queue_where_nothing_is_old(session):
    put(session)
    send(session)

    def never(queue):
        raise AssertionError(queue)

    assert relay.mark_lost_unsent(session, count_ready=never, queues=QUEUES, after=MINUTE) == 0


def test_each_queue_misses_its_own_messages(session):
    send_long_ago(session, 2)
    side = send_long_ago(session, 2, Side)
    assert set(send_lost(session, {"default": 2, "side": 0})) == set(side)


def test_lost_messages_of_unknown_queues_are_left_alone(session):
    send_long_ago(session, 2, Side)
    assert send_lost(session, {}, queues=["default"]) == []


def test_lost_messages_of_paused_queues_are_left_alone(session):
    send_long_ago(session, 2, Side)
    care.pause(session, "side", now=NOW)
    assert send_lost(session, {}) == []


def test_claimed_jobs_have_lost_no_message(session):
    first, second = send_long_ago(session, 2)
    try_claim(session, first)
    assert send_lost(session, {"default": 1}) == []
    assert send_lost(session, {"default": 0}) == [second]


def test_at_most_a_batch_of_lost_messages_is_sent_again(session):
    ids = put_many(session, relay.LARGEST_BATCH + 5)
    for job_id in ids:
        change(session, job_id, sent_at=LONG_AGO)
    assert len(send_lost(session, {"default": 0})) == relay.LARGEST_BATCH


@pytest.mark.parametrize("ready", [1, 5])
def test_broker_with_more_messages_than_rows_has_lost_none(session, ready):
    send_long_ago(session, 1)
    assert send_lost(session, {"default": ready}) == []


# --- several jobs in one message ---


BUNDLES = {"test.plain": 10, "test.side": 5}


def send_bundles(session, *, buffer=100, bundles=BUNDLES):
    return relay.mark_due_sent(session, kinds=KINDS, queues=QUEUES, buffer=buffer, bundles=bundles)


def sizes(messages):
    return [len(message.job_ids) for message in messages]


def message_ids(session, job_ids):
    found = select(Job.message_id).where(Job.id.in_(job_ids))
    return set(session.execute(found).scalars())


def test_backlog_is_sent_in_messages_of_several_jobs(session):
    ids = put_many(session, 100)
    messages = send_bundles(session)
    assert sizes(messages) == [10] * 10
    assert {one for message in messages for one in message.job_ids} == set(ids) == sent(session)
    found = [message_ids(session, message.job_ids) for message in messages]
    assert all(len(some) == 1 and None not in some for some in found)
    assert len(set.union(*found)) == 10


@pytest.mark.parametrize(("number", "expected"), [(1, [1]), (15, [1] * 15), (40, [5] * 8)])
def test_few_jobs_are_shared_out(session, number, expected):
    put_many(session, number)
    assert sizes(send_bundles(session)) == expected


def test_message_that_names_one_job_has_no_id_of_its_own(session):
    ids = put_many(session, 3)
    send_bundles(session)
    assert message_ids(session, ids) == {None}


def test_message_names_jobs_of_one_kind_and_priority(session):
    put_many(session, 40, priority=1)
    put_many(session, 40, priority=2)
    put_many(session, 40, kind=Limited)
    put_many(session, 40, kind=Side)
    for message in send_bundles(session):
        found = select(Job.kind, Job.priority).where(Job.id.in_(message.job_ids)).distinct()
        assert session.execute(found).all() == [(message.kind, session.execute(found).one()[1])]


def test_kind_that_is_not_bundled_is_sent_one_by_one(session):
    put_many(session, 60)
    assert sizes(send_bundles(session, bundles={"test.side": 5})) == [1] * 60


def test_job_that_may_only_be_sent_alone_stays_so(session):
    ids = put_many(session, 100)
    session.execute(update(Job).where(Job.id.in_(ids[:3])).values(message_id=Job.id))
    messages = send_bundles(session)
    assert {message.lead for message in messages if len(message.job_ids) == 1} == set(ids[:3])
    assert all(row(session, job_id).message_id == job_id for job_id in ids[:3])
    change(session, ids[0], sent_at=None)
    assert send_early(session, [ids[0]], buffer=1_000) == [ids[0]]
    assert row(session, ids[0]).message_id == ids[0]


def test_job_that_is_sent_again_by_itself_leaves_its_message(session):
    ids = put_many(session, 100)
    send_bundles(session)
    change(session, ids[0], sent_at=None)
    assert send_bundles(session)[0].job_ids == (ids[0],)
    assert row(session, ids[0]).message_id is None


def test_buffer_counts_messages(session):
    put_many(session, 100)
    assert sizes(send_bundles(session, buffer=8)) == [10] * 8
    assert sizes(send_bundles(session, buffer=8)) == []
    assert sizes(send_bundles(session, buffer=9)) == [10]


def test_broker_holds_few_jobs_however_large_the_messages(session, monkeypatch):
    monkeypatch.setattr(relay, "MOST_SENT", 30)
    put_many(session, 100)
    assert sizes(send_bundles(session, buffer=20)) == [3] * 10
    assert sizes(send_bundles(session, buffer=20)) == []


def test_no_job_overtakes_a_more_urgent_one_in_a_message_with_room(session):
    put_many(session, 38, priority=1)
    put_many(session, 40, kind=Limited, priority=2)
    put_many(session, 40, priority=3)
    messages = send_bundles(session, buffer=5)
    waiting = select(Job.priority).where(Job.queue == "default", Job.sent_at.is_(None))
    sent_now = select(Job.priority).where(Job.queue == "default", Job.sent_at.is_not(None))
    assert len(messages) == 5
    most_urgent = min(session.execute(waiting).scalars())
    assert max(session.execute(sent_now).scalars()) <= most_urgent


def test_lost_messages_are_counted_as_messages_and_sent_again_whole(session):
    put_many(session, 100)
    messages = send_bundles(session)
    session.execute(update(Job).values(sent_at=LONG_AGO))
    ready = {"default": 10, "side": 0}
    assert send_lost(session, ready) == []
    for job_id in messages[3].job_ids:
        change(session, job_id, sent_at=LONG_AGO - MINUTE)
    change(session, messages[3].lead, state=JobState.RUNNING)
    ready["default"] = 9
    assert set(send_lost(session, ready)) == set(messages[3].job_ids[1:])


def test_lost_message_waits_for_more_urgent_jobs(session):
    lost = send_long_ago(session, 1)
    urgent = put(session, priority=0)
    assert send_lost(session, {"default": 0}) == lost
    assert send(session, buffer=1) == [urgent]


def test_bundle_that_the_broker_did_not_take_is_sent_again(session):
    put_many(session, 100)
    relay.mark_unsent(session, send_bundles(session))
    assert sent(session) == set()
    assert sizes(send_bundles(session)) == [10] * 10
