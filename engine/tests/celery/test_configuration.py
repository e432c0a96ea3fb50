"""Celery's settings for each broker."""

import probe_app
import pytest
from celery import Celery
from celery.app.defaults import NAMESPACES, flatten
from kombu import Queue
from nightshift.celery.configuration import build_configuration
from nightshift.component import Component, Composition
from nightshift.jobs import JobArgs
from nightshift.settings import Settings


class Slow(JobArgs, kind="configuration.slow", queue="slow"):
    pass


COMPOSITION = Composition(
    [
        *probe_app.app.composition.components,
        Component(name="slow", kinds=(Slow,), tasks=("slow_tasks",)),
    ]
)


def configure(**values):
    return build_configuration(Settings(_env_file=None, **values), COMPOSITION)


@pytest.fixture(params=["filesystem", "redis://127.0.0.1/0", "amqp://guest@127.0.0.1//"])
def configured(request, tmp_path):
    """Return the configuration for each broker."""
    if request.param == "filesystem":
        return configure(broker_url=f"filesystem://{tmp_path}/broker")
    return configure(broker_url=request.param)


def test_every_setting_is_one_that_celery_knows(configured):
    known = {name for name, _ in flatten(NAMESPACES)}
    assert set(configured) - known == set()


def test_queues_are_those_of_the_kinds(configured):
    assert [queue.name for queue in configured["task_queues"]] == ["default", "slow"]


def test_misspelt_queue_is_refused(configured):
    assert (configured["task_default_queue"], configured["task_create_missing_queues"]) == (
        "default",
        False,
    )


def test_modules_of_bodies_are_named_and_not_imported(configured):
    assert configured["imports"] == ["nightshift.celery.tasks", "probe_app", "slow_tasks"]


def test_message_is_json_and_nothing_else(configured):
    names = ("task_serializer", "result_serializer", "accept_content")
    assert [configured[name] for name in names] == ["json", "json", ["json"]]


def test_message_is_gone_only_when_its_job_has_run(configured):
    names = (
        "task_acks_late",
        "task_acks_on_failure_or_timeout",
        "task_reject_on_worker_lost",
        "worker_cancel_long_running_tasks_on_connection_loss",
    )
    assert [configured[name] for name in names] == [True, True, False, False]


def test_broker_may_be_away_for_a_night(configured):
    names = ("broker_connection_retry_on_startup", "broker_connection_max_retries")
    assert [configured[name] for name in names] == [True, None]


def test_ledger_is_the_result(configured):
    assert (configured["task_ignore_result"], configured["result_backend"]) == (True, None)


def test_beat_reads_the_ledger(configured):
    assert configured["beat_scheduler"] == "nightshift.celery.beat:Scheduler"


def test_concurrency_is_the_setting():
    assert configure(worker_concurrency=3)["worker_concurrency"] == 3


def test_files_stay_on_one_disk_below_one_folder(tmp_path):
    configured = configure(broker_url=f"filesystem://{tmp_path}/broker")
    assert configured["broker_transport"] == "nightshift.celery.filebroker:Transport"
    assert configured["broker_url"] == "filesystem://localhost//"
    assert configured["broker_transport_options"] == {
        "data_folder_in": f"{tmp_path}/broker/messages",
        "data_folder_out": f"{tmp_path}/broker/messages",
        "control_folder": f"{tmp_path}/broker/control",
        "store_processed": True,
        "processed_folder": f"{tmp_path}/broker/processed",
        "polling_interval": 0.05,
    }


def test_folders_are_made(tmp_path):
    configure(broker_url=f"filesystem://{tmp_path}/broker")
    made = sorted(path.name for path in (tmp_path / "broker").iterdir())
    assert made == ["control", "messages", "processed"]


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_redis_notices_what_is_lost_soon(scheme):
    url = f"{scheme}://127.0.0.1:6379/0"
    configured = configure(broker_url=url, visibility_timeout="PT10M")
    assert configured["broker_url"] == url
    assert "broker_transport" not in configured
    assert configured["broker_transport_options"] == {
        "visibility_timeout": 600.0,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "health_check_interval": 25,
        "socket_timeout": 10.0,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "global_keyprefix": "nightshift:",
    }


def test_keys_in_redis_begin_with_the_name_of_the_project():
    configured = configure(broker_url="redis://127.0.0.1:6379/0", project_name="my-shop")
    assert configured["broker_transport_options"]["global_keyprefix"] == "my-shop:"


def test_rabbitmq_has_quorum_queues_and_confirms():
    url = "amqp://guest:guest@127.0.0.1:5672//"
    configured = configure(broker_url=url)
    quorum = {"x-queue-type": "quorum"}
    assert configured["task_queues"] == [
        Queue(name, routing_key=name, queue_arguments=quorum) for name in ("default", "slow")
    ]
    assert [queue.queue_arguments for queue in configured["task_queues"]] == [quorum, quorum]
    assert configured["broker_url"] == url
    assert configured["broker_transport_options"] == {"confirm_publish": True}
    assert configured["worker_detect_quorum_queues"] is True


def test_app_has_the_configuration(configured):
    app = Celery("configured", set_as_current=False)
    app.conf.update(configured)
    assert app.conf.broker_transport_options == configured["broker_transport_options"]
