"""Every Celery setting that is not its default, with the reason beside it."""

from pathlib import Path
from typing import Any

from kombu import Queue

from project.settings import Settings

TASKS = Path(__file__).parent.parent / "tasks"

QUEUES = ("default", "calendars", "mail")

# A job without a limit of its own is killed after this; statements and sockets time out well before.
TIME_LIMIT = 60


def configuration(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration for an installation."""
    return {
        # --- What runs ---
        # Every module in tasks/. Strings, so that nothing here imports them: they import us.
        "imports": sorted(f"tasks.{path.stem}" for path in TASKS.glob("[a-z]*.py")),
        # Names are given, never derived from a module's path: a message outlives a move of the code.
        "task_default_queue": QUEUES[0],
        "task_create_missing_queues": False,
        # --- What a message may be ---
        # Pickle would run whatever somebody writes into the broker.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "timezone": "UTC",
        # --- Delivery ---
        # The ledger's claim makes a second delivery harmless, so a message is only gone when its job has run.
        "task_acks_late": True,
        # Both off: the first publishes again with an ETA, the second for ever (a task that kills its process ran 101 times in 20 s).
        # The ledger frees the jobs of dead processes, and counts the attempts.
        "task_reject_on_worker_lost": False,
        "task_acks_on_failure_or_timeout": True,
        # The ledger is the result. With results in Redis a third of the throughput is gone.
        "task_ignore_result": True,
        "result_backend": None,
        # --- Workers ---
        # One message runs and one waits beside each process, so that it need not wait for the broker between two: a tenth of the
        # throughput. More bring nothing, are withheld from other workers, and must be delivered again after a death.
        "worker_prefetch_multiplier": 2,
        # "auto" follows the container's CPU limit, not the machine's.
        "worker_concurrency": settings.worker_concurrency,
        # Memory that leaks or fragments is given back now and then.
        "worker_max_tasks_per_child": 10_000,
        "worker_max_memory_per_child": 400_000,  # KiB
        "task_time_limit": TIME_LIMIT,
        # Flower is told of tasks only while it runs: `-E`, or its own button. Events cost 10–20 % of the throughput.
        "worker_send_task_events": False,
        # A worker must not take over the root logger: project/logs.py has done that.
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # --- The broker ---
        "broker_connection_retry_on_startup": True,
        # The default gives up after 100 tries: a night without a broker.
        "broker_connection_max_retries": None,
        # A task that runs when the connection is lost goes on: its message is delivered again and finds nothing to claim.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        **_broker(settings),
        # --- Beat ---
        "beat_scheduler": "project.beat:Scheduler",
        # --- Flower --- reads FLOWER_BASIC_AUTH from the environment itself.
    }


def _broker(settings: Settings) -> dict[str, Any]:
    url = settings.broker_url
    scheme, _, path = url.partition("://")
    queues = [Queue(name, routing_key=name) for name in QUEUES]
    if scheme == "filesystem":
        folder = Path(path or "var/broker")
        for name in ("messages", "control", "processed"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        return {
            "task_queues": queues,
            # The host means nothing, but kombu warns when there is none.
            "broker_url": "filesystem://localhost//",
            # kombu's own is not safe for several processes: see the class.
            "broker_transport": "project.filebroker:Transport",
            "broker_transport_options": {
                # One folder for both ways: what one process puts the other gets.
                "data_folder_in": str(folder / "messages"),
                "data_folder_out": str(folder / "messages"),
                "control_folder": str(folder / "control"),
                # On the same disk: a move to the system's temporary folder may be a copy, which is not atomic.
                "store_processed": True,
                "processed_folder": str(folder / "processed"),
                # The default of a second is most of a job's latency.
                "polling_interval": 0.05,
            },
        }
    if scheme.startswith(("redis", "valkey")):
        return {
            "task_queues": queues,
            "broker_url": url,
            "broker_transport_options": {
                # Above the longest time limit plus the wait for a free process, or Redis delivers what still runs. Harmless, but noise.
                "visibility_timeout": settings.visibility_timeout.total_seconds(),
                # The default sweep takes 100 s to notice.
                "unacked_restore_interval": 10,
                "unacked_restore_throttle": 1,
                # A half-open connection is noticed and replaced. `retry_on_timeout` stays off: it disables batch publishing.
                "health_check_interval": 25,
                "socket_timeout": 30,
                "socket_connect_timeout": 5,
                "socket_keepalive": True,
                # Redis may be shared.
                "global_keyprefix": "nightshift:",
            },
        }
    # Quorum queues survive the loss of a node. RabbitMQ drops a message after 20 deliveries; the ledger sends it again.
    quorum = {"x-queue-type": "quorum"}
    return {
        "task_queues": [Queue(name, routing_key=name, queue_arguments=quorum) for name in QUEUES],
        "broker_url": url,
        # A message counts as taken when the broker says so.
        "broker_transport_options": {"confirm_publish": True},
        "worker_detect_quorum_queues": True,
    }
