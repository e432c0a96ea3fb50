"""How the broker is told of jobs, and what happens when it cannot be."""

import json
import shutil
import socket
import time
from pathlib import Path

import probe_app as probe
import pytest
from kombu import Connection, Queue
from nightshift.celery.publisher import CALLER_PATIENCE, LEFT_ALONE, UNKNOWN_COUNT
from nightshift.component import Component, Status
from nightshift.jobs import JobArgs, care, enqueue, enqueue_many
from nightshift.jobs.models import Job, JobState
from nightshift.observe.checks import check_workers
from probing import put
from proxies import proxy
from servers import RABBITMQ_URL, free_port, redis_database, require
from sqlalchemy import func, make_url, select, update


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


# The transport's own patience is 30 s for each.
@pytest.mark.timeout(100)
@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_caller_neither_fails_nor_waits_when_the_broker_is_away(make_app, kind):
    port = free_port()
    with socket.socket() as listener:
        if kind == "silent":
            # It takes connections and answers nothing, like a machine that hangs.
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
        app = make_app(broker_url=f"redis://127.0.0.1:{port}/0")
        for _ in range(5):
            put(app.runtime, probe.Leave())
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


class Left(JobArgs, kind="publisher.left", queue="left"):
    number: int = 0


class Right(JobArgs, kind="publisher.right", queue="right"):
    number: int = 0


TWO_QUEUES = Component(name="publisher", kinds=(Left, Right))


@pytest.fixture
def rabbit(make_app):
    """Yield an app on RabbitMQ with two queues of its own, which do not exist yet."""
    require(RABBITMQ_URL, "rabbitmq")
    app = make_app(TWO_QUEUES, broker_url=RABBITMQ_URL)
    with Connection(RABBITMQ_URL) as connection:
        delete_queues(connection)
        yield app
        delete_queues(connection)


def delete_queues(connection):
    for name in ("left", "right"):
        connection.default_channel.queue_delete(name)


def put_into_both(app, number=3):
    """Write jobs on both queues that only the relay sends; return their ids, by queue."""
    with app.runtime.unit_of_work() as session:
        now = app.runtime.now()
        return [
            enqueue_many(session, [kind(number=n) for n in range(number)], now=now, run_at=now)
            for kind in (Left, Right)
        ]


def count_unsent(app, ids):
    return sum(find_job(app, job_id).sent_at is None for job_id in ids)


def test_message_names_the_job_in_a_list(job_app):
    job_id = put(job_app.runtime, probe.Leave(number=7))
    [path] = Path(job_app.conf.broker_transport_options["data_folder_in"]).iterdir()
    message = job_app.runtime.publisher._open().channel.Message(
        json.loads(path.read_bytes()), channel=job_app.runtime.publisher._open().channel
    )
    assert message.decode()[:2] == [[], {"job_ids": [str(job_id)]}]
    # The release before reads the task's id; Flower shows the arguments.
    shown = (message.headers["id"], message.headers["kwargsrepr"])
    assert shown == (str(job_id), "{'number': 7, 'milliseconds': 0}")


@pytest.mark.parametrize("behaviour", ["silent", "trickle"])
def test_caller_does_not_wait_for_a_rabbitmq_that_goes_silent(rabbit, make_app, behaviour):
    with proxy(5672) as between:
        url = RABBITMQ_URL.replace(":5672", f":{between.port}")
        app = make_app(TWO_QUEUES, broker_url=url)
        first = put(app.runtime, Left())
        setattr(between, behaviour, True)
        # Without a limit it hangs until the broker answers, and then it is sent. The first one may
        # have met a slow machine.
        second = put(app.runtime, Left())
        assert [find_job(app, job_id).sent_at is None for job_id in (second,)] == [True]
        assert find_job(app, first).state == JobState.QUEUED
        app.runtime.publisher.close()


def test_queue_of_another_type_stops_no_other(rabbit, make_keeper, caplog):
    with Connection(RABBITMQ_URL) as connection:
        Queue("left", durable=True)(connection.default_channel).declare()
    left, right = put_into_both(rabbit)
    keeper = make_keeper(rabbit)
    for _ in range(3):
        keeper.send_due()
    assert (count_unsent(rabbit, left), count_unsent(rabbit, right)) == (3, 0)
    assert keeper.publisher.count_ready("right") == 3
    assert {find_job(rabbit, job_id).state for job_id in left} == {JobState.QUEUED}
    said = [one for one in caplog.messages if "refuses the queue left" in one]
    assert (len(said), "x-queue-type" in said[0]) == (1, True)


def test_refused_queue_is_sent_to_when_it_is_right_again(rabbit, make_keeper):
    with Connection(RABBITMQ_URL) as connection:
        Queue("left", durable=True)(connection.default_channel).declare()
    left, _ = put_into_both(rabbit)
    keeper = make_keeper(rabbit)
    keeper.send_due()
    with Connection(RABBITMQ_URL) as connection:
        delete_queues(connection)
    assert keeper.publisher._refused_until["left"] <= time.monotonic() + LEFT_ALONE
    keeper.publisher._refused_until.clear()
    keeper.send_due()
    assert count_unsent(rabbit, left) == 0


def test_deleted_queue_has_no_messages_and_is_declared_again(rabbit, make_keeper):
    put_into_both(rabbit)
    keeper = make_keeper(rabbit)
    keeper.send_due()
    with Connection(RABBITMQ_URL) as connection:
        connection.default_channel.queue_delete("left")
    assert [keeper.publisher.count_ready(queue) for queue in ("left", "right")] == [0, 3]
    put_into_both(rabbit, number=1)
    keeper.send_due()
    assert [keeper.publisher.count_ready(queue) for queue in ("left", "right")] == [1, 4]


def test_refusing_redis_holds_no_job_and_is_named_once(make_app, make_keeper, caplog):
    with redis_database() as url:
        app = make_app(TWO_QUEUES, broker_url=url)
        left, right = put_into_both(app)
        keeper = make_keeper(app)
        keeper.publisher.find_open([])
        client = keeper.publisher._open().channel.client
        # Redis refuses a message for a key of another type.
        client.set("left", "not a list")
        for _ in range(3):
            keeper.send_due()
        assert (count_unsent(app, left), count_unsent(app, right)) == (3, 0)
        assert {find_job(app, job_id).state for job_id in left} == {JobState.QUEUED}
        assert keeper.publisher.count_ready("left") == UNKNOWN_COUNT
        said = [one for one in caplog.messages if "refuses the queue left" in one]
        assert (len(said), "WRONGTYPE" in said[0]) == (1, True)
        keeper.publisher.close()


def test_rows_are_not_marked_while_the_broker_is_away(make_app, make_keeper, caplog):
    app = make_app(TWO_QUEUES, broker_url=f"redis://127.0.0.1:{free_port()}/0")
    put_into_both(app)
    keeper = make_keeper(app)
    for _ in range(5):
        keeper.send_due()
    assert count_sent(app) == 0
    assert len([one for one in caplog.messages if "the broker is away" in one]) == 1
    assert keeper.publisher.count_ready("left") == UNKNOWN_COUNT


@pytest.mark.usefixtures("rabbit")
def test_broker_that_refuses_the_login_is_left_alone_for_a_while(make_app, caplog):
    wrong = make_url(RABBITMQ_URL).set(password="wrong").render_as_string(hide_password=False)
    app = make_app(broker_url=wrong)
    # Time for the refusal, which RabbitMQ delays.
    app.runtime.publisher._patience = 5
    for _ in range(3):
        put(app.runtime, probe.Leave())
    said = [one for one in caplog.messages if "broker" in one]
    assert [("the broker is away" in one, "ACCESS_REFUSED" in one) for one in said] == [
        (True, True)
    ]
    assert count_sent(app) == 0
