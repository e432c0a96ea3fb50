"""The embedded broker: whole messages, tables that one process changes at a time, tidying."""

import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import probe_app as probe
import pytest
from file_messages import FILLER, open_queue, put_messages, transport_options
from kombu import Connection, Exchange, Queue
from nightshift.celery import filebroker
from probing import put

MESSAGES = 200


@pytest.fixture
def options(tmp_path):
    folders = {name: tmp_path / name for name in ("messages", "control", "processed")}
    for folder in folders.values():
        folder.mkdir()
    return {
        "data_folder_in": str(folders["messages"]),
        "data_folder_out": str(folders["messages"]),
        "control_folder": str(folders["control"]),
        "store_processed": True,
        "processed_folder": str(folders["processed"]),
    }


def connect(options):
    return Connection(
        "filesystem://localhost//", transport=filebroker.Transport, transport_options=options
    )


@pytest.fixture
def channel(options):
    with connect(options) as connection:
        yield connection.default_channel


def test_message_is_got_as_it_was_put(channel):
    channel._put("default", {"body": "é"})
    assert channel._get("default") == {"body": "é"}


def test_messages_are_got_in_the_order_of_their_milliseconds(channel):
    for number in range(5):
        channel._put("default", {"number": number})
        time.sleep(0.002)
    assert [channel._get("default")["number"] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_half_written_message_is_not_seen(channel, options):
    channel._put("default", {})
    part = Path(options["data_folder_in"]) / ".1_a.default.msg.part"
    part.write_text('{"half":')
    assert channel._size("default") == 1
    assert channel._get("default") == {}
    assert part.exists()


def test_reader_beside_a_writer_sees_whole_messages_only(options):
    """As shipped, a file is there before it is written."""
    program = (
        "import json, sys\n"
        "from kombu import Connection\n"
        "from nightshift.celery import filebroker\n"
        "options = json.loads(sys.argv[1])\n"
        "with Connection('filesystem://localhost//', transport=filebroker.Transport,"
        " transport_options=options) as connection:\n"
        f"    for number in range({MESSAGES}):\n"
        "        connection.default_channel._put('default', {'body': 'x' * 50_000})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, json.dumps(options)])
    folder = Path(options["data_folder_in"])
    seen = set()
    try:
        while len(seen) < MESSAGES:
            for path in folder.glob("*.msg"):
                assert len(json.loads(path.read_bytes())["body"]) == 50_000
                seen.add(path.name)
            assert writer.poll() in (None, 0)
    finally:
        writer.wait(100)


def test_messages_of_many_writers_reach_one_reader_whole(tmp_path):
    """Four processes declare the same queue at once and write, while this one reads."""
    folder = f"{tmp_path}/broker"
    options = transport_options(folder)
    writers = [
        multiprocessing.get_context("forkserver").Process(target=put_messages, args=(folder, 100))
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    with open_queue(folder) as queue:
        for _ in range(400):
            message = queue.get(timeout=30)
            assert message.payload["filler"] == FILLER
            message.ack()
    for writer in writers:
        writer.join()
    assert len(list(Path(options["processed_folder"]).iterdir())) == 400


def test_processes_that_declare_queues_at_once_lose_none(options):
    program = (
        "import json, sys\n"
        "from kombu import Connection, Exchange, Queue\n"
        "from nightshift.celery import filebroker\n"
        "options, mine = json.loads(sys.argv[1]), sys.argv[2]\n"
        "with Connection('filesystem://localhost//', transport=filebroker.Transport,"
        " transport_options=options) as connection:\n"
        "    for number in range(20):\n"
        "        name = f'{mine}-{number}'\n"
        "        Queue(name, Exchange('all', type='fanout'), name)"
        "(connection.default_channel).declare()\n"
    )
    commands = [
        [sys.executable, "-c", program, json.dumps(options), name] for name in ("one", "two")
    ]
    for process in [subprocess.Popen(command) for command in commands]:
        assert process.wait(60) == 0
    with connect(options) as connection:
        table = connection.default_channel.get_table("all")
    expected = {f"{name}-{number}" for name in ("one", "two") for number in range(20)}
    assert {binding[2] for binding in table} == expected


def test_table_is_not_changed_while_another_process_holds_the_lock(channel, options):
    lock = os.open(Path(options["control_folder"]) / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    declared = threading.Event()

    def declare():
        Queue("default", Exchange("default"), "default")(channel).declare()
        declared.set()

    thread = threading.Thread(target=declare)
    thread.start()
    assert not declared.wait(0.5)
    os.close(lock)
    assert declared.wait(100)
    thread.join()


def test_two_brokers_of_a_process_know_only_their_own_queues(channel, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    queue = Queue("default", Exchange("default"), "default")
    queue(channel).declare()
    elsewhere = {"control_folder": str(folder), "data_folder_in": str(folder)}
    with connect(elsewhere) as other:
        queue(other.default_channel).declare()
        assert other.default_channel.get_table("default") == [("default", "", "default")]


def test_prune_removes_what_was_taken(channel, options):
    channel._put("default", {})
    channel._get("default")
    assert filebroker.prune(options) == 1
    assert list(Path(options["processed_folder"]).iterdir()) == []


def test_prune_removes_old_messages_and_keeps_new_ones(channel, options):
    channel._put("default", {"old": True})
    [old] = Path(options["data_folder_in"]).iterdir()
    hours_ago = time.time() - filebroker.KEEP_SECONDS - 60
    os.utime(old, (hours_ago, hours_ago))
    channel._put("default", {"old": False})
    assert filebroker.prune(options) == 1
    assert channel._get("default") == {"old": False}


def test_prune_of_empty_folders_removes_nothing(options):
    assert filebroker.prune(options) == 0


def test_keeper_tidies_the_broker(job_app, make_keeper):
    put(job_app.runtime, probe.Leave())
    channel = job_app.runtime.publisher._open().channel
    channel._get("default")
    folder = Path(job_app.conf.broker_transport_options["processed_folder"])
    assert len(list(folder.iterdir())) == 1
    make_keeper(job_app).tidy_broker()
    assert list(folder.iterdir()) == []
