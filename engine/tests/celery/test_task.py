"""How a job runs, in the test's process."""

import os
import time
from asyncio import CancelledError
from contextlib import contextmanager, suppress
from datetime import timedelta

import probe_app
import probe_app as probe
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from nightshift.celery.app import App
from nightshift.celery.link import Word
from nightshift.celery.task import AttemptFailed, job, run_here, working_here
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.errors import PermanentError, TransientError
from nightshift.jobs import JobArgs, Run, care, claims
from nightshift.jobs.models import Job, JobState, Worker
from nightshift.jobs.session import BrokenTransaction
from probing import count_effects, put, untimed
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError


class CancelMyself(JobArgs, kind="test.cancel_myself"):
    and_raise: bool = False


class Misbehave(JobArgs, kind="test.misbehave"):
    what: str


class Undo(JobArgs, kind="test.undo"):
    pass


OURS = Component(name="task", kinds=(CancelMyself, Misbehave, Undo))


@pytest.fixture(scope="module")
def project_app():
    """Return the probe's app with the kinds of this module."""
    composition = Composition([*probe_app.app.composition.components, OURS])
    return App("probe_app", composition, _env_file=None)


@job(CancelMyself, own_transactions=True)
def cancel_myself(args: CancelMyself, run: Run) -> None:
    """Cancel the job as another process would, while it runs."""
    with run.runtime.unit_of_work() as session:
        care.cancel(session, [run.id])
    if args.and_raise:
        raise ConnectionError


@pytest.fixture
def app(job_app):
    """Return an app that knows the bodies."""
    job_app.loader.import_default_modules()
    return job_app


def find_job(app, job_id):
    with app.runtime.read_only() as session:
        return session.execute(select(Job).where(Job.id == job_id)).scalar_one()


def find_workers(app):
    with app.runtime.read_only() as session:
        return session.execute(select(Worker)).scalars().all()


def test_effect_and_end_are_written(app):
    job_id = put(app.runtime, probe.Leave(number=3))
    assert app.tasks["probe.leave"].perform(job_id) == JobState.SUCCEEDED
    assert (find_job(app, job_id).result, count_effects(app.runtime, job_id)) == (3, 1)


def test_second_run_finds_nothing_to_claim(app):
    job_id = put(app.runtime, probe.Leave())
    states = [app.tasks["probe.leave"].perform(job_id) for _ in range(2)]
    assert states == [JobState.SUCCEEDED, None]
    assert count_effects(app.runtime, job_id) == 1


@pytest.mark.parametrize(
    ("permanent", "error", "state"),
    [(True, PermanentError, JobState.FAILED), (False, TransientError, JobState.SCHEDULED)],
)
def test_type_of_the_error_decides_whether_it_is_tried_again(app, permanent, error, state):
    job_id = put(app.runtime, probe.Fail(permanent=permanent))
    with pytest.raises(error, match="as asked"):
        app.tasks["probe.fail"].perform(job_id)
    assert (find_job(app, job_id).state, count_effects(app.runtime, job_id)) == (state, 0)


def test_job_that_leaves_its_end_open_is_finished(app):
    job_id = put(app.runtime, probe.TooLong(seconds=0))
    assert app.tasks["probe.too_long"].perform(job_id) == JobState.SUCCEEDED


def test_end_of_a_job_that_was_cancelled_meanwhile_is_refused(app, caplog):
    job_id = put(app.runtime, CancelMyself())
    assert app.tasks["test.cancel_myself"].perform(job_id) is None
    assert find_job(app, job_id).state == JobState.CANCELLED
    assert f"job {job_id} was cancelled or given to another worker" in caplog.text


def test_cancelled_run_that_has_ended_is_not_waited_for(app):
    for and_raise in (False, True):
        job_id = put(app.runtime, CancelMyself(and_raise=and_raise))
        with suppress(ConnectionError):
            app.tasks["test.cancel_myself"].perform(job_id)
        job = find_job(app, job_id)
        assert (job.state, job.claim_id) == (JobState.CANCELLED, None)


def test_celery_enforces_the_time_limit_of_the_kind(app):
    limits = [app.tasks[kind].time_limit for kind in ("probe.too_long", "probe.sleep")]
    assert limits == [2.0, 120.0]


def test_run_here_raises_nothing_of_the_body(app):
    job_id = put(app.runtime, probe.Fail(permanent=True))
    run_here(app, job_id, "probe.fail")
    assert find_job(app, job_id).state == JobState.FAILED


def test_run_here_leaves_a_job_of_an_unknown_kind_as_it_is(app):
    job_id = put(app.runtime, probe.Leave())
    with app.runtime.unit_of_work() as session:
        session.execute(update(Job).where(Job.id == job_id).values(kind="probe.removed"))
    run_here(app, job_id, "probe.removed")
    assert (find_job(app, job_id).state, find_job(app, job_id).attempt) == (JobState.QUEUED, 0)


def test_process_that_works_here_is_shown_as_a_worker_while_it_does(app):
    with working_here(app):
        give_up = time.monotonic() + 100
        while not (workers := find_workers(app)) and time.monotonic() < give_up:
            time.sleep(0.01)
        shown = [(one.id, one.pid, one.stopped_at) for one in workers]
    assert shown == [(app.worker_id, os.getpid(), None)]
    assert [one.stopped_at is None for one in find_workers(app)] == [False]


def test_job_that_was_under_way_here_is_released_at_the_end(app):
    job_id = put(app.runtime, probe.Leave())

    def interrupted():
        with working_here(app):
            with app.runtime.unit_of_work() as session:
                ours = {"worker_id": app.worker_id, "claim_id": job_id, "pid": os.getpid()}
                now = app.runtime.now()
                running = {"state": JobState.RUNNING, "attempt": 1, "started_at": now}
                session.execute(update(Job).where(Job.id == job_id).values(**ours, **running))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert find_job(app, job_id).state == JobState.SCHEDULED


# --- bodies that break the rules ---


EXITS = {
    one.__name__: one for one in (SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError)
}


@job(Misbehave)
def misbehave(session: Session, args: Misbehave, _run: Run) -> None:
    """Leave a row, and do what the arguments say."""
    probe.leave(session, _run)
    if args.what in EXITS:
        raise EXITS[args.what]("as asked")
    if args.what == "lost":
        raise claims.LostClaim("as asked")
    if args.what == "long":
        raise RuntimeError("x" * 100_000_000)
    getattr(session, args.what)()


@pytest.mark.parametrize("what", ["commit", "rollback", "close"])
def test_body_that_ends_its_transaction_fails_without_an_effect(app, what):
    job_id = put(app.runtime, Misbehave(what=what))
    with pytest.raises(BrokenTransaction):
        app.tasks["test.misbehave"].perform(job_id)
    found = find_job(app, job_id)
    assert (found.state, count_effects(app.runtime, job_id)) == (JobState.FAILED, 0)
    assert "must not commit, roll back or close" in found.errors[-1]["message"]


@pytest.mark.usefixtures("keeper")
@pytest.mark.parametrize("what", EXITS)
def test_every_exception_of_a_body_is_recorded_and_tried_again(app, what):
    job_id = put(app.runtime, Misbehave(what=what))
    with pytest.raises(EXITS[what]):
        app.tasks["test.misbehave"].perform(job_id)
    found = find_job(app, job_id)
    assert (found.state, found.attempt, found.errors[-1]["type"]) == (JobState.SCHEDULED, 1, what)
    assert "as asked" in found.errors[-1]["traceback"]


def test_claim_that_a_body_calls_lost_is_released_by_the_keeper(app, keeper):
    job_id = put(app.runtime, Misbehave(what="lost"))
    assert app.tasks["test.misbehave"].perform(job_id) is None
    assert untimed(keeper.hear()) == [(Word.UNENDED, find_job(app, job_id).claim_id)]


# --- claims without an answer ---


class Unsteady:
    """A runtime whose next statements fail: before they are sent, or after they were executed."""

    def __init__(self, runtime, *, lost):
        self._runtime = runtime
        self._lost = lost

    def __getattr__(self, name):
        return getattr(self._runtime, name)

    @contextmanager
    def single_statement(self):
        if self._lost and self._lost[0] == "before":
            self._lost.pop(0)
            raise OperationalError("claim", {}, Exception("the connection was cut"))
        with self._runtime.single_statement() as connection:
            yield connection
        if self._lost:
            self._lost.pop(0)
            raise OperationalError("claim", {}, Exception("the connection was cut"))


@pytest.mark.parametrize("lost", [["before"], ["after"], ["before", "after", "before"]])
def test_claim_whose_answer_is_lost_is_asked_for_again(app, monkeypatch, lost):
    monkeypatch.setattr("nightshift.celery.task.DATABASE_PAUSE", 0.01)
    job_id = put(app.runtime, probe.Leave())
    monkeypatch.setattr(app, "runtime", Unsteady(app.runtime, lost=lost))
    assert app.tasks["probe.leave"].perform(job_id) == JobState.SUCCEEDED
    found = find_job(app, job_id)
    assert (found.attempt, count_effects(app.runtime, job_id)) == (1, 1)


def test_keeper_is_told_of_a_claim_without_an_answer(app, keeper, monkeypatch):
    monkeypatch.setattr("nightshift.celery.task.DATABASE_PATIENCE", timedelta(0))
    job_id = put(app.runtime, probe.Leave())
    monkeypatch.setattr(app, "runtime", Unsteady(app.runtime, lost=["after"]))
    with pytest.raises(OperationalError):
        app.tasks["probe.leave"].perform(job_id)
    found = find_job(app, job_id)
    assert untimed(keeper.hear()) == [(Word.UNSTARTED, found.claim_id)]
    assert found.state == JobState.RUNNING


def test_keeper_is_told_when_an_answer_comes_after_all(app, keeper, monkeypatch):
    monkeypatch.setattr("nightshift.celery.task.DATABASE_PAUSE", 0.01)
    job_id = put(app.runtime, probe.Leave())
    monkeypatch.setattr(app, "runtime", Unsteady(app.runtime, lost=["after"]))
    app.tasks["probe.leave"].perform(job_id)
    [(first, unsure), (last, sure)] = untimed(keeper.hear())
    assert (first, last, unsure) == (Word.UNSURE, Word.SURE, sure)


def test_message_of_another_kind_runs_nothing(app):
    job_id = put(app.runtime, probe.Leave())
    assert app.tasks["probe.fail"].perform(job_id) is None
    assert (find_job(app, job_id).state, find_job(app, job_id).attempt) == (JobState.QUEUED, 0)


# --- what Celery gets ---


def receive(app, kind, job_id, **kwargs):
    """Run a task as Celery does for a message."""
    task = app.tasks[kind]
    task.push_request(id=str(job_id))
    try:
        return task.run(**kwargs)
    finally:
        task.pop_request()


def test_job_of_a_message_is_run(app):
    job_id = put(app.runtime, probe.Leave(number=3))
    receive(app, "probe.leave", job_id, job_ids=[str(job_id)])
    assert find_job(app, job_id).result == 3


def test_job_of_a_message_of_the_release_before_is_run(app):
    job_id = put(app.runtime, probe.Leave(number=3))
    receive(app, "probe.leave", job_id, number=3, milliseconds=0)
    assert find_job(app, job_id).result == 3


@pytest.mark.parametrize("how", EXITS)
def test_no_body_ends_its_process(app, how):
    job_id = put(app.runtime, Misbehave(what=how))
    with pytest.raises(AttemptFailed, match=f"{how}: as asked") as failed:
        receive(app, "test.misbehave", job_id, job_ids=[str(job_id)])
    assert failed.value.__cause__ is None


def test_celery_learns_no_more_of_an_error_than_the_ledger_keeps(app):
    job_id = put(app.runtime, Misbehave(what="long"))
    with pytest.raises(AttemptFailed) as failed:
        receive(app, "test.misbehave", job_id, job_ids=[str(job_id)])
    assert len(str(failed.value)) < 3_000


# --- ends that are undone ---


@job(Undo, own_transactions=True)
def undo(args: Undo, run: Run) -> str:
    """Finish in a transaction that is rolled back, and then answer otherwise."""
    with suppress(ConnectionError), run.unit_of_work() as session:
        run.finish(session, "written")
        raise ConnectionError
    return "written after all"


def test_end_that_was_rolled_back_is_written_again(app):
    job_id = put(app.runtime, Undo())
    assert app.tasks["test.undo"].perform(job_id) == JobState.SUCCEEDED
    assert find_job(app, job_id).result == "written after all"


def test_soft_time_limit_while_a_failure_is_recorded_is_told_to_the_keeper(
    app, keeper, monkeypatch
):
    job_id = put(app.runtime, probe.Fail())

    def limit(*_args, **_options):
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(Run, "fail", limit)
    with pytest.raises(SoftTimeLimitExceeded):
        app.tasks["probe.fail"].perform(job_id)
    assert untimed(keeper.hear()) == [(Word.UNENDED, find_job(app, job_id).claim_id)]
