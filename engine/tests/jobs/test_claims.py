"""Taking jobs, and the writes that need to have taken one."""

import threading
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from job_rows import (
    FAR_AHEAD,
    NOW,
    Limited,
    Once,
    Only,
    Plain,
    Refresh,
    Side,
    batch,
    change,
    claim_by_row,
    columns,
    count,
    finish,
    numbers,
    put,
    row,
    state,
    take,
    try_claim,
)
from nightshift.jobs import care, claims, rescue
from nightshift.jobs.claims import LostClaim, Notes
from nightshift.jobs.models import JobLog, JobState
from sqlalchemy import func, select

ERROR = {"type": "RuntimeError", "message": "no", "traceback": "line 1"}


def lines(session):
    found = session.execute(select(JobLog).order_by(JobLog.id)).scalars()
    return [(line.job_id, line.attempt, line.at, line.line) for line in found]


def near(instant, seconds=0.0):
    """Return whether an instant is about so many seconds from now."""
    return abs((instant - datetime.now(UTC)).total_seconds() - seconds) < 60


# --- taking ---


def test_claim_is_written_into_the_row(session):
    job_id, worker_id = put(session, Plain(number=4)), uuid4()
    taken = try_claim(session, job_id, worker_id=worker_id, pid=77)
    job = row(session, job_id)
    assert (job.state, job.attempt, job.claim_id) == (JobState.RUNNING, 1, taken.claim_id)
    assert (job.worker_id, job.pid, near(job.started_at)) == (worker_id, 77, True)


def test_claim_says_what_the_job_was_when_it_was_taken(session):
    parent, (child,) = batch(session, 1, then=False)
    change(session, child, trace={"traceparent": "x"})
    taken = try_claim(session, child)
    assert (taken.job_id, taken.kind, taken.args) == (child, "test.plain", {"number": 0})
    assert (taken.attempt, taken.max_attempts, taken.parent_id, taken.counted) == (
        1,
        5,
        parent,
        False,
    )
    assert (taken.run_at.tzinfo, taken.trace) == (UTC, {"traceparent": "x"})
    assert taken.started_at == row(session, child).started_at


def test_message_that_comes_twice_finds_nothing_to_claim(session):
    job_id = put(session)
    taken = try_claim(session, job_id)
    assert try_claim(session, job_id) is None
    assert row(session, job_id).claim_id == taken.claim_id


@pytest.mark.parametrize("ends", ["succeeded", "failed", "discarded", "cancelled"])
def test_message_of_a_job_that_has_ended_finds_nothing_to_claim(session, ends):
    job_id = put(session)
    finish(session, job_id, JobState(ends))
    before = columns(session, job_id)
    assert try_claim(session, job_id) is None
    assert columns(session, job_id) == before


def test_message_that_comes_early_finds_nothing_to_claim(session):
    assert try_claim(session, put(session, run_at=FAR_AHEAD)) is None


def test_message_of_a_held_job_finds_nothing_to_claim(session):
    job_id = put(session)
    care.hold(session, [job_id])
    assert try_claim(session, job_id) is None


def test_message_of_a_waiting_parent_finds_nothing_to_claim(session):
    parent, _ = batch(session)
    assert try_claim(session, parent) is None


def test_message_of_a_row_that_is_not_there_finds_nothing_to_claim(session):
    assert try_claim(session, uuid4()) is None


def test_paused_queue_gives_nothing_and_others_do(session):
    here, there = put(session), put(session, Side())
    care.pause(session, "side", now=NOW)
    assert (try_claim(session, there), state(session, there)) == (None, "queued")
    assert try_claim(session, here) is not None


def test_start_frees_the_unique_key_only_where_the_kind_says_so(session):
    refresh, only = put(session, Refresh()), put(session, Only())
    for job_id in (refresh, only):
        try_claim(session, job_id)
    assert row(session, refresh).unique_key is None
    assert row(session, only).unique_key is not None


def test_one_of_many_workers_gets_the_job(runtime):
    with runtime.unit_of_work() as session:
        job_id = put(session)
    taken = []

    def work():
        with runtime.single_statement() as connection:
            taken.append(claim_by_row(connection, job_id, worker_id=uuid4(), pid=1))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    (claim,) = [one for one in taken if one is not None]
    with runtime.read_only() as session:
        job = row(session, job_id)
    assert (len(taken), job.attempt, job.claim_id) == (8, 1, claim.claim_id)


# --- a lost claim ---


WRITES = {
    "check": claims.require_valid,
    "note": lambda s, claim: claims.write_notes(s, claim, Notes(1, 2, [(NOW, "line")])),
    "note of nothing": lambda s, claim: claims.write_notes(s, claim, Notes()),
    "succeed": lambda s, claim: claims.succeed(s, claim, Notes(1, 2, [(NOW, "line")]), result=1),
    "succeed at last": lambda s, claim: claims.succeed(s, claim, Notes(), result=1, last=True),
    "discard": lambda s, claim: claims.mark_ended(
        s, claim, JobState.DISCARDED, Notes(), result="no"
    ),
    "snooze": lambda s, claim: claims.snooze(s, claim, timedelta(), Notes(1, 2, [(NOW, "line")])),
    "retry": lambda s, claim: claims.record_failure(s, claim, ERROR, retry_after=timedelta()),
    "fail": lambda s, claim: claims.record_failure(s, claim, ERROR, retry_after=None),
}


def lose_by_cancel(session, claim):
    care.cancel(session, [claim.job_id])


def lose_by_release(session, claim):
    rescue.release_claims(session, [claim.claim_id])


def lose_to_another_worker(session, claim):
    rescue.release_claims(session, [claim.claim_id])
    take(session, claim.job_id)


def lose_by_end(session, claim):
    claims.succeed(session, claim, Notes(), result="the first time")


LOSSES = [lose_by_cancel, lose_by_release, lose_to_another_worker, lose_by_end]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("write", WRITES)
def test_write_after_a_lost_claim_is_refused_and_changes_nothing(session, lose, write):
    parent, (child,) = batch(session, 1, then=False)
    claim = take(session, child)
    lose(session, claim)
    before = [columns(session, job_id) for job_id in (parent, child)]
    with pytest.raises(LostClaim, match=str(child)):
        WRITES[write](session, claim)
    assert [columns(session, job_id) for job_id in (parent, child)] == before
    assert lines(session) == []


@pytest.mark.parametrize("write", ["succeed at last", "discard"])
def test_end_that_commits_by_itself_needs_the_claim_too(runtime, write):
    with runtime.unit_of_work() as session:
        claim = take(session, put(session))
        care.cancel(session, [claim.job_id])
    with pytest.raises(LostClaim), runtime.unit_of_work() as session:
        WRITES[write](session, claim)
    with runtime.read_only() as session:
        assert (state(session, claim.job_id), row(session, claim.job_id).result) == (
            "cancelled",
            None,
        )


def test_claim_that_is_held_passes(session):
    claim = take(session, put(session))
    claims.require_valid(session, claim)
    claims.write_notes(session, claim, Notes())
    assert row(session, claim.job_id).claim_id == claim.claim_id


# --- ends ---


@pytest.mark.parametrize("result", [None, 7, "text", [1, {"a": None}], 1.5, False])
def test_success_keeps_the_result(session, result):
    claim = take(session, put(session))
    assert claims.succeed(session, claim, Notes(), result=result) == JobState.SUCCEEDED
    job = row(session, claim.job_id)
    assert (job.state, job.result, near(job.finished_at)) == ("succeeded", result, True)


@pytest.mark.parametrize("ends", ["succeeded", "discarded", "cancelled"])
def test_end_frees_the_unique_key(session, ends):
    claim = take(session, put(session, Only()))
    assert claims.mark_ended(session, claim, JobState(ends), Notes(), result="why") == ends
    job = row(session, claim.job_id)
    assert (job.state, job.result, job.unique_key) == (ends, "why", None)


def test_end_writes_progress_and_lines_or_leaves_what_is_there(session):
    claim = take(session, put(session))
    claims.write_notes(session, claim, Notes(3, 4, [(NOW, "half way")]))
    claims.mark_ended(session, claim, JobState.SUCCEEDED, Notes(lines=[(NOW, "done")]))
    job = row(session, claim.job_id)
    assert (job.progress_done, job.progress_total) == (3, 4)
    assert lines(session) == [(claim.job_id, 1, NOW, "half way"), (claim.job_id, 1, NOW, "done")]


def test_last_end_of_a_session_is_committed_at_once(runtime):
    with runtime.unit_of_work() as session:
        claim = take(session, put(session))
    with runtime.unit_of_work() as session:
        claims.succeed(session, claim, Notes(), result=1, last=True)
        with runtime.read_only() as other:
            assert state(other, claim.job_id) == JobState.SUCCEEDED


def test_last_end_of_a_child_is_counted(runtime):
    with runtime.unit_of_work() as session:
        parent, (child,) = batch(session, 1, then=False)
        claim = take(session, child)
    with runtime.unit_of_work() as session:
        claims.succeed(session, claim, Notes(), result=None, last=True)
    with runtime.read_only() as session:
        assert numbers(session, parent) == (JobState.SUCCEEDED, 0, 0)


def test_last_end_keeps_its_lines(runtime):
    with runtime.unit_of_work() as session:
        claim = take(session, put(session))
    with runtime.unit_of_work() as session:
        claims.succeed(session, claim, Notes(lines=[(NOW, "done")]), result=None, last=True)
    with runtime.read_only() as session:
        assert lines(session) == [(claim.job_id, 1, NOW, "done")]


def test_end_after_other_work_is_committed_with_it(runtime):
    with runtime.unit_of_work() as session:
        claim = take(session, put(session))
    with runtime.unit_of_work() as session:
        put(session, Side())
        claims.succeed(session, claim, Notes(), result=1, last=True)
        with runtime.read_only() as other:
            assert (state(other, claim.job_id), count(other)) == (JobState.RUNNING, 1)


# --- snooze ---


def test_snooze_runs_again_later_as_if_it_had_not_started(session):
    claim = take(session, put(session))
    assert claims.snooze(session, claim, timedelta(hours=1), Notes()) == JobState.SCHEDULED
    job = row(session, claim.job_id)
    assert (job.state, job.attempt, job.claim_id) == ("scheduled", 0, None)
    assert job.run_at == claim.started_at + timedelta(hours=1)


def test_snooze_keeps_the_unique_key(session):
    claim = take(session, put(session, Only()))
    claims.snooze(session, claim, timedelta(hours=1), Notes())
    assert put(session, Only()) == claim.job_id


# --- failures ---


def test_failed_attempt_is_scheduled_again_by_the_clock_of_the_database(session):
    claim = take(session, put(session))
    assert (
        claims.record_failure(session, claim, ERROR, retry_after=timedelta(hours=1))
        == JobState.SCHEDULED
    )
    job = row(session, claim.job_id)
    assert (job.state, job.attempt, job.claim_id, job.finished_at) == ("scheduled", 1, None, None)
    assert near(job.run_at, 3600)
    assert job.errors == [{"attempt": 1, "at": claim.started_at.isoformat(), **ERROR}]


def test_errors_of_all_attempts_are_kept(session):
    job_id = put(session)
    for _ in range(3):
        claims.record_failure(session, take(session, job_id), ERROR, retry_after=timedelta())
    assert [error["attempt"] for error in row(session, job_id).errors] == [1, 2, 3]


def test_failure_without_an_attempt_left_is_the_end(session):
    claim = take(session, put(session, Once()))
    assert claims.record_failure(session, claim, ERROR, retry_after=timedelta()) == JobState.FAILED
    job = row(session, claim.job_id)
    assert (job.state, job.attempt, near(job.finished_at)) == ("failed", 1, True)


def test_failure_that_is_not_retried_is_the_end_at_once(session):
    claim = take(session, put(session, Only()))
    assert claims.record_failure(session, claim, ERROR, retry_after=None) == JobState.FAILED
    job = row(session, claim.job_id)
    assert (job.state, job.attempt, job.max_attempts, job.unique_key) == ("failed", 1, 5, None)


def test_last_failure_ends_as_the_caller_says(session):
    claim = take(session, put(session, Once()))
    ended = claims.record_failure(
        session, claim, ERROR, retry_after=timedelta(), at_last=JobState.DISCARDED
    )
    assert (ended, state(session, claim.job_id)) == (JobState.DISCARDED, "discarded")


def test_failure_keeps_progress_and_lines(session):
    claim = take(session, put(session))
    notes = Notes(1, 2, [(NOW, "before it failed")])
    claims.record_failure(session, claim, ERROR, retry_after=None, notes=notes)
    job = row(session, claim.job_id)
    assert (job.progress_done, job.progress_total) == (1, 2)
    assert lines(session) == [(claim.job_id, 1, NOW, "before it failed")]


def test_failed_child_is_counted_when_it_is_not_retried(session):
    parent, (child,) = batch(session, 1, then=False)
    claims.record_failure(session, take(session, child), ERROR, retry_after=timedelta())
    assert numbers(session, parent) == (JobState.WAITING, 1, 0)
    claims.record_failure(session, take(session, child), ERROR, retry_after=None)
    assert numbers(session, parent) == (JobState.FAILED, 0, 1)


# --- notes ---


def test_note_writes_progress_and_the_lines_of_each_attempt(session):
    job_id = put(session, Limited())
    for attempt in (1, 2):
        claim = take(session, job_id)
        claims.write_notes(session, claim, Notes(attempt, 9, [(NOW, f"attempt {attempt}")]))
        claims.record_failure(session, claim, ERROR, retry_after=timedelta())
    job = row(session, job_id)
    assert (job.progress_done, job.progress_total) == (2, 9)
    assert lines(session) == [(job_id, 1, NOW, "attempt 1"), (job_id, 2, NOW, "attempt 2")]


def test_note_goes_on_running(session):
    claim = take(session, put(session))
    claims.write_notes(session, claim, Notes(1, 2))
    assert state(session, claim.job_id) == JobState.RUNNING
    assert session.execute(select(func.count()).select_from(JobLog)).scalar_one() == 0


# --- what is kept of an error ---


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def test_error_is_kept_with_its_type_text_and_traceback():
    kept = claims.describe(raised(ValueError("not so")))
    assert (kept["type"], kept["message"]) == ("ValueError", "not so")
    assert kept["traceback"].endswith("ValueError: not so\n")
    assert "in raised" in kept["traceback"]


class Spiteful(ValueError):
    """An error whose notes cannot be read."""

    @property
    def __notes__(self):
        raise RuntimeError("not for you")


def test_error_whose_traceback_cannot_be_written_is_described_by_the_rest():
    kept = claims.describe(raised(Spiteful("so it is")))
    assert (kept["type"], kept["message"]) == ("Spiteful", "so it is")
    assert "in raised" in kept["traceback"]


def test_of_an_error_only_so_much_is_kept():
    kept = claims.describe(RuntimeError("no " * 1_000_000))
    assert (len(kept["message"]), kept["message"][:6], len(kept["traceback"])) == (
        claims.LONGEST_MESSAGE,
        "no no ",
        10_000,
    )


# --- what a message may claim ---


def claim_as_a_worker(session, job_id, kind=Limited, **options):
    held = claims.claim(
        session.connection(),
        [job_id],
        claim_id=uuid4(),
        kind=kind.policy.kind,
        worker_id=uuid4(),
        pid=1,
        **options,
    )
    return held[0] if held else None


def test_message_under_another_kinds_name_claims_nothing(session):
    job_id = put(session)
    assert claim_as_a_worker(session, job_id, Side) is None
    assert claim_as_a_worker(session, job_id, Plain) is not None


def test_old_message_does_not_claim_a_limited_job_that_the_relay_has_not_admitted(session):
    job_id = put(session, Limited())
    assert claim_as_a_worker(session, job_id) is None
    change(session, job_id, sent_at=NOW)
    assert claim_as_a_worker(session, job_id) is not None


def test_process_without_a_broker_claims_limited_jobs_too(session):
    job_id = put(session, Limited())
    assert claim_as_a_worker(session, job_id, unlimited=True) is not None


def test_claim_is_found_by_its_id(session):
    claim = take(session, put(session))
    connection = session.connection()
    assert claims.find_claims(connection, [claim.job_id], claim.claim_id) == [claim]
    assert claims.find_claims(connection, [claim.job_id], uuid4()) == []
    claims.succeed(session, claim, claims.Notes(), result=None)
    assert claims.find_claims(connection, [claim.job_id], claim.claim_id) == []
