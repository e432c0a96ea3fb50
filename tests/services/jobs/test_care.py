"""What a person may do to jobs, on both databases."""

import threading
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from sqlalchemy import delete, func, select, update

from project.bootstrap import make_engine
from services.database import Base, Session, resolve
from services.errors import Conflict, InvalidInput, NotFound
from services.jobs import Backoff, JobArgs, care, claims, enqueue, enqueue_many, insight, relay
from services.jobs.models import Job, JobLog, JobState, PausedQueue
from services.jobs.run import Run
from tests.conftest import NOW, make_settings

LONG_AGO = NOW - timedelta(days=100)
KEEP = care.retention(succeeded=timedelta(days=7), failed=timedelta(days=30))


class Plain(JobArgs, kind="care.plain"):
    number: int = 0


class Mail(JobArgs, kind="care.mail", queue="mail"):
    pass


class Only(JobArgs, kind="care.only", unique_by=("number",)):
    number: int = 0


class Limited(JobArgs, kind="care.limited", concurrency=2):
    number: int


class Parent(JobArgs, kind="care.parent"):
    pass


class Then(JobArgs, kind="care.then"):
    pass


def put(session, args=None, **options):
    return enqueue(session, args or Plain(), now=NOW, **options)


def row(session, job_id):
    return session.execute(select(Job).where(Job.id == job_id).execution_options(populate_existing=True)).scalar_one()


def state(session, job_id):
    return row(session, job_id).state


def take(session, job_id):
    # The clock of the claim is the database's, and NOW is a literal.
    session.execute(update(Job).where(Job.id == job_id).values(run_at=LONG_AGO))
    relay.promote(session)
    claim = claims.claim(session.connection(), job_id, worker_id=uuid4(), pid=1)
    assert claim is not None
    return claim


def finish(session, job_id, ends=JobState.SUCCEEDED):
    claims.end(session, take(session, job_id), ends, claims.Notes())


def batch(session, children=3, *, then=True, parent_id=None):
    """Write a waiting parent, and return its id with its children's."""
    job_id = put(session, Parent(), parent_id=parent_id)
    run = Run(take(session, job_id), None, None)
    run.spawn(session, [Plain(number=n) for n in range(children)], then=Then() if then else None)
    run.finish(session)
    return job_id, list(session.execute(select(Job.id).where(Job.parent_id == job_id).order_by(Job.id)).scalars())


def numbers(session, job_id):
    parent = row(session, job_id)
    return parent.state, parent.children_open, parent.children_failed


# --- when ---


def test_time_without_a_zone_is_refused(session):
    naive = NOW.replace(tzinfo=None)
    for call in (lambda: put(session, run_at=naive), lambda: enqueue_many(session, [Plain()], now=NOW, run_at=naive)):
        with pytest.raises(ValueError, match="time zone"):
            call()


def test_time_beyond_the_last_one_is_refused(session):
    last = datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))
    for call in (lambda: put(session, run_at=last), lambda: enqueue_many(session, [Plain()], now=NOW, run_at=last)):
        with pytest.raises(OverflowError):
            call()
    assert row(session, put(session, run_at=datetime.max.replace(tzinfo=UTC))).run_at.year == 9999


# --- what a body says ---


class Unreadable(Exception):
    def __str__(self):
        raise ValueError("no")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_that_a_body_says_keeps_its_end_out_of_the_ledger(session, fails):
    job_id = put(session)
    run = Run(take(session, job_id), None, None)
    run.log("a\0b \udcff \N{GRINNING FACE}")
    run.progress(3_000_000_000, 4_000_000_000)
    if fails:
        run.fail(session, Unreadable("\0 \udcff"), retry_after=None)
    else:
        run.finish(session, "\0 \udcff")
    shown = insight.show(session, job_id)
    assert [line.line for line in shown.lines] == ["a\N{REPLACEMENT CHARACTER}b \\udcff \N{GRINNING FACE}"]
    assert shown.job.progress_done / shown.job.progress_total == 0.75
    if fails:
        message = "its text cannot be read: ValueError"
        assert [(error["type"], error["message"]) for error in shown.job.errors] == [("Unreadable", message)]
    else:
        assert shown.job.result == "\0 \udcff"


def test_of_an_error_only_so_much_is_kept():
    kept = claims.describe(RuntimeError("no " * 1_000_000))
    assert (len(kept["message"]), kept["message"][:6], len(kept["traceback"])) == (claims.LONGEST_MESSAGE, "no no ", 10_000)


@pytest.mark.parametrize("first", [timedelta(seconds=5), timedelta(days=3)])
def test_backoff_ends_at_its_cap_whatever_the_attempt(first):
    backoff = Backoff(first, cap=timedelta(days=30))
    assert first / 2 <= backoff.delay(1) <= first
    assert all(timedelta(days=15) <= backoff.delay(attempt) <= timedelta(days=30) for attempt in (20, 31, 1000))


# --- batches ---


def test_children_of_several_calls_are_one_batch(session):
    parent = put(session, Parent())
    run = Run(take(session, parent), None, None)
    run.spawn(session, [Plain(number=1)], then=Then())
    run.spawn(session, [Plain(number=2), Plain(number=3)])
    with session.begin_nested() as savepoint:
        run.spawn(session, [Plain(number=4)])
        savepoint.rollback()
    run.finish(session)
    assert numbers(session, parent) == (JobState.WAITING, 3, 0)
    for child in session.execute(select(Job.id).where(Job.parent_id == parent)).scalars().all():
        assert session.execute(select(func.count()).where(Job.kind == "care.then")).scalar_one() == 0
        finish(session, child)
    finish(session, session.execute(select(Job.id).where(Job.kind == "care.then")).scalar_one())
    assert (numbers(session, parent), row(session, parent).children) == ((JobState.SUCCEEDED, 0, 0), 4)


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
        lambda: claims.check(session, claim),
        lambda: claims.note(session, claim, claims.Notes(done=1, total=2)),
        lambda: claims.succeed(session, claim, claims.Notes(), result=1),
        lambda: claims.fail(session, claim, {}, retry_after=timedelta()),
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
    follow_up = session.execute(select(Job.id).where(Job.parent_id == parent, Job.kind == "care.then")).scalar_one()
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
    assert session.execute(select(func.count()).where(Job.kind == "care.then", Job.parent_id == parent)).scalar_one() == 0


def test_child_that_is_cancelled_with_its_parent_and_by_itself_is_counted_once(session):
    parent, children = batch(session, 3)
    assert len(care.cancel(session, [children[1], parent, children[1]])) == 4
    assert numbers(session, parent) == (JobState.CANCELLED, 0, 3)


def test_cancel_of_an_inner_batch_is_counted_by_the_outer_one(session):
    outer, children = batch(session, 1, then=False)
    claims_of_child = Run(take(session, children[0]), None, None)
    claims_of_child.spawn(session, [Plain(), Plain()])
    claims_of_child.finish(session)
    care.cancel(session, children)
    assert numbers(session, children[0]) == (JobState.CANCELLED, 0, 2)
    assert numbers(session, outer) == (JobState.FAILED, 0, 1)


def test_cancel_goes_down_every_generation(session):
    outer, children = batch(session, 1)
    inner = Run(take(session, children[0]), None, None)
    inner.spawn(session, [Plain(), Plain()])
    inner.finish(session)
    assert len(care.cancel(session, [outer])) == 4
    assert session.execute(select(func.count()).where(Job.finished_at.is_(None))).scalar_one() == 0


# --- clear ---


def test_clear_cancels_what_has_not_started_in_a_queue(session):
    mails = [put(session, Mail()), put(session, Mail(), delay=timedelta(days=1)), put(session, Mail())]
    other = put(session)
    running = put(session, Mail())
    take(session, running)
    care.hold(session, mails[2:])
    assert [care.clear(session, queue="mail", limit=2) for _ in range(3)] == [2, 1, 0]
    assert [state(session, job_id) for job_id in mails] == ["cancelled"] * 3
    assert (state(session, other), state(session, running)) == ("queued", "running")


def test_clear_of_children_ends_their_parent(session):
    parent, _ = batch(session, 5, then=False)
    assert care.clear(session, kind="care.plain") == 5
    assert numbers(session, parent) == (JobState.FAILED, 0, 5)


def test_clear_needs_to_know_what(session):
    with pytest.raises(ValueError, match="queue or a kind"):
        care.clear(session)


# --- retry ---


@pytest.mark.parametrize("ends", ["succeeded", "failed", "discarded", "cancelled"])
def test_retry_runs_the_stored_row_again_with_all_its_attempts(session, ends):
    job_id = put(session, Plain(number=7))
    session.execute(update(Job).where(Job.id == job_id).values(errors=[{"attempt": 1}], result="old"))
    finish(session, job_id, JobState(ends))
    assert care.retry(session, [job_id], now=NOW) == [job_id]
    job = row(session, job_id)
    assert (job.state, job.run_at, job.attempt, job.args, job.errors) == ("scheduled", NOW, 0, {"number": 7}, [{"attempt": 1}])
    assert (job.result, job.finished_at, job.claim_id, job.sent_at) == (None, None, None, None)
    assert take(session, job_id).attempt == 1


def test_retry_leaves_alone_what_has_not_ended(session):
    job_id = put(session)
    assert care.retry(session, [job_id], now=NOW) == []
    assert state(session, job_id) == "queued"


def test_retry_takes_the_unique_key_again(session):
    job_id = put(session, Only(number=1))
    finish(session, job_id, JobState.FAILED)
    care.retry(session, [job_id], now=NOW)
    assert put(session, Only(number=1)) == job_id


def test_retry_onto_a_taken_unique_key_names_its_holder_and_changes_nothing(session):
    first = put(session, Only(number=2))
    finish(session, first, JobState.FAILED)
    holder = put(session, Only(number=2))
    with pytest.raises(Conflict, match=str(holder)):
        care.retry(session, [first], now=NOW)
    assert (state(session, first), state(session, holder)) == ("failed", "queued")


def test_retry_of_an_unknown_kind_or_of_invalid_arguments_is_refused(session):
    unknown, invalid = put(session), put(session)
    for job_id in (unknown, invalid):
        finish(session, job_id, JobState.DISCARDED)
    session.execute(update(Job).where(Job.id == unknown).values(kind="care.gone"))
    session.execute(update(Job).where(Job.id == invalid).values(args={"number": "many"}))
    with pytest.raises(InvalidInput, match=r"care\.gone"):
        care.retry(session, [unknown], now=NOW)
    with pytest.raises(InvalidInput, match="number"):
        care.retry(session, [invalid], now=NOW)


def test_retried_child_is_not_counted_again(session):
    parent, children = batch(session, 2, then=False)
    finish(session, children[0], JobState.FAILED)
    care.retry(session, children[:1], now=NOW)
    finish(session, children[0])
    assert numbers(session, parent) == (JobState.WAITING, 1, 1)
    finish(session, children[1])
    assert numbers(session, parent) == (JobState.FAILED, 0, 1)


def test_retried_parent_starts_a_new_batch(session):
    parent, children = batch(session, 2)
    care.cancel(session, [parent])
    care.retry(session, [parent], now=NOW)
    run = Run(take(session, parent), None, None)
    run.spawn(session, [Plain()])
    run.finish(session)
    assert numbers(session, parent) == (JobState.WAITING, 1, 0)
    new = session.execute(select(Job.id).where(Job.parent_id == parent, Job.id.not_in(children))).scalar_one()
    finish(session, new)
    assert numbers(session, parent) == (JobState.SUCCEEDED, 0, 0)


def test_retry_failed_takes_all_of_a_kind_and_of_equal_unique_ones_the_newest(session):
    plain = [put(session) for _ in range(3)]
    for job_id in plain[:2]:
        finish(session, job_id, JobState.FAILED)
    finish(session, plain[2], JobState.CANCELLED)
    assert care.retry_failed(session, "care.plain", now=NOW) == 2
    assert [state(session, job_id) for job_id in plain] == ["scheduled", "scheduled", "cancelled"]
    unique = []
    for age in (3, 1, 2):
        unique.append(put(session, Only()))
        finish(session, unique[-1], JobState.FAILED)
        session.execute(update(Job).where(Job.id == unique[-1]).values(finished_at=NOW - timedelta(hours=age)))
    assert care.retry_failed(session, "care.only", now=NOW) == 1
    assert [state(session, job_id) for job_id in unique] == ["failed", "scheduled", "failed"]


# --- hold, pause ---


def test_held_job_is_not_claimed_and_is_released_by_its_time(session):
    now_due, later = put(session), put(session, delay=timedelta(hours=1))
    session.execute(update(Job).where(Job.id == now_due).values(run_at=LONG_AGO))
    assert set(care.hold(session, [now_due, later])) == {now_due, later}
    relay.promote(session)
    assert claims.claim(session.connection(), now_due, worker_id=uuid4(), pid=1) is None
    assert care.hold(session, [now_due]) == []
    assert set(care.release(session, [now_due, later], now=NOW)) == {now_due, later}
    assert (state(session, now_due), state(session, later)) == ("queued", "scheduled")
    assert care.release(session, [now_due], now=NOW) == []


def test_paused_queue_starts_nothing_and_what_was_sent_is_sent_again(session):
    job_id = put(session, Mail())
    session.execute(update(Job).where(Job.id == job_id).values(run_at=LONG_AGO, sent_at=LONG_AGO))
    assert [care.pause(session, "mail", now=NOW), care.pause(session, "mail", now=NOW)] == [True, False]
    assert claims.claim(session.connection(), job_id, worker_id=uuid4(), pid=1) is None
    assert [care.resume(session, "mail"), care.resume(session, "mail")] == [True, False]
    assert job_id in [message.job_id for message in relay.due(session, buffer=10_000)]
    assert session.execute(select(func.count()).select_from(PausedQueue)).scalar_one() == 0


# --- prune ---


def old(session, ends=JobState.SUCCEEDED, *, days, args=None, parent_id=None):
    job_id = put(session, args, parent_id=parent_id)
    finish(session, job_id, ends)
    at = NOW - timedelta(days=days)
    session.execute(update(Job).where(Job.id == job_id).values(finished_at=at, started_at=at))
    return job_id


def exists(session, job_id):
    return session.execute(select(func.count()).where(Job.id == job_id)).scalar_one() == 1


def test_prune_keeps_each_state_for_its_time_and_the_last_good_run(session):
    gone = [
        old(session, days=8),
        old(session, days=9),
        *(old(session, JobState(s), days=31) for s in ("failed", "discarded", "cancelled")),
    ]
    last_good = old(session, days=50, args=Mail())
    kept = [last_good, old(session, days=6), put(session), *(old(session, JobState(s), days=29) for s in ("failed", "cancelled"))]
    session.add(JobLog(job_id=gone[0], attempt=1, at=NOW, line="a line"))
    session.flush()
    assert [care.prune(session, KEEP, now=NOW, limit=3) for _ in range(3)] == [3, 2, 0]
    assert [exists(session, job_id) for job_id in gone] == [False] * 5
    assert [exists(session, job_id) for job_id in kept] == [True] * 5
    assert session.execute(select(func.count()).where(JobLog.job_id == gone[0])).scalar_one() == 0


def test_prune_spares_open_batches_and_parents_before_their_children(session):
    old(session, days=0)  # so that no other is the last good run
    parent, children = batch(session, 2, then=False)
    for child in children:
        session.execute(update(Job).where(Job.id == child).values(finished_at=LONG_AGO, started_at=LONG_AGO, state="succeeded"))
    assert care.prune(session, KEEP, now=NOW) == 0
    ended = {"state": JobState.FAILED, "finished_at": LONG_AGO}
    session.execute(update(Job).where(Job.id == parent).values(ended))
    assert [care.prune(session, KEEP, now=NOW) for _ in range(3)] == [2, 1, 0]
    assert not exists(session, parent)


# --- what there is to see ---


def test_find_filters_and_gives_the_newest_first(session):
    ids = [enqueue(session, Mail(), now=NOW + timedelta(seconds=n)) for n in range(3)]
    finish(session, ids[0])
    assert [job.id for job in insight.find(session, kind="care.mail")] == ids[::-1]
    assert [job.id for job in insight.find(session, queue="mail", state=JobState.SUCCEEDED)] == ids[:1]
    assert [job.id for job in insight.find(session, kind="care.mail", since=NOW + timedelta(seconds=1), limit=1)] == ids[2:]


def test_show_tells_everything(session):
    parent, children = batch(session, 3)
    claims.note(session, take(session, children[0]), claims.Notes(1, 4, [(NOW, "first"), (NOW, "second")]))
    shown = insight.show(session, children[0])
    assert ([line.line for line in shown.lines], shown.parent.id, shown.job.progress_total) == (["first", "second"], parent, 4)
    shown = insight.show(session, parent, limit=2)
    assert (len(shown.children), shown.children_by_state) == (2, {"queued": 2, "running": 1})
    with pytest.raises(NotFound):
        insight.show(session, uuid4())


def test_resolve_takes_a_unique_beginning(session):
    ids = enqueue_many(session, [Plain() for _ in range(40)], now=NOW)  # more than there are first digits
    assert resolve(session, Job, str(ids[0])) == ids[0]
    assert resolve(session, Job, ids[0].hex[:20]) == ids[0]
    digit = next(digit for digit in "0123456789abcdef" if sum(job_id.hex.startswith(digit) for job_id in ids) > 1)
    with pytest.raises(Conflict, match="several"):
        resolve(session, Job, digit)
    for unknown in ("", "xyz", "0" * 31, "1" * 40):
        with pytest.raises(NotFound):
            resolve(session, Job, unknown)


def test_stats_count_and_time(session):
    done, due = put(session, Mail()), put(session, Mail())
    finish(session, done)
    session.execute(update(Job).where(Job.id == due).values(run_at=LONG_AGO))
    care.pause(session, "mail", now=NOW)
    stats = insight.stats(session)
    assert {"kind": "care.mail", "queue": "mail", "state": "queued", "jobs": 1} in stats["counts"]
    mail = next(queue for queue in stats["queues"] if queue["queue"] == "mail")
    assert (mail["oldest_due_seconds"] > 0, mail["paused_at"]) == (True, NOW)
    lately = next(kind for kind in stats["lately"] if kind["kind"] == "care.mail")
    assert (lately["ended"], lately["per_minute"], lately["run_seconds"] < 5) == (1, 1 / 15, True)


# --- at the same time, on Postgres ---


@pytest.fixture
def committed(postgres_url):
    """Give sessions that commit; what they wrote is removed. SQLite has one writer at a time, and so no races."""
    engine = make_engine(make_settings(database_url=postgres_url))
    Base.metadata.create_all(engine)
    yield lambda: Session(engine, expire_on_commit=False)
    with Session(engine) as session, session.begin():
        session.execute(delete(Job))
    engine.dispose()


def test_cancel_of_a_parent_waits_for_the_last_child_and_catches_the_follow_up(committed):
    with committed() as session, session.begin():
        parent, (child,) = batch(session, 1)
        claim = take(session, child)
    cancelled = []

    def cancel():
        with committed() as session, session.begin():
            cancelled.extend(care.cancel(session, [parent]))

    with committed() as session, session.begin():
        claims.succeed(session, claim, claims.Notes(), result=None)
        thread = threading.Thread(target=cancel)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(10)
    with committed() as session:
        follow_up = session.execute(select(Job.id).where(Job.kind == "care.then")).scalar_one()
        assert set(cancelled) == {parent, follow_up}
        assert numbers(session, parent) == (JobState.CANCELLED, 0, 1)
        assert state(session, child) == JobState.SUCCEEDED


def test_cancel_of_a_job_that_just_finishes_changes_nothing(committed):
    with committed() as session, session.begin():
        claim = take(session, put(session))
    cancelled = []

    def cancel():
        with committed() as session, session.begin():
            cancelled.append(care.cancel(session, [claim.job_id]))

    with committed() as session, session.begin():
        claims.succeed(session, claim, claims.Notes(), result=1)
        thread = threading.Thread(target=cancel)
        thread.start()
        thread.join(0.3)
    thread.join(10)
    with committed() as session:
        assert (cancelled, state(session, claim.job_id)) == ([[]], JobState.SUCCEEDED)


def test_two_cancels_of_one_batch_count_each_child_once(committed):
    with committed() as session, session.begin():
        parent, children = batch(session, 30, then=False)

    def cancel(ids):
        with committed() as session, session.begin():
            care.cancel(session, ids)

    threads = [threading.Thread(target=cancel, args=(ids,)) for ids in (children[:20], children[10:], [parent])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    with committed() as session:
        left, open_, failed = numbers(session, parent)
        assert (left in {"cancelled", "failed"}, open_, failed) == (True, 0, 30)


def test_clear_comes_back_for_what_somebody_just_holds(committed):
    with committed() as session, session.begin():
        job_id, other = put(session), put(session)
    numbers = []

    def clear():
        for _ in range(3):
            with committed() as session, session.begin():
                numbers.append(care.clear(session, kind="care.plain"))

    with committed() as session, session.begin():
        session.execute(select(Job.id).where(Job.id == job_id).with_for_update())
        thread = threading.Thread(target=clear)
        thread.start()
        thread.join(0.5)
        assert numbers == [1]
    thread.join(10)
    with committed() as session:
        assert (numbers, state(session, job_id), state(session, other)) == ([1, 1, 0], "cancelled", "cancelled")


def test_two_keepers_admit_no_more_than_the_limit(committed):
    with committed() as session, session.begin():
        enqueue_many(session, [Limited(number=n) for n in range(5)], now=NOW)
    with committed() as one, committed() as other:
        # The other cannot see what the first has stamped, and must not count in its place.
        assert [len(relay.due(keeper, buffer=100)) for keeper in (one, other)] == [2, 0]
        one.commit()
        assert relay.due(other, buffer=100) == []
    with committed() as session, session.begin():
        sent = session.execute(select(Job.id).where(Job.sent_at.is_not(None))).scalars().all()
        for job_id in sent:
            claims.end(session, take(session, job_id), JobState.SUCCEEDED, claims.Notes())
        assert len(relay.due(session, buffer=100)) == 2
