"""Every Celery setting that differs from Celery's default, with the reason beside it."""

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kombu import Queue

from nightshift.celery.patience import LONGEST_CALL
from nightshift.component import DEFAULT_QUEUE, Composition
from nightshift.errors import InvalidInput
from nightshift.settings import ENCRYPTED, Settings

# Seconds. A worker kills a task without a limit of its own after this; statements and sockets time
# out well before.
TIME_LIMIT = 60

# Seconds. Later waits for the network are limited by patience.py.
CONNECT_TIMEOUT = 5


EVERY_BROKER = {
    # A broker that answers with an error (Redis that is full, or a read-only replica) is tried
    # again, like one that is away. The default ends the worker.
    "broker_channel_error_retry": True,
    "broker_connection_timeout": CONNECT_TIMEOUT,
    # A half-open connection to RabbitMQ is noticed after twice this.
    "broker_heartbeat": 10,
    "broker_connection_retry_on_startup": True,
    # The default gives up after 100 tries, which a broker that is away for a night exceeds.
    "broker_connection_max_retries": None,
    # When the connection is lost, a running task goes on: its message is delivered again, but
    # cannot claim the job.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}


def build_configuration(settings: Settings, composition: Composition) -> dict[str, Any]:
    """Return Celery's configuration for these settings and components."""
    return {
        # --- What runs ---
        # Module names: only a process that runs jobs imports their bodies.
        "imports": composition.tasks,
        "task_default_queue": DEFAULT_QUEUE,
        # A misspelt queue raises, and is not created.
        "task_create_missing_queues": False,
        # --- What a message may be ---
        # Pickle would run any code that an attacker writes into the broker.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "timezone": "UTC",
        # --- Delivery ---
        # A message is acknowledged only after its job has run. A second delivery does no harm: it
        # cannot claim the job.
        "task_acks_late": True,
        # Celery must not deliver a message again by itself: a task that killed its process ran 101
        # times in 20 s. The ledger releases the jobs of dead processes, and counts the attempts.
        "task_reject_on_worker_lost": False,
        "task_acks_on_failure_or_timeout": True,
        # The ledger holds the results. Results in Redis cost a third of the throughput.
        "task_ignore_result": True,
        "result_backend": None,
        # --- Workers ---
        # For each process one message runs and one waits, so that it does not wait for the broker
        # between two jobs; that gains a tenth of the throughput. More than one would gain nothing,
        # keep jobs from other workers, and have to be delivered again after a worker's death.
        "worker_prefetch_multiplier": 2,
        # "auto" follows the container's limits of CPU and memory, not the machine's: sizing.py.
        "worker_concurrency": settings.worker_concurrency,
        # A process that leaks or fragments memory is replaced.
        "worker_max_tasks_per_child": 10_000,
        "worker_max_memory_per_child": 400_000,  # KiB
        "task_time_limit": TIME_LIMIT,
        # Events for Flower cost 10–20 % of the throughput. `-E`, or a button of Flower's, enables
        # them.
        "worker_send_task_events": False,
        # logs.py sets up the root logger, so a worker must not.
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # --- The broker ---
        **EVERY_BROKER,
        **_broker(settings, composition.queues),
        # --- Beat ---
        "beat_scheduler": "nightshift.celery.beat:Scheduler",
    }


def _broker(settings: Settings, names: list[str]) -> dict[str, Any]:
    url = settings.broker_url
    scheme, _, path = url.partition("://")
    queues = [Queue(name, routing_key=name) for name in names]
    if scheme == "filesystem":
        folder = Path(path or "var/broker")
        try:
            for name in ("messages", "control", "processed"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"BROKER_URL: {error.filename}: {error.strerror}") from error
        return {
            "task_queues": queues,
            # The host has no meaning, but kombu warns without one.
            "broker_url": "filesystem://localhost//",
            # kombu's own transport is not safe for several processes: see filebroker.py.
            "broker_transport": "nightshift.celery.filebroker:Transport",
            "broker_transport_options": {
                # The same folder for both: one process reads what another writes.
                "data_folder_in": str(folder / "messages"),
                "data_folder_out": str(folder / "messages"),
                "control_folder": str(folder / "control"),
                # On the same disk: a move to the system's temporary folder may be a copy, which is
                # not atomic.
                "store_processed": True,
                "processed_folder": str(folder / "processed"),
                # The default of one second would be most of a job's latency.
                "polling_interval": 0.05,
            },
        }
    if scheme.startswith("redis"):
        return {
            "task_queues": queues,
            "broker_url": url,
            **_tls(settings, "ssl_"),
            "broker_transport_options": {
                # Above the longest time limit plus the wait for a free process, or Redis delivers
                # the messages of running jobs again. That does no harm, but is logged.
                "visibility_timeout": settings.visibility_timeout.total_seconds(),
                # With the defaults a lost message is noticed after 100 s.
                "unacked_restore_interval": 10,
                "unacked_restore_throttle": 1,
                # A half-open connection is noticed and replaced. `retry_on_timeout` stays off: it
                # disables batch publishing.
                "health_check_interval": 25,
                "socket_timeout": LONGEST_CALL,
                "socket_connect_timeout": CONNECT_TIMEOUT,
                "socket_keepalive": True,
                # Other programs may use the same Redis.
                "global_keyprefix": f"{settings.project_name}:",
            },
        }
    # Quorum queues survive the loss of a node. RabbitMQ drops a message after 20 deliveries; the
    # relay then sends it again.
    quorum = {"x-queue-type": "quorum"}
    return {
        "task_queues": [Queue(name, routing_key=name, queue_arguments=quorum) for name in names],
        "broker_url": url,
        **_tls(settings, ""),
        # A publish returns only when the broker has confirmed the message.
        "broker_transport_options": {"confirm_publish": True},
        "worker_detect_quorum_queues": True,
    }


def _tls(settings: Settings, prefix: str) -> dict[str, Any]:
    """Return what verifies the broker's certificate: kombu takes any for rediss://."""
    broker = urlsplit(settings.broker_url)
    if broker.scheme not in ENCRYPTED:
        return {}
    verified = settings.tls_verify == "yes"
    options: dict[str, Any] = {
        f"{prefix}cert_reqs": ssl.CERT_REQUIRED if verified else ssl.CERT_NONE,
        f"{prefix}ca_certs": settings.authorities,
    }
    if prefix:
        options["ssl_check_hostname"] = verified
    elif verified:
        options["server_hostname"] = broker.hostname
    return {"broker_use_ssl": options}
