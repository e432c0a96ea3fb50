"""What `enqueue` and `enqueue_many` write, and when it is seen."""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from job_rows import (
    FAR_AHEAD,
    KINDS,
    LONG_AGO,
    NOW,
    QUEUES,
    Limited,
    Only,
    Parent,
    Plain,
    Rated,
    Refresh,
    Side,
    batch,
    change,
    columns,
    count,
    finish,
    only_on_postgres,
    put,
    row,
    state,
    take,
)
from nightshift.database import Session, read_clock
from nightshift.errors import InvalidInput
from nightshift.jobs import JobArgs, care, enqueue, enqueue_many, relay
from nightshift.jobs.args import DECLARED
from nightshift.jobs.enqueue import build_declared_columns, enqueue_declared
from nightshift.jobs.models import Job, JobState
from nightshift.jobs.session import Carried, carry, get_carried
from sqlalchemy import create_engine, select, text

HOUR = timedelta(hours=1)


class Forgotten(JobArgs, kind="test.forgotten", queue="nowhere"):
    """A kind that no component declares."""


# --- what is written ---


def test_row_is_as_the_policy_says(session):
    job = row(session, put(session, Side(number=3)))
    assert (job.kind, job.queue, job.args) == ("test.side", "side", {"number": 3})
    assert (job.priority, job.max_attempts, job.time_limit) == (5, 5, 60)
    assert (job.created_at, job.run_at, job.attempt) == (NOW, NOW, 0)
    assert (job.sent_at, job.started_at, job.finished_at, job.claim_id) == (None,) * 4


def test_priority_of_the_call_wins(session):
    assert row(session, put(session, priority=0)).priority == 0


@pytest.mark.parametrize(
    ("options", "run_at"),
    [
        ({"run_at": FAR_AHEAD}, FAR_AHEAD),
        ({"run_at": LONG_AGO}, LONG_AGO),
        (
            {"run_at": datetime(2030, 1, 1, 5, tzinfo=timezone(5 * HOUR))},
            datetime(2030, 1, 1, tzinfo=UTC),
        ),
    ],
)
def test_job_with_a_time_of_its_own_is_scheduled(session, options, run_at):
    job = row(session, put(session, **options))
    assert (job.state, job.run_at) == (JobState.SCHEDULED, run_at)


@pytest.mark.parametrize("skew", [-HOUR, HOUR])
@pytest.mark.parametrize("options", [{"delay": HOUR}, {"debounce": HOUR}])
@pytest.mark.parametrize("kind", [Plain, Refresh])
def test_delay_counts_by_the_clock_of_the_database(session, skew, options, kind):
    now = read_clock(session)
    job = row(session, enqueue(session, kind(), now=now + skew, **options))
    assert job.state == JobState.SCHEDULED
    assert timedelta() <= job.run_at - (now + HOUR) < timedelta(minutes=5)
    bound = job.push_until and job.push_until - job.run_at
    assert bound == (9 * HOUR if "debounce" in options else None)


def test_job_without_a_time_is_queued(session):
    assert state(session, put(session)) == JobState.QUEUED


def test_delay_and_time_together_are_refused(session):
    with pytest.raises(ValueError, match="delay or run_at"):
        put(session, delay=HOUR, run_at=FAR_AHEAD)


def test_time_without_a_zone_is_refused(session):
    naive = NOW.replace(tzinfo=None)
    for call in (
        lambda: put(session, run_at=naive),
        lambda: enqueue_many(session, [Plain()], now=NOW, run_at=naive),
    ):
        with pytest.raises(ValueError, match="time zone"):
            call()


def test_time_beyond_the_last_one_is_refused(session):
    last = datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))
    for call in (
        lambda: put(session, run_at=last),
        lambda: enqueue_many(session, [Plain()], now=NOW, run_at=last),
    ):
        with pytest.raises(InvalidInput, match="9999"):
            call()
    for options in ({"delay": timedelta.max}, {"debounce": timedelta(days=100_000_000)}):
        with pytest.raises(InvalidInput, match="no database can store"):
            put(session, Refresh(), **options)
    assert row(session, put(session, run_at=datetime.max.replace(tzinfo=UTC))).run_at.year == 9999


def test_trace_of_the_caller_is_kept(session):
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    carry(session, Carried(trace=lambda: headers))
    ids = [put(session), *enqueue_many(session, [Plain()], now=NOW)]
    assert [row(session, job_id).trace for job_id in ids] == [headers, headers]


@pytest.mark.parametrize("call", [enqueue, enqueue_many])
def test_row_of_a_limited_kind_says_so(session, call):
    for kind in (Limited, Rated, Plain):
        call(session, kind() if call is enqueue else [kind()], now=NOW)
    flags = select(Job.kind, Job.limited).order_by(Job.kind)
    assert session.execute(flags).all() == [
        ("test.limited", True),
        ("test.plain", False),
        ("test.rated", True),
    ]


# --- what a database cannot store ---


class Anything(JobArgs, kind="test.anything", unique_by=("value",)):
    value: Any


@pytest.fixture
def declared(monkeypatch):
    """Declare the kind for this test only."""
    monkeypatch.setattr("nightshift.jobs.args.DECLARED", DECLARED | {Anything})


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize("call", [enqueue, enqueue_many])
@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("a\0b", r"value: .*\\x00"),
        (["a", {"b": "\ud800"}], r"value\[1\]\.b: .*\\ud800"),
        ({"a\0": 1}, r"value\.'a\\x00': "),
        ({"\udfff": 1}, r"value: .*'\\udfff'"),
        ([1.0, float("nan")], r"value\[1\]: JSON has no nan"),
        ({"a": {"b": [float("-inf")]}}, r"value\.a\.b\[0\]: JSON has no -inf"),
        ([10**5000], r"value\[0\]: a number may have 4300 digits"),
    ],
)
def test_argument_that_a_database_cannot_store_is_refused(session, call, value, where):
    there = put(session)
    args = Anything(value=value)
    with pytest.raises(InvalidInput, match=rf"Anything cannot be enqueued: {where}"):
        call(session, args if call is enqueue else [Plain(), args], now=NOW)
    # Nothing was written, and the caller's transaction goes on.
    assert (count(session), state(session, there)) == (1, JobState.QUEUED)


@pytest.mark.parametrize("priority", [-1, 10, 2**40, 1.5])
def test_priority_out_of_range_is_refused(session, priority):
    for call in (
        lambda: put(session, priority=priority),
        lambda: enqueue_many(session, [Plain()], now=NOW, priority=priority),
    ):
        with pytest.raises(InvalidInput, match="is not one of 0"):
            call()


# --- declared kinds ---


@pytest.mark.parametrize("call", [enqueue, enqueue_many])
def test_undeclared_kind_is_refused(session, call):
    jobs = Forgotten() if call is enqueue else [Plain(), Forgotten()]
    with pytest.raises(InvalidInput, match=r"'test\.forgotten'.*'nowhere'.*add Forgotten"):
        call(session, jobs, now=NOW)
    assert count(session) == 0
    assert get_carried(session).enqueued == []


@pytest.mark.parametrize("call", [enqueue, enqueue_many])
def test_undeclared_kind_is_refused_on_a_session_without_a_runtime(database_url, call):
    engine = create_engine(database_url)
    with Session(engine) as session:
        with pytest.raises(InvalidInput, match="no component declares"):
            call(session, Forgotten() if call is enqueue else [Forgotten()], now=NOW)
        assert count(session) == 0
    engine.dispose()


# --- sessions and transactions ---


def test_job_is_there_when_the_transaction_commits(runtime):
    with runtime.unit_of_work() as session:
        job_id = put(session)
        with runtime.read_only() as other:
            assert count(other) == 0
    with runtime.read_only() as other:
        assert state(other, job_id) == JobState.QUEUED


def refuse(runtime):
    with runtime.unit_of_work() as session:
        put(session)
        enqueue_many(session, [Plain(), Only()], now=NOW)
        raise ConnectionError


def test_job_of_a_transaction_that_is_rolled_back_never_was(runtime):
    with pytest.raises(ConnectionError):
        refuse(runtime)
    with runtime.read_only() as session:
        assert count(session) == 0


def test_session_without_a_runtime_enqueues_and_the_relay_finds_it(runtime, database_url):
    engine = create_engine(database_url)
    with Session(engine) as session, session.begin():
        ids = {
            enqueue(session, Plain(number=1), now=NOW),
            enqueue(session, Only(number=1), now=NOW),
            *enqueue_many(session, [Side(number=2), Only(number=2)], now=NOW),
        }
    engine.dispose()
    with runtime.unit_of_work() as session:
        sent = relay.mark_due_sent(session, kinds=KINDS, queues=QUEUES, buffer=100)
    assert {message.lead for message in sent} == ids


OTHER_PROCESS = """
import os
from datetime import UTC, datetime

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from nightshift.jobs import JobArgs, enqueue


class Plain(JobArgs, kind="test.plain"):
    number: int


engine = create_engine(os.environ["DATABASE_URL"])
with Session(engine) as session, session.begin():
    print(enqueue(session, Plain(number=8), now=datetime(2020, 1, 1, tzinfo=UTC)))
"""


def test_process_without_components_enqueues_what_others_run(runtime, database_url, root):
    environment = {**os.environ, "DATABASE_URL": database_url, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", OTHER_PROCESS]
    ran = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    with runtime.unit_of_work() as session:
        (sent,) = relay.mark_due_sent(session, kinds=KINDS, queues=QUEUES, buffer=100)
    assert (str(sent.lead), sent.kind) == (ran.stdout.strip(), "test.plain")
    assert sent.args == {"number": 8}


def test_session_collects_what_may_be_sent_after_the_commit(session):
    due = put(session)
    put(session, delay=HOUR)
    put(session, Only())
    put(session, Only())
    many = enqueue_many(session, [Plain(), Only(number=1), Only(number=1)], now=NOW)
    enqueue_many(session, [Plain()], now=NOW, run_at=FAR_AHEAD)
    collected = get_carried(session).enqueued
    assert (len(collected), collected[0]) == (4, due)
    assert set(collected) == {due, *many, *[put(session, Only())]}


# --- unique kinds ---


def test_equal_job_is_not_written_again(session):
    first = put(session, Only(number=1, text="first"))
    assert put(session, Only(number=1, text="second"), delay=HOUR) == first
    assert (count(session), row(session, first).args["text"]) == (1, "first")
    assert put(session, Only(number=2)) != first


@pytest.mark.parametrize("ends", ["succeeded", "failed", "discarded", "cancelled"])
def test_equal_job_is_written_again_after_the_end(session, ends):
    first = put(session, Only())
    finish(session, first, JobState(ends))
    assert put(session, Only()) != first


def test_equal_job_waits_for_the_end_of_one_that_runs(session):
    first = put(session, Only())
    take(session, first)
    assert put(session, Only()) == first


def test_equal_job_is_written_beside_one_that_runs_where_the_kind_says_so(session):
    first = put(session, Refresh())
    take(session, first)
    second = put(session, Refresh())
    assert (second == first, put(session, Refresh())) == (False, second)


def enqueue_twice(runtime, *, first_commits):
    """Enqueue equal jobs in two transactions of which the second begins before the first ends."""
    ids = []

    def second():
        with runtime.unit_of_work() as session:
            ids.append(put(session, Only()))

    thread = threading.Thread(target=second)
    with suppress(ConnectionError), runtime.unit_of_work() as session:
        ids.append(put(session, Only()))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        if not first_commits:
            raise ConnectionError
    thread.join(100)
    return ids


def test_two_transactions_that_enqueue_equal_jobs_write_one(runtime):
    first, second = enqueue_twice(runtime, first_commits=True)
    assert first == second


def test_second_transaction_writes_the_job_that_the_first_rolled_back(runtime):
    first, second = enqueue_twice(runtime, first_commits=False)
    assert first != second
    with runtime.read_only() as session:
        assert state(session, second) == JobState.QUEUED


@only_on_postgres
def test_two_transactions_with_the_same_keys_do_not_wait_for_each_other(runtime):
    jobs = [Only(number=number) for number in range(200)]

    def write(some):
        with runtime.unit_of_work() as session:
            enqueue_many(session, some, now=NOW)

    threads = [threading.Thread(target=write, args=(some,)) for some in (jobs, jobs[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    with runtime.read_only() as session:
        assert count(session) == 200


@only_on_postgres
def test_uniqueness_needs_no_index_of_the_rows_without_a_key(session):
    # The next release's migration may do this while this release still runs.
    session.execute(text("ALTER TABLE job DROP CONSTRAINT uq_job_unique_key"))
    key = "CREATE UNIQUE INDEX uq_job_key ON job (unique_key) WHERE unique_key IS NOT NULL"
    session.execute(text(key))
    first = put(session, Only(number=1))
    assert put(session, Only(number=1)) == first
    assert enqueue_many(session, [Only(number=1), Plain()], now=NOW) != [first]
    later = put(session, Refresh(number=1), debounce=HOUR)
    assert put(session, Refresh(number=2), debounce=HOUR) == later
    assert count(session) == 3


# --- debounce ---


def test_debounced_job_waits(session):
    job = row(session, put(session, Refresh(), debounce=HOUR))
    assert (job.state, job.push_until) == ("scheduled", job.run_at + 9 * HOUR)


def test_debounced_job_that_waits_gets_the_new_arguments_and_waits_again(session):
    first = put(session, Refresh(number=1), debounce=HOUR)
    before = row(session, first).run_at - HOUR / 2
    change(session, first, run_at=before)
    assert put(session, Refresh(number=2), debounce=HOUR) == first
    job = row(session, first)
    assert (job.args, job.run_at > before, count(session)) == ({"number": 2}, True, 1)


def test_debounced_job_is_pushed_back_ten_times_at_most(session):
    first = put(session, Refresh(number=1), debounce=HOUR)
    bound = read_clock(session) + HOUR / 2
    change(session, first, push_until=bound)
    for number in (2, 3):
        put(session, Refresh(number=number), debounce=HOUR)
        job = row(session, first)
        assert (job.run_at, job.push_until, job.args) == (bound, bound, {"number": number})


@pytest.mark.parametrize("options", [{"delay": HOUR}, {"run_at": FAR_AHEAD}])
def test_job_that_was_first_enqueued_without_debounce_has_a_bound_from_then_on(session, options):
    first = put(session, Refresh(number=1), **options)
    put(session, Refresh(number=2), debounce=HOUR)
    job = row(session, first)
    bound = job.push_until
    assert (job.run_at, job.args) == (bound - 9 * HOUR, {"number": 2})
    # However often it is pushed: never beyond, and the bound stays.
    put(session, Refresh(number=3), debounce=20 * HOUR)
    job = row(session, first)
    assert (job.run_at, job.push_until, job.args) == (bound, bound, {"number": 3})


@pytest.mark.parametrize("sent_at", [None, NOW])
def test_debounced_call_never_pulls_back_a_queued_job(session, sent_at):
    first = put(session, Refresh(number=1))
    change(session, first, sent_at=sent_at)
    before = row(session, first)
    expected = (before.state, before.run_at, before.sent_at)
    put(session, Refresh(number=2), debounce=HOUR)
    job = row(session, first)
    assert ((job.state, job.run_at, job.sent_at), job.args) == (expected, {"number": 2})


def test_debounced_call_never_pulls_back_a_job_whose_time_has_come(session):
    first = put(session, Refresh(number=1), run_at=LONG_AGO)
    put(session, Refresh(number=2), debounce=HOUR)
    job = row(session, first)
    assert (job.state, job.run_at, job.args) == (JobState.SCHEDULED, LONG_AGO, {"number": 2})


def test_debounced_calls_without_a_pause_start_the_job_at_its_bound(session):
    """A caller that calls more often than `debounce`, on a job that was enqueued plainly."""
    first = put(session, Refresh(number=1), delay=HOUR)
    put(session, Refresh(number=2), debounce=HOUR)
    change(session, first, push_until=LONG_AGO)
    put(session, Refresh(number=3), debounce=HOUR)
    relay.queue_due(session)
    put(session, Refresh(number=4), debounce=HOUR)
    assert (state(session, first), row(session, first).args) == ("queued", {"number": 4})


def test_debounced_job_that_is_held_stays_held(session):
    first = put(session, Refresh(number=1), debounce=HOUR)
    care.hold(session, [first])
    put(session, Refresh(number=2), debounce=HOUR)
    assert (state(session, first), row(session, first).args) == ("held", {"number": 2})


def test_debounced_call_that_meets_a_running_job_writes_another(session):
    first = put(session, Refresh(number=1), debounce=HOUR)
    take(session, first)
    second = put(session, Refresh(number=2), debounce=HOUR)
    assert (row(session, first).args, row(session, second).args) == ({"number": 1}, {"number": 2})


def test_debounced_call_that_meets_a_running_job_is_lost_where_the_kind_says_so(session):
    first = put(session, Only(text="old"), debounce=HOUR)
    take(session, first)
    before = columns(session, first)
    assert put(session, Only(text="new"), debounce=HOUR) == first
    assert columns(session, first) == before


def test_delay_wins_over_debounce_for_the_first_run(session):
    job = row(session, put(session, Refresh(), delay=2 * HOUR, debounce=HOUR))
    assert job.push_until == job.run_at + 8 * HOUR


# --- many ---


def test_many_jobs_are_written_as_one_by_one(session):
    options = {"priority": 1, "run_at": FAR_AHEAD}
    args = Side(number=3)
    one = columns(session, put(session, args, **options))
    (many,) = enqueue_many(session, [args], now=NOW, **options)
    other = columns(session, many)
    assert {**other, "id": one["id"]} == one


def test_many_ids_are_those_of_the_rows(session):
    ids = enqueue_many(session, [Plain(number=number) for number in range(300)], now=NOW)
    assert [row(session, job_id).args["number"] for job_id in ids[:3]] == [0, 1, 2]
    assert count(session, Job.id.in_(ids)) == 300


def test_none_of_many_is_nothing(session):
    assert enqueue_many(session, [], now=NOW) == []


def test_of_many_unique_ones_those_that_are_there_are_left_out(session):
    there = put(session, Only(number=1))
    numbers = [1, 2, 2, 3]
    written = enqueue_many(session, [Only(number=n) for n in numbers], now=NOW)
    assert sorted(row(session, job_id).args["number"] for job_id in written) == [2, 3]
    assert (count(session), there in written) == (3, False)


def test_children_of_many_know_their_parent(session):
    parent = put(session, Parent())
    ids = enqueue_many(session, [Plain(), Only()], now=NOW, parent_id=parent)
    assert {row(session, job_id).parent_id for job_id in ids} == {parent}


@pytest.mark.parametrize(
    "text",
    ["", 'it\'s "quoted" \\ and\nbroken', "Zürich \N{GRINNING FACE} \u2028", "null", "{}"],
)
def test_text_comes_back_as_it_was(session, text):
    ids = [
        put(session, Only(number=1, text=text)),
        *enqueue_many(session, [Only(number=2, text=text)], now=NOW),
    ]
    assert [row(session, job_id).args["text"] for job_id in ids] == [text, text]


def test_child_that_is_enqueued_beside_a_batch_is_not_part_of_it(session):
    parent, children = batch(session, 2)
    put(session)
    assert row(session, parent).children == len(children) == 2


# --- the same rules for one and for many ---


def enqueue_one_of_many(session, args, **how):
    return enqueue_many(session, [args], **how)


@pytest.mark.parametrize("call", [enqueue, enqueue_one_of_many])
@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"priority": True}, InvalidInput),
        ({"priority": 1.0}, InvalidInput),
        ({"now": NOW.replace(tzinfo=None)}, ValueError),
        ({"now": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))}, InvalidInput),
    ],
)
def test_what_no_database_stores_is_refused_and_the_transaction_goes_on(session, call, how, error):
    with pytest.raises(error):
        call(session, Plain(), **{"now": NOW, **how})
    assert count(session) == 0


def test_debounce_during_a_backoff_has_a_bound_of_its_own(session):
    job_id = put(session, Refresh(), debounce=timedelta(minutes=1))
    assert row(session, job_id).push_until is not None
    take(session, job_id)
    assert row(session, job_id).push_until is None


def test_follow_up_of_an_unknown_kind_is_left_to_a_relay_that_knows_it(session):
    get_carried(session).kinds = KINDS
    columns = {**build_declared_columns(Plain()), "kind": "test.newer"}
    enqueue_declared(session, columns, now=NOW, parent_id=put(session))
    enqueue_declared(session, build_declared_columns(Plain()), now=NOW, parent_id=put(session))
    left = session.scalars(select(Job.id).where(Job.kind == "test.newer")).one()
    assert left not in get_carried(session).enqueued
    assert len(get_carried(session).enqueued) == 3
