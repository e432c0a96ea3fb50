"""What is declared in one place and used in another."""

import multiprocessing
import tempfile
from pathlib import Path

import pytest
from kombu import Connection
from sqlalchemy import event

from project import redisbroker
from project.celery import app
from project.celeryconfig import QUEUES, configuration
from project.filebroker import prune
from project.schedule import entries
from services.jobs import claims, enqueue, relay
from services.jobs.args import KINDS, JobArgs
from services.jobs.run import Run
from tests.conftest import NOW, make_settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def imported():
    app.loader.import_default_modules()


def ours():
    return {kind: args for kind, args in KINDS.items() if args.__module__.startswith("services.")}


def test_imports_are_the_modules_of_tasks():
    modules = {f"tasks.{path.stem}" for path in (ROOT / "tasks").glob("*.py")} - {"tasks.__init__"}
    assert set(app.conf.imports) == modules


def test_every_kind_has_a_task_of_its_name_and_limits():
    for kind, args in ours().items():
        task = app.tasks[kind]
        assert (task.name, task.args_type, task.time_limit) == (kind, args, args.policy.time_limit.total_seconds())


def test_every_task_is_a_job_of_ours():
    assert {name for name in app.tasks if not name.startswith(("celery.", "probe."))} == set(ours())


def test_every_queue_is_served():
    assert {args.policy.queue for args in ours().values()} <= set(QUEUES)


def test_every_recurring_job_has_a_task():
    assert {entry.job.policy.kind for entry in entries(make_settings())} <= set(app.tasks)


def test_every_task_says_what_a_second_run_does():
    for kind in ours():
        assert "second run" in app.tasks[kind].__doc__, kind


@pytest.mark.parametrize("url", ["redis://127.0.0.1/0", "amqp://guest:guest@127.0.0.1//"])
def test_settings_hold_on_every_broker(url):
    configured = configuration(make_settings(broker_url=url))
    assert (configured["task_acks_late"], configured["task_reject_on_worker_lost"], configured["accept_content"]) == (
        True,
        False,
        ["json"],
    )
    longest = max(args.policy.time_limit.total_seconds() for args in ours().values())
    if url.startswith("redis"):
        assert configured["broker_transport_options"]["visibility_timeout"] > longest


def test_statements_of_a_job_are_constant(engine, session):
    class Nothing(JobArgs, kind="wiring.nothing"):
        number: int = 0

    statements = []
    count = lambda *args: args[2].startswith("SAVEPOINT") or statements.append(args[2])  # noqa: E731
    event.listen(engine, "before_cursor_execute", count)
    try:
        job_id = enqueue(session, Nothing(), now=NOW)
        enqueued = len(statements)
        relay.stamp(session, [job_id], buffer=100)
        sent = len(statements) - enqueued
        claim = claims.claim(session.connection(), job_id, worker_id=job_id, pid=1)
        claimed = len(statements) - enqueued - sent
        Run(claim, None, None).finish(session)
        finished = len(statements) - enqueued - sent - claimed
    finally:
        event.remove(engine, "before_cursor_execute", count)
        del KINDS["wiring.nothing"]
    assert (enqueued, sent, claimed, finished) == (1, 1, 1, 1)


def put_messages(folder: str, number: int) -> None:
    from kombu import Connection

    options = configuration(make_settings(broker_url=f"filesystem://{folder}"))
    with Connection("filesystem://localhost//", transport="project.filebroker:Transport") as connection:
        connection.transport_options = options["broker_transport_options"]
        with connection.SimpleQueue("probe") as queue:
            for index in range(number):
                queue.put({"index": index, "filler": "x" * 20_000})


@pytest.mark.parametrize(
    ("url", "tls"), [("redis://127.0.0.1:1/0", False), ("rediss://127.0.0.1:1/0?ssl_cert_reqs=required", True)]
)
def test_redis_is_spoken_to_by_our_transport(url, tls):
    # The app's own `broker_transport` is the file broker's here.
    connection = Connection(url)
    assert (connection.get_transport_cls(), bool(connection.ssl)) == (redisbroker.Transport, tls)


def test_file_broker_gives_whole_messages_to_many():
    """Four processes declare the same queue at once and write, while this one reads."""
    from kombu import Connection

    with tempfile.TemporaryDirectory() as folder:
        configured = configuration(make_settings(broker_url=f"filesystem://{folder}"))
        writers = [multiprocessing.get_context("spawn").Process(target=put_messages, args=(folder, 100)) for _ in range(4)]
        for writer in writers:
            writer.start()
        with Connection("filesystem://localhost//", transport="project.filebroker:Transport") as connection:
            connection.transport_options = configured["broker_transport_options"]
            with connection.SimpleQueue("probe") as queue:
                for _ in range(400):
                    message = queue.get(timeout=30)
                    assert len(message.payload["filler"]) == 20_000
                    message.ack()
        for writer in writers:
            writer.join()
        processed = Path(configured["broker_transport_options"]["processed_folder"])
        assert len(list(processed.iterdir())) == 400
        assert prune(configured["broker_transport_options"]) == 400
        assert list(processed.iterdir()) == []
