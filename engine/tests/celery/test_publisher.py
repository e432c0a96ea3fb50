"""How the broker is told of jobs, and what happens when it cannot be."""

import shutil
import socket
import time
from pathlib import Path

import probe_app as probe
import pytest
from fault_servers import free_port
from nightshift.celery.publisher import CALLER_PATIENCE, LEFT_ALONE
from nightshift.component import Status
from nightshift.jobs import care, enqueue, enqueue_many
from nightshift.jobs.models import Job, JobState
from nightshift.observe.checks import check_workers
from probing import put
from sqlalchemy import func, select, update


def count_sent(app):
    with app.runtime.read_only() as session:
        counted = select(func.count()).where(Job.sent_at.is_not(None))
        return session.execute(counted).scalar_one()


def find_job(app, job_id):
    with app.runtime.read_only() as session:
        return session.execute(select(Job).where(Job.id == job_id)).scalar_one()


def take_broker_away(app):
    messages = Path(app.conf.broker_transport_options["data_folder_in"])
    shutil.rmtree(messages)
    return messages


def test_job_is_sent_with_the_commit(job_app, count_messages):
    put(job_app.runtime, probe.Leave())
    assert (count_sent(job_app), count_messages(job_app)) == (1, 1)


def test_rolled_back_job_is_not_sent(job_app, count_messages):
    def refused():
        with job_app.runtime.unit_of_work() as session:
            enqueue(session, probe.Leave(), now=job_app.runtime.now())
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        refused()
    assert count_messages(job_app) == 0


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_caller_neither_fails_nor_waits_when_the_broker_is_away(make_app, kind):
    port = free_port()
    with socket.socket() as listener:
        if kind == "silent":
            # It takes connections and answers nothing, like a machine that hangs.
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
        app = make_app(broker_url=f"redis://127.0.0.1:{port}/0")
        times = []
        for _ in range(5):
            began = time.monotonic()
            put(app.runtime, probe.Leave())
            times.append(time.monotonic() - began)
        print(f"{kind}: the commits took {[round(1000 * seconds) for seconds in times]} ms")
        # The transport's own patience is 30 s; the caller's is far below what a busy machine adds.
        assert sum(times) < 15
        assert count_sent(app) == 0


def test_caller_gives_up_after_its_patience():
    assert CALLER_PATIENCE <= 0.05


def test_broker_that_is_away_is_left_alone_for_a_while(job_app, caplog):
    take_broker_away(job_app)
    for _ in range(3):
        put(job_app.runtime, probe.Leave())
    warned = [one for one in caplog.messages if one.startswith("the broker is away")]
    assert (len(warned), count_sent(job_app)) == (1, 0)
    assert job_app.runtime.publisher._down_until <= time.monotonic() + LEFT_ALONE


def test_relay_sends_when_the_broker_is_back(job_app, make_keeper, count_messages):
    messages = take_broker_away(job_app)
    ids = [put(job_app.runtime, probe.Leave(number=n)) for n in range(3)]
    messages.mkdir()
    make_keeper(job_app).send_due()
    assert (count_sent(job_app), count_messages(job_app)) == (3, 3)
    assert {find_job(job_app, job_id).state for job_id in ids} == {JobState.QUEUED}


def test_relay_marks_what_the_broker_did_not_take_as_not_sent(job_app, make_keeper):
    take_broker_away(job_app)
    put(job_app.runtime, probe.Leave())
    make_keeper(job_app).send_due()
    assert count_sent(job_app) == 0


def test_message_that_cannot_be_sent_is_held_and_the_others_are_sent(job_app, count_messages):
    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        ids = [enqueue(session, probe.Leave(number=n), now=runtime.now()) for n in range(3)]
        session.execute(update(Job).where(Job.id == ids[1]).values(queue="gone"))
    jobs = [find_job(job_app, job_id) for job_id in ids]
    assert [job.state for job in jobs] == [JobState.QUEUED, JobState.HELD, JobState.QUEUED]
    assert [job.sent_at is None for job in jobs] == [False, True, False]
    assert count_messages(job_app) == 2


def test_held_message_has_its_reason(job_app):
    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        job_id = enqueue(session, probe.Leave(), now=runtime.now())
        session.execute(update(Job).where(Job.id == job_id).values(queue="gone"))
    [error] = find_job(job_app, job_id).errors
    message = """QueueNotFound: "Queue 'gone' missing from task_queues\""""
    assert (error["type"], error["message"]) == ("Unsendable", message)


def test_doctor_names_held_messages(job_app):
    [found] = [one for one in job_app.composition.probes if one.name == "unsendable jobs"]
    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        job_id = enqueue(session, probe.Leave(), now=runtime.now())
        session.execute(update(Job).where(Job.id == job_id).values(queue="gone"))
    with runtime.read_only() as session:
        assert found.run(runtime, session) == (Status.WARN, "probe.leave: 1")


def test_queue_that_is_not_declared_stops_no_other(job_app, make_keeper, count_messages):
    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        # Due, but not sent by the caller: that has a time of its own.
        now = runtime.now()
        jobs = [probe.Leave(number=n) for n in range(4)]
        ids = enqueue_many(session, jobs, now=now, run_at=now)
        session.execute(update(Job).where(Job.id == ids[0]).values(queue="gone", priority=-9))
    make_keeper(job_app).send_due()
    left = find_job(job_app, ids[0])
    assert (left.state, left.sent_at, left.errors) == (JobState.QUEUED, None, None)
    assert count_messages(job_app) == 3


def test_doctor_names_a_queue_that_is_not_declared(job_app):
    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        now = runtime.now()
        job_id = enqueue(session, probe.Leave(), now=now, run_at=now)
        session.execute(update(Job).where(Job.id == job_id).values(queue="gone"))
    with runtime.read_only() as session:
        status, detail = check_workers(runtime, session)
    expected = "default: 0; gone has due jobs and no worker, and no component declares it"
    assert (status, detail) == (Status.FAIL, expected)


def test_messages_of_a_queue_are_counted(job_app):
    runtime = job_app.runtime
    for number in range(3):
        put(runtime, probe.Leave(number=number))
    assert runtime.publisher.count_ready("default") == 3


def test_no_message_is_sent_for_no_job(job_app, count_messages):
    job_app.runtime.publisher.publish(job_app.runtime, [])
    assert count_messages(job_app) == 0


def test_closed_publisher_opens_again(job_app, count_messages):
    put(job_app.runtime, probe.Leave())
    job_app.runtime.publisher.close()
    put(job_app.runtime, probe.Leave())
    assert count_messages(job_app) == 2


def test_paused_queue_is_not_sent_by_the_caller(job_app, count_messages):
    with job_app.runtime.unit_of_work() as session:
        care.pause(session, "default", now=job_app.runtime.now())
    put(job_app.runtime, probe.Leave())
    assert (count_sent(job_app), count_messages(job_app)) == (0, 0)
