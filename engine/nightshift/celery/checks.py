"""The engine's own probes of the broker."""

import os
import time
from datetime import timedelta
from pathlib import Path

from kombu import Queue

from nightshift.celery import filebroker
from nightshift.celery.app import App
from nightshift.celery.configuration import TIME_LIMIT
from nightshift.celery.publisher import connect
from nightshift.component import Answer, Probe, Status
from nightshift.database import Session
from nightshift.errors import first_line
from nightshift.runtime import Runtime

BROKER_PATIENCE = 3.0


def check_redis(runtime: Runtime, _session: Session) -> Answer:
    """Fail when Redis takes no messages or may evict some; warn when it keeps none on disk."""
    with connect(runtime[App].connection_for_read, BROKER_PATIENCE) as connection:
        # INFO and not CONFIG, which hosted servers refuse.
        info = connection.default_channel.client.info("everything")
    persistent = bool(info["aof_enabled"])
    status = Status.OK if persistent else Status.WARN
    if info["maxmemory_policy"] != "noeviction":
        status = Status.FAIL
    appendonly = f"appendonly {'on' if persistent else 'off'}"
    detail = f"Redis {info['redis_version']}, {appendonly}, {info['maxmemory_policy']}"
    if info["role"] != "master":
        return Status.FAIL, f"{detail}; it is a replica, which takes no messages"
    if 0 < info["maxmemory"] <= info["used_memory"]:
        return Status.FAIL, f"{detail}; it is full, {info['used_memory_human']} of maxmemory"
    return status, detail


def check_visibility_timeout(runtime: Runtime, _session: Session) -> Answer:
    """Warn when Redis may deliver a message a second time while its job still runs."""
    given = runtime.settings.visibility_timeout
    limits = [kind.policy.time_limit for kind in runtime.kinds.values()]
    longest = max(limits, default=timedelta()) + timedelta(seconds=TIME_LIMIT)
    detail = f"{given}; the longest job and its wait may take {longest}"
    return Status.OK if given > longest else Status.WARN, detail


def check_files(runtime: Runtime, _session: Session) -> Answer:
    """Fail when the embedded broker cannot write into a folder; warn when it holds old files."""
    options = runtime[App].conf.broker_transport_options
    oldest = time.time() - filebroker.KEEP_SECONDS
    messages, control, processed = (
        Path(options[name]) for name in ("data_folder_in", "control_folder", "processed_folder")
    )
    closed = [
        str(folder)
        for folder in (messages, control, processed)
        if not os.access(folder, os.W_OK | os.X_OK)
    ]
    if closed:
        return Status.FAIL, f"not writable: {', '.join(closed)}"
    # The control folder holds tables, which stay.
    left = sum(
        entry.stat().st_mtime < oldest
        for folder in (messages, processed)
        for entry in folder.iterdir()
    )
    return Status.WARN if left else Status.OK, f"writable, {left} files older than an hour"


def check_rabbitmq(runtime: Runtime, _session: Session) -> Answer:
    """Warn when a queue is missing or of another type."""
    wrong = []
    with connect(runtime[App].connection_for_read, BROKER_PATIENCE) as connection:
        for queue in runtime[App].conf.task_queues:
            try:
                # The first call fails unless the queue exists. The second changes nothing, and
                # fails unless the queue has the type that we want.
                connection.channel().queue_declare(queue.name, passive=True)
                wanted = Queue(queue.name, queue_arguments=queue.queue_arguments)
                wanted(connection.channel()).queue_declare()
            except connection.channel_errors as error:
                wrong.append(f"{queue.name}: {first_line(error)}")
    return Status.WARN if wrong else Status.OK, "; ".join(wrong) or "RabbitMQ, quorum queues"


PROBES = (
    Probe(
        "broker",
        check_redis,
        "start Redis, or correct BROKER_URL; it needs"
        " `--appendonly yes --maxmemory-policy noeviction`, and enough `--maxmemory`",
        broker="redis",
        ledger=False,
    ),
    Probe(
        "visibility timeout",
        check_visibility_timeout,
        "raise VISIBILITY_TIMEOUT above that, or Redis delivers messages of running jobs again",
        broker="redis",
        ledger=False,
    ),
    Probe(
        "broker",
        check_files,
        "let the process's user write into the folder; a worker's keeper deletes its old files",
        broker="filesystem",
        ledger=False,
    ),
    Probe(
        "broker",
        check_rabbitmq,
        "start RabbitMQ, or correct BROKER_URL; start a worker to declare missing queues; delete"
        " queues of another type",
        broker="amqp",
        ledger=False,
    ),
)
