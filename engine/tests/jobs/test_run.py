"""What a body may say about itself, and what it may answer."""

from datetime import timedelta
from uuid import uuid4

import pytest
from job_rows import (
    KINDS,
    NOW,
    NoCollaborators,
    Plain,
    Then,
    batch,
    children_of,
    put,
    row,
    run,
    state,
    take,
)
from nightshift.errors import PermanentError
from nightshift.jobs import Cancel, Discard, Run, Snooze, care, claims, enqueue, insight, relay
from nightshift.jobs.models import JobState
from nightshift.settings import Settings
from sqlalchemy import event

ALREADY = timedelta(minutes=1)


def lines(session, job_id):
    return [line.line for line in insight.read_details(session, job_id).lines]


def write_now(run):
    """Make the next progress one that is written: the last was long enough ago."""
    run._written -= ALREADY.total_seconds()


def start(runtime):
    """Return a run with a runtime, as a body that holds its own transactions has it."""
    with runtime.unit_of_work() as session:
        return Run(take(session, put(session)), runtime)


# --- what a body knows ---


def test_run_knows_its_attempt_and_its_clock(session):
    parent, (child,) = batch(session, 1, then=False)
    claims.record_failure(session, take(session, child), {}, retry_after=timedelta())
    a_run = run(session, child)
    job = row(session, child)
    assert (a_run.id, a_run.parent_id, a_run.attempt) == (child, parent, 2)
    assert (a_run.now, a_run.claim_id) == (job.started_at, job.claim_id)


def test_run_knows_its_process(runtime):
    a_run = start(runtime)
    assert (a_run.runtime, a_run.runtime[Settings]) == (runtime, runtime.settings)
    with a_run.unit_of_work() as session:
        put(session)
    with a_run.read_only() as session:
        assert state(session, a_run.id) == JobState.RUNNING


# --- what it answers ---


@pytest.mark.parametrize(
    ("outcome", "ends", "result"),
    [
        (None, "succeeded", None),
        ({"feeds": 3}, "succeeded", {"feeds": 3}),
        (Discard("no use"), "discarded", "no use"),
        (Cancel("not wanted"), "cancelled", "not wanted"),
    ],
)
def test_answer_decides_the_end(session, outcome, ends, result):
    a_run = run(session, put(session))
    assert a_run.state is None
    a_run.finish(session, outcome)
    job = row(session, a_run.id)
    assert (a_run.state, job.state, job.result) == (ends, ends, result)


def test_snooze_runs_the_job_again_and_counts_no_attempt(session):
    a_run = run(session, put(session))
    a_run.finish(session, Snooze(timedelta(hours=1)))
    job = row(session, a_run.id)
    assert (a_run.state, job.state, job.attempt) == ("scheduled", "scheduled", 0)
    assert job.run_at == a_run.now + timedelta(hours=1)


def test_failure_is_written_with_what_was_said_before(session):
    a_run = run(session, put(session))
    a_run.log("before it failed")
    assert (
        a_run.fail(session, claims.describe(RuntimeError("no")), retry_after=timedelta())
        == JobState.SCHEDULED
    )
    (error,) = row(session, a_run.id).errors
    assert (error["attempt"], error["type"], error["message"]) == (1, "RuntimeError", "no")
    assert lines(session, a_run.id) == ["before it failed"]


def test_finish_after_a_lost_claim_is_refused(session):
    a_run = run(session, put(session))
    care.cancel(session, [a_run.id])
    with pytest.raises(claims.LostClaim):
        a_run.finish(session, "done")
    assert (a_run.state, row(session, a_run.id).result) == (None, None)


def test_second_finish_is_refused(session):
    a_run = run(session, put(session))
    a_run.finish(session)
    with pytest.raises(PermanentError, match="was called before"):
        a_run.finish(session)


def test_spawned_children_start_at_the_finish(session):
    a_run = run(session, put(session))
    a_run.spawn(session, [Plain(number=1)], then=Then())
    a_run.finish(session)
    (child,) = children_of(session, a_run.id)
    assert (a_run.state, row(session, child).created_at) == (JobState.WAITING, a_run.now)


# --- what it says ---


class Unreadable(Exception):
    def __str__(self):
        raise ValueError("no")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_that_a_body_says_keeps_its_end_out_of_the_ledger(session, fails):
    a_run = run(session, put(session))
    a_run.log("a\0b \udcff \N{GRINNING FACE}")
    a_run.progress(3_000_000_000, 4_000_000_000)
    if fails:
        a_run.fail(session, claims.describe(Unreadable("\0 \udcff")), retry_after=None)
    else:
        a_run.finish(session, "\0 \udcff")
    shown = insight.read_details(session, a_run.id)
    assert [line.line for line in shown.lines] == [
        "a\N{REPLACEMENT CHARACTER}b \\udcff \N{GRINNING FACE}"
    ]
    assert shown.job.progress_done / shown.job.progress_total == 0.75
    if fails:
        message = "its text cannot be read: ValueError"
        assert [(error["type"], error["message"]) for error in shown.job.errors] == [
            ("Unreadable", message)
        ]
    else:
        assert shown.job.result == "\0 \udcff"


@pytest.mark.parametrize("result", [NOW, {1, 2}, [float("nan")], {"a": float("inf")}, object()])
def test_result_that_json_cannot_hold_is_refused_at_once(session, result):
    a_run = run(session, put(session))
    with pytest.raises(PermanentError, match="JSON cannot hold the job's result"):
        a_run.finish(session, result)
    assert state(session, a_run.id) == JobState.RUNNING


def test_reason_of_any_type_is_kept_as_text(session):
    a_run = run(session, put(session))
    a_run.finish(session, Discard(ValueError("gone")))
    assert row(session, a_run.id).result == "gone"


@pytest.mark.parametrize("delay", [timedelta.max, 5, None])
def test_impossible_delay_is_refused_at_once(session, delay):
    a_run = run(session, put(session))
    with pytest.raises(PermanentError, match="no job can be put off by"):
        a_run.finish(session, Snooze(delay))


def test_result_that_contains_itself_is_refused_at_once(session):
    a_run, result = run(session, put(session)), []
    result.append(result)
    with pytest.raises(PermanentError, match="JSON cannot hold the job's result"):
        a_run.finish(session, result)


def test_progress_is_written_once_a_second_at_most(runtime):
    a_run = start(runtime)
    a_run.progress(1, 10)
    with runtime.read_only() as session:
        assert row(session, a_run.id).progress_done is None
    write_now(a_run)
    a_run.progress(2, 10)
    a_run.progress(3, 10)
    with runtime.read_only() as session:
        job = row(session, a_run.id)
        assert (job.progress_done, job.progress_total) == (2, 10)


def test_lines_are_written_with_the_next_progress_and_once(runtime):
    a_run = start(runtime)
    a_run.log("first")
    write_now(a_run)
    a_run.progress(1, 2)
    with runtime.read_only() as session:
        assert lines(session, a_run.id) == ["first"]
    a_run.log("second")
    with runtime.unit_of_work() as session:
        a_run.finish(session)
    with runtime.read_only() as session:
        assert lines(session, a_run.id) == ["first", "second"]
        assert row(session, a_run.id).progress_done == 1


def test_progress_of_a_cancelled_job_is_refused(runtime):
    a_run = start(runtime)
    with runtime.unit_of_work() as session:
        care.cancel(session, [a_run.id])
    write_now(a_run)
    with pytest.raises(claims.LostClaim):
        a_run.progress(1, 2)


def test_progress_in_the_transaction_of_the_job_is_written_at_its_commit(session):
    a_run = run(session, put(session))
    a_run.session = session
    write_now(a_run)
    a_run.progress(1, 2)
    assert row(session, a_run.id).progress_done is None
    a_run.finish(session)
    assert row(session, a_run.id).progress_done == 1


def test_progress_in_the_transaction_of_a_cancelled_job_is_refused(session):
    a_run = run(session, put(session))
    a_run.session = session
    care.cancel(session, [a_run.id])
    write_now(a_run)
    with pytest.raises(claims.LostClaim):
        a_run.progress(1, 2)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ((1, 2), (1, 2)),
        ((1.9, 3.2), (1, 3)),
        ((0, 2**31 - 1), (0, 2**31 - 1)),
        ((2**31, 2**32), (2**29, 2**30)),
        ((5, 2**40), (0, 2**30)),
    ],
)
def test_progress_fits_the_ledger(session, said, kept):
    a_run = run(session, put(session))
    a_run.progress(*said)
    a_run.finish(session)
    job = row(session, a_run.id)
    assert (job.progress_done, job.progress_total) == kept


# --- what a job costs ---


def test_statements_of_a_job_are_constant(engine, session):
    statements = []

    def note(*arguments):
        if not arguments[2].startswith("SAVEPOINT"):
            statements.append(arguments[2])

    event.listen(engine, "before_cursor_execute", note)
    try:
        job_id = enqueue(session, Plain(), now=NOW)
        enqueued = len(statements)
        relay.mark_sent(session, [job_id], kinds=KINDS, buffer=100)
        sent = len(statements) - enqueued
        (claim,) = claims.claim(
            session.connection(),
            [job_id],
            claim_id=uuid4(),
            kind=Plain.policy.kind,
            worker_id=job_id,
            pid=1,
        )
        claimed = len(statements) - enqueued - sent
        Run(claim, NoCollaborators()).finish(session)
        finished = len(statements) - enqueued - sent - claimed
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert (enqueued, sent, claimed, finished) == (1, 1, 1, 1)


# --- the bound of the log ---


def test_attempt_keeps_its_first_lines_and_says_how_many_were_left_out(session):
    a_run = run(session, put(session))
    for number in range(claims.MOST_LINES + 5):
        a_run.log(f"line {number}")
    a_run.finish(session)
    kept = lines(session, a_run.id)
    assert len(kept) == claims.MOST_LINES + 1
    assert kept[-2:] == [f"line {claims.MOST_LINES - 1}", "5 more lines were left out"]


def test_lines_that_progress_has_written_count_too(runtime):
    a_run = start(runtime)
    for number in range(claims.MOST_LINES + 2):
        a_run.log(f"line {number}")
        if number == 10:
            write_now(a_run)
            a_run.progress(1, 2)
    with runtime.unit_of_work() as session:
        a_run.finish(session)
    with runtime.read_only() as session:
        kept = lines(session, a_run.id)
    assert (len(kept), kept[-1]) == (claims.MOST_LINES + 1, "2 more lines were left out")


def test_failed_attempt_says_how_many_lines_were_left_out(session):
    a_run = run(session, put(session))
    for _ in range(claims.MOST_LINES + 1):
        a_run.log("line")
    a_run.fail(session, claims.describe(RuntimeError("no")), retry_after=timedelta())
    assert lines(session, a_run.id)[-1] == "1 more lines were left out"


def test_long_line_is_cut(session):
    a_run = run(session, put(session))
    a_run.log("x" * 10_000_000)
    a_run.finish(session)
    assert lines(session, a_run.id) == ["x" * claims.LONGEST_MESSAGE]
