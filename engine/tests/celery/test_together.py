"""How several jobs of one message run, in the test's process, on each database."""

import itertools
import re
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import probe_app
import probe_app as probe
import psycopg
import pytest
from job_rows import only_on_postgres
from nightshift.celery import messages, task
from nightshift.celery.app import App
from nightshift.celery.link import Word
from nightshift.celery.steps import find_bundles
from nightshift.celery.task import AttemptFailed, job
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.errors import PermanentError, TransientError
from nightshift.jobs import (
    Cancel,
    Discard,
    JobArgs,
    Outcome,
    Rate,
    Run,
    Snooze,
    care,
    enqueue,
    enqueue_many,
)
from nightshift.jobs.claims import LostClaim
from nightshift.jobs.models import Job, JobLog, JobState, Worker
from probing import count_effects, untimed
from sqlalchemy import delete, event, func, select, text, update
from sqlalchemy.exc import OperationalError

SOON = timedelta(seconds=1)


class Do(JobArgs, kind="test.do", queue="together"):
    what: str = "leave"
    seconds: float = 0


class Child(JobArgs, kind="test.child"):
    fails: bool = False


class OwnTransactions(JobArgs, kind="test.own_transactions"):
    pass


class OneAttempt(JobArgs, kind="test.one_attempt", max_attempts=1):
    pass


class SoftLimit(JobArgs, kind="test.soft_limit", soft_time_limit=SOON):
    pass


class Concurrent(JobArgs, kind="test.concurrent", concurrency=2):
    pass


class Rated(JobArgs, kind="test.a_rate", rate=Rate(2, SOON)):
    pass


class UntilStarted(JobArgs, kind="test.until_started", unique_by=(), unique_until="started"):
    pass


class Off(JobArgs, kind="test.off", bundle=1):
    pass


class Few(JobArgs, kind="test.few", bundle=3):
    pass


KINDS = (
    Do, Child, OwnTransactions, OneAttempt, SoftLimit, Concurrent, Rated, UntilStarted, Off, Few,
)  # fmt: skip
OURS = Component(name="together", kinds=KINDS)

# What the bodies have seen, and have kept, in this process.
seen: list[tuple[str, object]] = []
kept: list[Any] = []


class _CannotBeShown(Exception):
    def __str__(self):
        raise RuntimeError("as asked")


@job(Do)
def do(session: Session, args: Do, run: Run) -> Outcome:  # noqa: PLR0912 - one branch a behaviour
    """Do what the arguments say, mostly after leaving a row."""
    seen.append((args.what, run.now))
    if args.what not in ("nothing", "serializable"):
        probe.leave(session, run)
    if args.seconds:
        time.sleep(args.seconds)
    match args.what:
        case "fail":
            raise TransientError("as asked")
        case "fail for good":
            raise PermanentError("as asked")
        case "wrong SQL":
            session.execute(text("select * from no_such_table"))
        case "snooze":
            return Snooze(timedelta(hours=1))
        case "discard":
            return Discard("no use")
        case "cancel":
            return Cancel("not wanted")
        case "log":
            run.log("a line")
            run.progress(1, 2)
        case "spawn":
            run.spawn(session, [Child(), Child()], then=Child())
        case "enqueue":
            enqueue(session, Off(), now=run.now)
        case "commit" | "rollback" | "close":
            getattr(session, args.what)()
        case "commit by the driver":
            session.connection().connection.driver_connection.commit()
        case "stream a commit":
            list(session.connection().connection.driver_connection.cursor().stream("commit"))
        case "exit":
            raise SystemExit("as asked")
        case "lost":
            raise LostClaim("as asked")
        case "deadlock":
            raise OperationalError("update", {}, Exception("deadlock detected"))
        case "packed deadlock":
            error = OperationalError("update", {}, Exception("deadlock detected"))
            raise TransientError("the database is busy") from error
        case "cut":
            driver = session.connection().connection.driver_connection
            pid = driver.info.backend_pid
            with run.runtime.unit_of_work() as another:
                another.execute(text("select pg_terminate_backend(:pid)"), {"pid": pid})
            session.execute(text("select 1"))
        case "set":
            session.execute(text("set local work_mem = '123kB'"))
        case "set after a comment":
            session.execute(text("/* why */ set local work_mem = '123kB'"))
        case "set after a line":
            session.execute(text("-- why\nset local work_mem = '123kB'"))
        case "open a cursor":
            session.execute(text("declare rows cursor for select 1"))
        case "open the driver's cursor":
            cursor = session.connection().connection.driver_connection.cursor(name="rows")
            cursor.execute("select 1")
            kept.append(cursor)
        case "serializable":
            session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        case "deadlock of the driver":
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        case "its own cause":
            error = TransientError("as asked")
            raise error from error
        case "no row":
            session.execute(text("select 1 where 1 = 0")).one()
        case "keep":
            kept.append(session)
        case "use what was kept":
            kept.pop().execute(text("commit"))
        case "cannot be shown":
            session.connection().invalidate()
            raise _CannotBeShown
        case "show":
            return session.execute(text("show work_mem")).scalar_one()
        case "keep a part" | "keep a part and fail":
            with session.begin_nested():
                probe.leave(session, run)
            if args.what != "keep a part":
                raise TransientError("as asked")
        case "undo a part" | "undo a part and fail":
            for error in (None, TransientError("undone")):
                with suppress(TransientError), session.begin_nested():
                    probe.leave(session, run)
                    if error:
                        raise error
            if args.what != "undo a part":
                raise TransientError("as asked")
        case "swallow":
            with suppress(Exception):
                session.execute(text("select * from no_such_table"))
    return args.what


@job(Child)
def child(session: Session, args: Child, run: Run) -> None:
    """End, or fail for good."""
    if args.fails:
        raise PermanentError("as asked")


@job(OwnTransactions, own_transactions=True)
def own_transactions(args: OwnTransactions, run: Run) -> None:
    """Write in a transaction of its own."""
    with run.unit_of_work() as session:
        probe.leave(session, run)


def nothing(session: Session, args: JobArgs, run: Run) -> None:
    """Do nothing."""


for kind in KINDS[3:]:
    job(kind)(nothing)


@pytest.fixture
def app(database_url, tmp_path):
    """Yield an app that knows the bodies, on each database."""
    composition = Composition([*probe_app.app.composition.components, OURS])
    app = App(
        "probe_app",
        composition,
        _env_file=None,
        database_url=database_url,
        broker_url=f"filesystem://{tmp_path}/broker",
    )
    app.loader.import_default_modules()
    seen.clear()
    kept.clear()
    yield app
    with app.runtime.unit_of_work() as session:
        for table in (JobLog, Job, Worker, probe.Effect):
            session.execute(delete(table))
    app.runtime.close()


@pytest.fixture(autouse=True)
def without_hurry(monkeypatch):
    """Let no job count as slow because the machine is."""
    for where, name in ((task, "SLICE"), (task, "SLOW"), (messages, "BUNDLE_SECONDS")):
        monkeypatch.setattr(where, name, 60.0)


def put(app, jobs, **options):
    """Enqueue jobs as one message's; return their ids in the order of `jobs`."""
    app.runtime.publisher = None
    with app.runtime.unit_of_work() as session:
        ids = enqueue_many(session, jobs, now=app.runtime.now(), **options)
        change = update(Job).where(Job.id.in_(ids))
        session.execute(change.values(sent_at=app.runtime.now(), message_id=uuid4()))
    return ids


def put_all(app, *whats):
    return put(app, [what if isinstance(what, Do) else Do(what=what) for what in whats])


def receive(app, ids, kind="test.do"):
    """Run a message as Celery does."""
    found = app.tasks[kind]
    named = list(map(str, ids))
    found.push_request(id=named[0])
    try:
        return found.run(job_ids=named)
    finally:
        found.pop_request()


def rows(app, ids):
    with app.runtime.read_only() as session:
        found = {
            row.id: row for row in session.execute(select(Job).where(Job.id.in_(ids))).scalars()
        }
    return [found[job_id] for job_id in ids]


def states(app, ids):
    return [row.state.value for row in rows(app, ids)]


def effects(app, ids):
    return [count_effects(app.runtime, job_id) for job_id in ids]


def are_given_back(found):
    """Whether jobs are queued again, uncharged and to run alone."""
    return [
        (row.state, row.attempt, row.sent_at, row.claim_id, row.message_id == row.id)
        for row in found
    ] == [(JobState.QUEUED, 0, None, None, True)] * len(found)


def count_statements(app, call):
    counted = []

    def note(_connection, _cursor, statement, *_):
        counted.append(statement)

    # On SQLite both are one, with other options.
    both = (app.runtime.engine, app.runtime._autocommit)
    engines = {engine.pool: engine for engine in both}.values()
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        call()
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)
    return [one.split()[0] for one in counted]


# --- which kinds ---


def test_bundled_are_kinds_whose_jobs_cannot_notice(app):
    found = find_bundles(app)
    named = {kind.policy.kind: found.get(kind.policy.kind, 1) for kind in KINDS}
    assert {name: size for name, size in named.items() if size > 1} == {
        "test.do": 50, "test.child": 50, "test.few": 3,
    }  # fmt: skip


@pytest.mark.parametrize("size", [0, 61])
def test_absurd_size_of_a_bundle_is_refused(size):
    with pytest.raises(ValueError, match="bundle"):

        class _Absurd(JobArgs, kind="test.absurd", bundle=size):
            pass


def test_jobs_of_another_kind_run_one_by_one_all_the_same(app):
    ids = put(app, [OwnTransactions() for _ in range(3)])
    receive(app, ids, "test.own_transactions")
    assert (states(app, ids), effects(app, ids)) == (["succeeded"] * 3, [1] * 3)


# --- their ends ---


def test_effects_and_ends_of_all_are_written(app):
    ids = put_all(app, *["leave"] * 20)
    receive(app, ids)
    found = rows(app, ids)
    assert {(row.state, row.attempt, row.result) for row in found} == {
        (JobState.SUCCEEDED, 1, "leave")
    }
    assert effects(app, ids) == [1] * 20
    assert all(row.claim_id is None for row in found)


def test_jobs_run_in_the_order_of_the_message(app):
    ids = put(app, [Do(what=str(number)) for number in range(10)])
    with app.runtime.read_only() as session:
        args = dict(session.execute(select(Job.id, Job.args)).all())
    receive(app, ids)
    assert [what for what, _ in seen] == [args[job_id]["what"] for job_id in ids]


def test_jobs_without_an_effect_cost_a_claim_and_an_end_together(app):
    app.runtime.engine, app.runtime._autocommit  # noqa: B018 - made here
    few = put_all(app, *["nothing"] * 2)
    many = put_all(app, *["nothing"] * 20)
    counts = [len(count_statements(app, lambda ids=ids: receive(app, ids))) for ids in (few, many)]
    assert counts[0] == counts[1] <= 6
    assert states(app, few + many) == ["succeeded"] * 22


def test_each_job_has_a_start_and_an_end_of_its_own(app):
    ids = put(app, [Do(seconds=0.04) for _ in range(4)])
    receive(app, ids)
    found = sorted(rows(app, ids), key=lambda row: row.started_at)
    for row in found:
        assert 0.02 <= (row.finished_at - row.started_at).total_seconds() < 1
    for earlier, later in itertools.pairwise(found):
        assert earlier.finished_at <= later.started_at
    assert sorted(now for _, now in seen) == [row.started_at for row in found]


def test_every_outcome_is_written_as_if_the_job_were_alone(app):
    whats = ["leave", "snooze", "discard", "cancel", "log", "nothing"]
    ids = put_all(app, *whats)
    receive(app, ids)
    found = {row.args["what"]: row for row in rows(app, ids)}
    assert {what: (row.state.value, row.attempt, row.result) for what, row in found.items()} == {
        "leave": ("succeeded", 1, "leave"),
        "snooze": ("scheduled", 0, None),
        "discard": ("discarded", 1, "no use"),
        "cancel": ("cancelled", 1, "not wanted"),
        "log": ("succeeded", 1, "log"),
        "nothing": ("succeeded", 1, "nothing"),
    }
    log = found["log"]
    assert (log.progress_done, log.progress_total) == (1, 2)
    with app.runtime.read_only() as session:
        lines = session.execute(select(JobLog.job_id, JobLog.attempt, JobLog.line)).all()
    assert lines == [(log.id, 1, "a line")]
    wait = found["snooze"].run_at - found["snooze"].started_at
    assert wait == timedelta(hours=1)


@pytest.mark.parametrize("result", ["\0", "\ud800", {"a": ["\0"]}, [None], "null", 1.5, False])
def test_result_is_kept_as_it_is(app, result, monkeypatch):
    monkeypatch.setattr(app.tasks["test.do"], "body", lambda *_: result)
    ids = put_all(app, "leave", "leave")
    receive(app, ids)
    assert [(row.state, row.result) for row in rows(app, ids)] == [("succeeded", result)] * 2


def test_failed_job_is_tried_again_alone(app):
    ids = put_all(app, "leave", "fail", "leave")
    with pytest.raises(AttemptFailed):
        receive(app, ids)
    failed = rows(app, ids)[1]
    assert (failed.state, failed.message_id) == (JobState.SCHEDULED, failed.id)


def test_arguments_that_are_no_longer_valid_discard_their_job_only(app):
    ids = put_all(app, *["leave"] * 3)
    with app.runtime.unit_of_work() as session:
        session.execute(update(Job).where(Job.id == ids[1]).values(args={"seconds": "x"}))
    receive(app, ids)
    assert states(app, ids) == ["succeeded", "discarded", "succeeded"]


def test_children_are_counted_in_their_parent(app):
    parents = put_all(app, "spawn", "spawn")
    receive(app, parents)
    assert states(app, parents) == ["waiting"] * 2
    with app.runtime.unit_of_work() as session:
        found = select(Job.id).where(Job.parent_id.is_not(None)).order_by(Job.id)
        children = list(session.execute(found).scalars())
        session.execute(update(Job).where(Job.id == children[0]).values(args={"fails": True}))
    with pytest.raises(AttemptFailed):
        receive(app, children, "test.child")
    assert [(row.children_open, row.children) for row in rows(app, parents)] == [(1, 3)] * 2
    with app.runtime.read_only() as session:
        then = list(session.execute(found.where(Job.state == JobState.QUEUED)).scalars())
    receive(app, then, "test.child")
    assert sorted(states(app, parents)) == ["failed", "succeeded"]


def test_jobs_that_are_enqueued_are_sent_after_the_commit(app):
    ids = put_all(app, "enqueue", "leave", "enqueue")
    sent = []

    class Publisher:
        def send_soon(self, runtime, ids):
            assert states(app, ids) == ["queued"] * 2
            sent.extend(ids)

        def close(self):
            pass

    app.runtime.publisher = Publisher()
    receive(app, ids)
    assert len(sent) == 2


def test_one_job_of_a_message_that_can_be_claimed_takes_the_path_of_one(app):
    ids = put_all(app, *["leave"] * 3)
    with app.runtime.unit_of_work() as session:
        care.hold(session, ids[:1])
        care.cancel(session, ids[1:2])
    receive(app, ids)
    assert states(app, ids) == ["held", "cancelled", "succeeded"]


def test_message_of_which_nothing_can_be_claimed_does_nothing(app):
    ids = put_all(app, *["leave"] * 3)
    receive(app, ids)
    receive(app, ids)
    assert effects(app, ids) == [1] * 3


def test_paused_queue_starts_none(app):
    ids = put_all(app, *["leave"] * 3)
    with app.runtime.unit_of_work() as session:
        care.pause(session, "together", now=app.runtime.now())
    receive(app, ids)
    assert states(app, ids) == ["queued"] * 3
    with app.runtime.unit_of_work() as session:
        while care.resume(session, "together"):
            pass


# --- errors ---


@pytest.mark.parametrize(
    ("what", "state"),
    [
        ("fail", "scheduled"), ("fail for good", "failed"), ("exit", "scheduled"),
        ("commit", "failed"), ("rollback", "failed"), ("close", "failed"),
        ("its own cause", "scheduled"), ("no row", "scheduled"),
    ],
)  # fmt: skip
def test_error_undoes_its_own_job_only(app, what, state):
    ids = put_all(app, "leave", what, "leave", "nothing")
    with pytest.raises(AttemptFailed):
        receive(app, ids)
    assert states(app, ids) == ["succeeded", state, "succeeded", "succeeded"]
    assert effects(app, ids) == [1, 0, 1, 0]
    failed = rows(app, ids)[1]
    assert (failed.attempt, len(failed.errors), failed.claim_id) == (1, 1, None)


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("keep a part", 2), ("undo a part", 2),
        ("keep a part and fail", 0), ("undo a part and fail", 0),
    ],
)  # fmt: skip
def test_savepoints_of_a_body_are_its_own(app, what, left):
    ids = put_all(app, "leave", what, "fail", what, "leave")
    with pytest.raises(AttemptFailed):
        receive(app, ids)
    assert effects(app, ids) == [1, left, 0, left, 1]


@only_on_postgres
def test_savepoint_costs_one_round_trip_and_the_last_one_none(app, monkeypatch):
    sent, execute = [], psycopg.Connection.execute

    def note(connection, statement, *arguments, **options):
        sent.append(re.sub(r"\d+", "N", statement))
        return execute(connection, statement, *arguments, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", note)
    ids = put_all(app, *["leave"] * 3)
    statements = count_statements(app, lambda: receive(app, ids))
    # Three jobs' and that of their ends.
    both = "RELEASE SAVEPOINT sa_savepoint_N;SAVEPOINT sa_savepoint_N"
    assert sent == ["SAVEPOINT sa_savepoint_N", both, both, both]
    assert not {"SAVEPOINT", "RELEASE"} & set(statements)


def test_wrong_sql_fails_its_own_job_only(app):
    ids = put_all(app, "leave", "wrong SQL", "leave")
    with suppress(AttemptFailed):
        receive(app, ids)
    first, wrong, last = rows(app, ids)
    assert (first.state, wrong.state in (JobState.SCHEDULED, JobState.QUEUED)) == (
        JobState.SUCCEEDED,
        True,
    )
    assert effects(app, ids)[:2] == [1, 0]
    assert last.state in (JobState.SUCCEEDED, JobState.QUEUED)


@pytest.mark.parametrize(
    "what", ["deadlock", "packed deadlock", "deadlock of the driver", "serializable"]
)
def test_error_that_others_may_have_caused_lets_the_rest_run_alone(app, what):
    ids = put_all(app, "leave", what, "leave")
    receive(app, ids)
    first, *others = rows(app, ids)
    assert (first.state, effects(app, ids)) == (JobState.SUCCEEDED, [1, 0, 0])
    assert are_given_back(others)
    assert all(row.errors is None for row in others)


def test_end_of_the_transaction_lets_all_run_alone(app):
    ids = put_all(app, "leave", "commit by the driver", "leave")
    receive(app, ids)
    assert are_given_back(rows(app, ids))
    assert effects(app, ids) == [0] * 3


def test_nothing_is_said_of_a_failure_that_was_undone(app, caplog):
    receive(app, put_all(app, "fail", "commit by the driver"))
    assert not [line for line in caplog.messages if "failed" in line]


@only_on_postgres
def test_streamed_commit_is_refused(app):
    ids = put_all(app, "leave", "stream a commit", "leave")
    with suppress(AttemptFailed):
        receive(app, ids)
    assert effects(app, ids) == [1, 0, 1]


@only_on_postgres
def test_lost_connection_lets_all_run_alone(app):
    ids = put_all(app, "leave", "cut", "leave")
    receive(app, ids)
    assert are_given_back(rows(app, ids))
    assert effects(app, ids) == [0] * 3


@only_on_postgres
def test_error_of_the_database_that_a_body_swallows_lets_all_run_alone(app):
    ids = put_all(app, "leave", "swallow", "leave")
    receive(app, ids)
    assert are_given_back(rows(app, ids))
    assert effects(app, ids) == [0] * 3


def test_job_that_was_cancelled_meanwhile_is_undone_and_the_others_run_alone(app, monkeypatch):
    ids = put_all(app, *["leave"] * 3)
    held = app.tasks["test.do"]._claim

    def claim_and_cancel(*args, **options):
        claims = held(*args, **options)
        with app.runtime.unit_of_work() as session:
            care.cancel(session, [ids[1]])
        return claims

    monkeypatch.setattr(app.tasks["test.do"], "_claim", claim_and_cancel)
    receive(app, ids)
    first, cancelled, last = rows(app, ids)
    assert (cancelled.state, cancelled.claim_id) == (JobState.CANCELLED, None)
    assert are_given_back([first, last])
    assert effects(app, ids) == [0] * 3


def test_claim_that_a_body_calls_lost_is_given_back_at_the_end(app):
    ids = put_all(app, "leave", "lost", "leave")
    receive(app, ids)
    first, lost, last = rows(app, ids)
    assert [first.state, last.state] == [JobState.SUCCEEDED] * 2
    assert are_given_back([lost])
    assert effects(app, ids) == [1, 0, 1]


def test_keeper_is_told_when_the_jobs_cannot_be_given_back(app, keeper, monkeypatch):
    monkeypatch.setattr("nightshift.celery.task.DATABASE_PATIENCE", timedelta(0))
    monkeypatch.setattr("nightshift.celery.task.DATABASE_PAUSE", 0.01)

    def away(*_):
        raise OperationalError("undo", {}, Exception("the connection was cut"))

    ids = put_all(app, "leave", "commit by the driver")
    with monkeypatch.context() as patched:
        patched.setattr("nightshift.jobs.claims.undo_claims", away)
        receive(app, ids)
    assert untimed(keeper.hear()) == [(Word.UNENDED, rows(app, ids)[0].claim_id)]


def test_error_that_cannot_be_shown_leaves_no_job_without_a_runner(app):
    ids = put_all(app, "leave", "cannot be shown", "leave")
    receive(app, ids)
    assert are_given_back(rows(app, ids))


def test_session_that_a_job_keeps_is_of_no_use_to_another(app):
    ids = put_all(app, "leave", "keep", "use what was kept", "leave")
    with pytest.raises(AttemptFailed):
        receive(app, ids)
    assert states(app, ids) == ["succeeded", "succeeded", "failed", "succeeded"]
    assert effects(app, ids) == [1, 1, 0, 1]


@only_on_postgres
@pytest.mark.parametrize("what", ["open a cursor", "open the driver's cursor"])
def test_cursor_that_a_job_leaves_open_is_not_its_neighbours(app, what):
    ids = put_all(app, what, what, what)
    receive(app, ids)
    assert states(app, ids) == ["succeeded"] * 3
    for cursor in kept:
        cursor.close()


@only_on_postgres
@pytest.mark.parametrize("what", ["set", "set after a comment", "set after a line"])
def test_what_a_job_sets_for_its_transaction_is_not_its_neighbours(app, what):
    ids = put_all(app, "show", what, "show")
    receive(app, ids)
    first, _, last = rows(app, ids)
    assert first.result == last.result != "123kB"


# --- slow jobs ---


def test_jobs_behind_a_slow_one_are_left_to_others(app, monkeypatch):
    monkeypatch.setattr(task, "SLOW", 1.0)
    ids = put_all(app, "leave", Do(seconds=task.SLOW), "leave", "leave")
    receive(app, ids)
    found = rows(app, ids)
    assert [row.state for row in found[:2]] == [JobState.SUCCEEDED] * 2
    assert are_given_back(found[2:])
    assert effects(app, ids) == [1, 1, 0, 0]


def test_what_is_done_is_committed_after_each_slice(app, monkeypatch):
    monkeypatch.setattr(task, "SLICE", 0.03)
    ids = put(app, [Do(seconds=0.04) for _ in range(4)] + [Do(what="commit by the driver")])
    with app.runtime.read_only() as session:
        broken = session.execute(
            select(Job.id).where(Job.id.in_(ids), func.length(Job.args["what"].as_string()) > 10)
        ).scalar_one()
    ids.sort(key=lambda job_id: job_id == broken)
    receive(app, ids)
    assert states(app, ids) == ["succeeded"] * 4 + ["queued"]


def test_no_job_is_started_when_the_messages_time_is_short(app, monkeypatch):
    monkeypatch.setattr(messages, "BUNDLE_SECONDS", 0.0)
    ids = put_all(app, "leave", "leave", "leave")
    receive(app, ids)
    first, *others = rows(app, ids)
    assert first.state == JobState.SUCCEEDED
    assert {(row.state, row.attempt, row.message_id) for row in others} == {
        (JobState.QUEUED, 0, None)
    }


def test_lines_of_the_log_name_their_job(app, caplog):
    caplog.set_level("INFO")
    ids = put_all(app, "leave", "nothing")
    receive(app, ids)
    lines = [line for line in caplog.messages if line.startswith("job ")]
    assert [line.partition(" after")[0] for line in lines] == [
        "job started, attempt 1 of 5", "job started, attempt 1 of 5",
        "job succeeded", "job succeeded",
    ]  # fmt: skip
