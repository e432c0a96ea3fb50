"""The keeper's duties, in the test's process."""

import os
import time
from collections import Counter
from datetime import timedelta
from threading import Event, Timer
from uuid import uuid4

import probe_app as probe
import pytest
from job_rows import beat, try_claim
from nightshift.celery.keeper import HUNG_AFTER, Clock, Loop, Watch, _perform, _release
from nightshift.celery.link import Word, open_pair
from nightshift.component import Component, Duty
from nightshift.jobs import care
from nightshift.jobs.models import Job, JobState, Worker
from probing import put, untimed
from servers import postgres_database
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

OFTEN = {"heartbeat_interval": "PT0.1S", "worker_silent_after": "PT0.3S"}
HEARTBEAT = 0.1


def make_running(app, worker_id, *, pid=1):
    """Return a job that a process of this worker runs, as its row says."""
    job_id = put(app.runtime, probe.Leave())
    with app.runtime.unit_of_work() as session:
        running = {
            "state": JobState.RUNNING,
            "claim_id": job_id,
            "worker_id": worker_id,
            "pid": pid,
            "attempt": 1,
            "started_at": app.runtime.now(),
        }
        session.execute(update(Job).where(Job.id == job_id).values(running))
    return job_id


def find_job(app, job_id):
    with app.runtime.read_only() as session:
        return session.execute(select(Job).where(Job.id == job_id)).scalar_one()


def add_worker(app, *, seen):
    """Return the id of a worker whose last sign of life is that old."""
    worker_id = put(app.runtime, probe.Leave())  # any id
    with app.runtime.unit_of_work() as session:
        beat(session, worker_id, name="other@test", queues="default", pid=1)
        at = app.runtime.now() - seen
        session.execute(update(Worker).where(Worker.id == worker_id).values(heartbeat_at=at))
    return worker_id


@pytest.fixture
def calls():
    return Counter()


def make_with_duties(make_app, make_keeper, *duties):
    app = make_app(Component(name="duties", duties=duties), **OFTEN)
    return make_keeper(app)


def test_duty_runs(make_app, make_keeper, calls):
    keeper = make_with_duties(make_app, make_keeper, Duty("count", lambda _: calls.update(["ran"])))
    _perform(keeper, Clock(), HEARTBEAT)
    assert calls == {"ran": 1}


def test_duty_gets_the_runtime(make_app, make_keeper):
    given = []
    keeper = make_with_duties(make_app, make_keeper, Duty("take", given.append))
    _perform(keeper, Clock(), HEARTBEAT)
    assert given == [keeper.runtime]


def test_duty_that_raises_stops_no_other(make_app, make_keeper, calls, caplog):
    def broken(_runtime):
        raise RuntimeError("out of order\nand more")

    last = Duty("last", lambda _: calls.update(["last"]))
    keeper = make_with_duties(make_app, make_keeper, Duty("broken", broken), last)
    job_id = put(keeper.runtime, probe.Leave(), run_at=keeper.runtime.now())
    _perform(keeper, Clock(), HEARTBEAT)
    assert calls == {"last": 1}
    assert find_job(keeper.app, job_id).sent_at is not None
    assert caplog.messages == ["duty broken failed and is tried again: out of order"]


def test_duty_that_raises_is_called_again(make_app, make_keeper, calls):
    def broken(_runtime):
        calls.update(["called"])
        raise RuntimeError("out of order")

    every = timedelta(seconds=0.01)
    keeper = make_with_duties(make_app, make_keeper, Duty("broken", broken, every))
    clock = Clock()
    _perform(keeper, clock, HEARTBEAT)
    time.sleep(0.02)
    _perform(keeper, clock, HEARTBEAT)
    assert calls == {"called": 2}


def test_duty_runs_at_its_own_interval(make_app, make_keeper, calls):
    rarely = Duty("rarely", lambda _: calls.update(["rarely"]), timedelta(hours=1))
    often = Duty("often", lambda _: calls.update(["often"]), timedelta(seconds=0.01))
    keeper = make_with_duties(make_app, make_keeper, rarely, often)
    clock = Clock()
    for _ in range(3):
        _perform(keeper, clock, HEARTBEAT)
        time.sleep(0.02)
    assert calls == {"rarely": 1, "often": 3}


def test_duty_without_an_interval_runs_as_often_as_the_relay(make_app, make_keeper, calls):
    duty = Duty("count", lambda _: calls.update(["ran"]))
    app = make_app(Component(name="duties", duties=(duty,)), relay_interval="PT1H", **OFTEN)
    clock = Clock()
    for _ in range(3):
        _perform(make_keeper(app), clock, HEARTBEAT)
    assert calls == {"ran": 1}


def test_heartbeat_shows_the_worker(job_app, make_keeper):
    keeper = make_keeper(job_app)
    keeper.record_heartbeat()
    with job_app.runtime.read_only() as session:
        worker = session.execute(select(Worker)).scalar_one()
    assert (worker.id, worker.name, worker.queues, worker.pid) == (
        keeper.worker_id,
        "nobody@test",
        "default",
        1,
    )


def test_relay_slows_down_while_there_is_nothing_to_send(make_app, make_keeper):
    keeper = make_keeper(make_app(relay_interval="PT0.5S", relay_buffer=8))
    pauses = []
    for _ in range(4):
        keeper.send_due()
        pauses.append(keeper.pause)
    assert pauses == [0.2, 0.4, 0.5, 0.5]
    # A few jobs need no hurry; so many that the broker may run empty do.
    for jobs, pause in ((1, 0.25), (3, 0.1), (2, 0.2)):
        for _ in range(jobs):
            put(keeper.runtime, probe.Leave(), run_at=keeper.runtime.now())
        keeper.send_due()
        assert keeper.pause == pause


def test_jobs_of_a_dead_child_are_released(job_app, make_keeper):
    keeper = make_keeper(job_app)
    keeper.worker_pid = os.getpid()
    job_id = make_running(job_app, keeper.worker_id, pid=2**22)
    keeper.release_dead_children()
    job = find_job(job_app, job_id)
    assert (job.state, job.errors[-1]["type"]) == (JobState.SCHEDULED, "WorkerLost")


def test_jobs_of_a_living_process_are_left_alone(job_app, make_keeper):
    keeper = make_keeper(job_app)
    keeper.worker_pid = os.getpid()
    job_id = make_running(job_app, keeper.worker_id, pid=os.getpid())
    keeper.release_dead_children()
    assert find_job(job_app, job_id).state == JobState.RUNNING


def test_jobs_of_a_silent_worker_are_released(make_app, make_keeper):
    app = make_app(**OFTEN)
    keeper = make_keeper(app)
    job_id = make_running(app, add_worker(app, seen=timedelta(minutes=1)))
    give_up = time.monotonic() + 100
    while find_job(app, job_id).state == JobState.RUNNING and time.monotonic() < give_up:
        keeper.record_heartbeat()
        keeper.release_silent()
        time.sleep(0.01)
    assert find_job(app, job_id).state == JobState.SCHEDULED


def test_keeper_that_was_away_itself_judges_no_other(make_app, make_keeper):
    app = make_app(**OFTEN)
    keeper = make_keeper(app)
    job_id = make_running(app, add_worker(app, seen=timedelta(minutes=1)))
    time.sleep(0.4)
    keeper.release_silent()  # without a heartbeat
    keeper.record_heartbeat()
    keeper.release_silent()  # without an old one
    assert find_job(app, job_id).state == JobState.RUNNING


def test_broken_heartbeat_begins_a_new_series(make_app, make_keeper):
    app = make_app(**OFTEN)
    keeper = make_keeper(app)
    job_id = make_running(app, add_worker(app, seen=timedelta(minutes=1)))
    keeper.record_heartbeat()
    time.sleep(0.4)
    with app.runtime.unit_of_work() as session:
        session.execute(text("alter table worker rename to away"))
    with pytest.raises(Exception, match="no such table: worker"):
        keeper.record_heartbeat()
    with app.runtime.unit_of_work() as session:
        session.execute(text("alter table away rename to worker"))
    keeper.record_heartbeat()
    keeper.release_silent()
    assert find_job(app, job_id).state == JobState.RUNNING


def test_keeper_of_a_dead_worker_releases_all_that_its_processes_have_left(
    job_app, make_keeper, monkeypatch
):
    monkeypatch.setattr("nightshift.jobs.rescue.BATCH", 2)
    keeper = make_keeper(job_app)
    jobs = [make_running(job_app, keeper.worker_id) for _ in range(5)]
    keeper.release_worker()
    assert {find_job(job_app, one).state for one in jobs} == {JobState.SCHEDULED}


def test_jobs_of_a_killed_worker_are_released_at_once(job_app, make_keeper):
    keeper = make_keeper(job_app)
    keeper.record_heartbeat()
    job_id = make_running(job_app, keeper.worker_id)
    keeper.release_worker()
    assert find_job(job_app, job_id).state == JobState.SCHEDULED
    with job_app.runtime.read_only() as session:
        assert session.execute(select(Worker.stopped_at)).scalar_one() is not None


def test_what_a_killed_worker_has_said_is_recorded_before_its_jobs_are_released(
    job_app, make_keeper
):
    keeper = make_keeper(job_app)
    unsure, unstarted, revoked = (make_running(job_app, keeper.worker_id) for _ in range(3))
    keeper.words.add(Word.UNSURE, unsure)
    keeper.words.add(Word.UNSTARTED, unstarted)
    keeper.words.add(Word.REVOKED, revoked)
    keeper.release_worker()
    jobs = [find_job(job_app, job_id) for job_id in (unsure, unstarted, revoked)]
    assert [(job.state, job.attempt) for job in jobs] == [
        (JobState.QUEUED, 0),
        (JobState.QUEUED, 0),
        (JobState.CANCELLED, 1),
    ]


def test_keeper_waits_for_a_database_that_is_away_when_its_worker_ends(job_app, make_keeper):
    keeper = make_keeper(job_app)
    job_id = put(job_app.runtime, probe.Leave())
    keeper.words.add(Word.REVOKED, job_id)
    rename(job_app, "job", "away")
    back = Timer(1, rename, (job_app, "away", "job"))
    back.start()
    _release(keeper, Clock())
    back.join()
    assert find_job(job_app, job_id).state == JobState.CANCELLED


def test_keeper_gives_up_a_database_that_stays_away(job_app, make_keeper, monkeypatch):
    monkeypatch.setattr("nightshift.celery.keeper.LAST_PATIENCE", 0.1)
    keeper = make_keeper(job_app)
    keeper.words.add(Word.REVOKED, uuid4())
    rename(job_app, "job", "away")
    _release(keeper, Clock())
    rename(job_app, "away", "job")


def rename(app, old, new):
    with app.runtime.unit_of_work() as session:
        session.execute(text(f"alter table {old} rename to {new}"))


def test_word_about_a_locked_row_stops_no_other(make_app, make_keeper):
    with postgres_database() as url:
        app = make_app(database_url=url)
        keeper = make_keeper(app)
        locked, free = (put(app.runtime, probe.Leave()) for _ in range(2))
        for job_id in (locked, free):
            keeper.words.add(Word.REVOKED, job_id)
        with app.runtime.unit_of_work() as session:
            session.execute(select(Job.id).where(Job.id == locked).with_for_update())
            for _ in range(2):
                with pytest.raises(OperationalError, match="lock timeout"):
                    keeper.record_words()
            assert find_job(app, free).state == JobState.CANCELLED
        keeper.record_words()
        assert find_job(app, locked).state == JobState.CANCELLED
        app.runtime.close()


def test_lost_message_is_sent_again(make_app, make_keeper, count_messages, caplog):
    app = make_app(resend_after="PT0.1S")
    put(app.runtime, probe.Leave())
    channel = app.runtime.publisher._open().channel
    channel._purge("default")
    time.sleep(0.2)
    keeper = make_keeper(app)
    keeper.resend_lost()
    assert caplog.messages == ["the broker lost 1 messages; their jobs are sent again"]
    keeper.send_due()
    assert count_messages(app) == 1


def test_message_that_is_there_is_not_sent_again(make_app, make_keeper, count_messages):
    app = make_app(resend_after="PT0.1S")
    put(app.runtime, probe.Leave())
    time.sleep(0.2)
    make_keeper(app).resend_lost()
    assert count_messages(app) == 1


def test_keeper_that_was_silent_itself_judges_no_other_at_once(make_app, make_keeper):
    app = make_app(**OFTEN)
    keeper = make_keeper(app)
    job_id = make_running(app, add_worker(app, seen=timedelta(minutes=1)))
    keeper.record_heartbeat()
    time.sleep(0.4)
    keeper.record_heartbeat()  # the one before is older than half of WORKER_SILENT_AFTER
    keeper.release_silent()
    assert find_job(app, job_id).state == JobState.RUNNING


def test_job_of_a_revoked_task_is_cancelled(job_app, make_keeper):
    keeper = make_keeper(job_app)
    job_id = put(job_app.runtime, probe.Leave())
    keeper.words.add(Word.REVOKED, job_id)
    keeper.record_words()
    assert find_job(job_app, job_id).state == JobState.CANCELLED


def test_revocation_that_is_older_than_a_retry_cancels_nothing(job_app, make_keeper):
    """Every worker hears of a revocation, and one may be slower than the person who retries."""
    keeper = make_keeper(job_app)
    job_id = put(job_app.runtime, probe.Leave())
    said = time.monotonic()
    keeper.words.add(Word.REVOKED, job_id, since=said)
    kinds, now = job_app.runtime.kinds, job_app.runtime.now()
    with job_app.runtime.unit_of_work() as session:
        care.cancel(session, [job_id])
        care.retry(session, [job_id], kinds=kinds, now=now)
    keeper.record_words()
    assert find_job(job_app, job_id).state == JobState.SCHEDULED
    # The worker says it again, because it has not heard yet that it is recorded.
    keeper.words.add(Word.REVOKED, job_id, since=said)
    keeper.record_words()
    keeper.send_due()
    with job_app.runtime.unit_of_work() as session:
        assert try_claim(session, job_id) is not None
    keeper.words.add(Word.REVOKED, job_id, since=said)
    keeper.record_words()
    assert find_job(job_app, job_id).state == JobState.RUNNING
    keeper.words.add(Word.REVOKED, job_id)
    keeper.record_words()
    assert find_job(job_app, job_id).state == JobState.CANCELLED


def test_job_of_an_unknown_kind_is_put_off(job_app, make_keeper):
    keeper = make_keeper(job_app)
    job_id = put(job_app.runtime, probe.Leave())
    with job_app.runtime.unit_of_work() as session:
        session.execute(update(Job).where(Job.id == job_id).values(kind="probe.newer"))
    keeper.words.add(Word.UNKNOWN, job_id)
    keeper.record_words()
    job = find_job(job_app, job_id)
    assert (job.state, job.attempt) == (JobState.SCHEDULED, 0)


def test_claim_whose_run_never_starts_is_undone(job_app, make_keeper):
    keeper = make_keeper(job_app)
    job_id = make_running(job_app, keeper.worker_id, pid=os.getpid())
    keeper.words.add(Word.UNSTARTED, job_id)  # its claim has the same id
    keeper.record_words()
    job = find_job(job_app, job_id)
    assert (job.state, job.attempt, job.sent_at) == (JobState.QUEUED, 0, None)


def test_child_that_dies_before_it_knows_its_claim_is_charged_nothing(job_app, make_keeper):
    keeper = make_keeper(job_app)
    keeper.worker_pid = os.getpid()
    unsure, sure = (make_running(job_app, keeper.worker_id, pid=2**22) for _ in range(2))
    for word, about in ((Word.UNSURE, unsure), (Word.UNSURE, sure), (Word.SURE, sure)):
        keeper.words.add(word, about)
        keeper.record_words()
    keeper.release_dead_children()
    jobs = [find_job(job_app, job_id) for job_id in (unsure, sure)]
    assert [(job.state, job.attempt) for job in jobs] == [
        (JobState.QUEUED, 0),
        (JobState.SCHEDULED, 1),
    ]


def test_job_whose_end_cannot_be_written_runs_again(job_app, make_keeper):
    keeper = make_keeper(job_app)
    job_id = make_running(job_app, keeper.worker_id, pid=os.getpid())
    keeper.words.add(Word.UNENDED, job_id)
    keeper.record_words()
    job = find_job(job_app, job_id)
    assert (job.state, job.errors[-1]["message"]) == (
        JobState.SCHEDULED,
        "its end could not be written",
    )


def test_words_wait_for_a_database_that_is_away(job_app, make_keeper, worker_end):
    keeper = make_keeper(job_app)
    job_id = put(job_app.runtime, probe.Leave())
    keeper.words.add(Word.REVOKED, job_id)
    with job_app.runtime.unit_of_work() as session:
        session.execute(text("alter table job rename to away"))
    with pytest.raises(OperationalError):
        keeper.record_words()
    assert worker_end.hear() == []
    with job_app.runtime.unit_of_work() as session:
        session.execute(text("alter table away rename to job"))
    keeper.record_words()
    assert find_job(job_app, job_id).state == JobState.CANCELLED
    assert untimed(worker_end.hear()) == [(Word.REVOKED, job_id)]


def test_keeper_says_what_is_recorded_and_that_a_child_waits_no_more(
    job_app, make_keeper, worker_end
):
    keeper = make_keeper(job_app)
    keeper.worker_pid = os.getpid()
    unsure = make_running(job_app, keeper.worker_id, pid=2**22)
    keeper.words.add(Word.UNSURE, unsure)
    keeper.record_words()
    assert worker_end.hear() == []  # its successor has to know it
    keeper.release_dead_children()
    assert untimed(worker_end.hear()) == [(Word.UNSURE, unsure)]


def test_hang_is_recorded_until_the_next_heartbeat(job_app, make_keeper):
    keeper = make_keeper(job_app)
    keeper.record_heartbeat()
    keeper.record_hang()
    with job_app.runtime.read_only() as session:
        assert session.execute(select(Worker.hung_at)).scalar_one() is not None
    keeper.record_heartbeat()
    with job_app.runtime.read_only() as session:
        assert session.execute(select(Worker.hung_at)).scalar_one() is None


# --- what the keeper knows of its worker ---


@pytest.fixture
def watch():
    ours, theirs = open_pair()
    yield Watch(theirs, os.getppid()), ours
    ours.socket.close()
    theirs.socket.close()


def test_watch_hears_what_is_for_the_ledger(watch):
    watching, worker = watch
    about = uuid4()
    worker.say(Word.ALIVE)
    worker.say(Word.REVOKED, about)
    assert untimed(watching.wait(1)) == [(Word.REVOKED, about)]


def test_worker_without_a_sign_of_life_hangs(watch):
    watching, worker = watch
    watching._looked = time.monotonic()
    watching._heard = watching._looked - HUNG_AFTER
    watching.wait(0)
    assert watching.hangs
    worker.say(Word.ALIVE)
    watching.wait(1)
    assert not watching.hangs


def test_keeper_that_was_stopped_itself_calls_no_worker_hung(watch):
    watching, _ = watch
    watching._looked = watching._heard = time.monotonic() - HUNG_AFTER
    watching.wait(0)
    assert not watching.hangs


def test_loop_calls_again_and_again_until_its_end(calls):
    loop = Loop(lambda: calls.update(["called"]), lambda: 0.01)
    loop.start()
    while calls["called"] < 3:
        time.sleep(0.01)
    loop.end(patience=100)
    assert not loop.is_alive()


def test_loop_whose_call_does_not_come_back_is_stuck(monkeypatch):
    monkeypatch.setattr("nightshift.celery.keeper.STUCK_AFTER", 0.1)
    release = Event()
    loop = Loop(release.wait, lambda: 0.01)
    loop.start()
    time.sleep(0.2)
    assert loop.stuck
    release.set()
    loop.end(patience=100)
