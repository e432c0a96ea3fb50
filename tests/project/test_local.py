"""`make dev`, as a person sees it: real processes, on SQLite and files of the test's own."""

import os
import signal
import socket
import subprocess
import sys
from itertools import takewhile

import psutil
import pytest
from forking import run_forked
from servers import free_port

from tests.conftest import ROOT


@pytest.fixture
def environment(tmp_path):
    return os.environ | {
        "ENVIRONMENT": "development",  # whatever a `.env` for containers says
        "DATABASE_URL": f"sqlite:///{tmp_path}/dev.db",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
        "MAIL_URL": f"folder://{tmp_path}/mail",
        "FEED_STORE": f"{tmp_path}/feeds",
        "WEB_BIND": f"127.0.0.1:{free_port()}",
        "DESK_BIND": f"127.0.0.1:{free_port()}",
        "FLOWER_PORT": str(free_port()),
        "WORKER_CONCURRENCY": "1",
    }


def start(environment):
    return subprocess.Popen(
        [sys.executable, "-m", "project.local"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def find_listening(pid):
    """Return the addresses at which a process and those that it started listen."""
    one = psutil.Process(pid)
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in [one, *one.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.worker
def test_lines_have_names_addresses_come_last_and_doctor_is_content(environment):
    process = start(environment)
    try:
        seen = list(takewhile(lambda line: "Ctrl-C stops" not in line, process.stdout))
        listening = find_listening(process.pid)
        words = ["-A", "project", "doctor"]
        found = run_forked("celery", *words, environment=environment, folder=ROOT)
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=100)

    names = {line.partition("|")[0].strip() for line in seen}
    assert names == {"worker", "beat", "web", "desk", "flower", "dev"}
    for address in ("WEB_BIND", "DESK_BIND", "FLOWER_PORT"):
        assert environment[address] in "".join(seen[-5:])
    assert found.returncode == 0, found.stdout
    assert listening == {
        ("127.0.0.1", int(environment["WEB_BIND"].rpartition(":")[2])),
        ("127.0.0.1", int(environment["DESK_BIND"].rpartition(":")[2])),
        ("127.0.0.1", int(environment["FLOWER_PORT"])),
    }
    assert rest.splitlines()[-1] == "dev    | all processes are stopped"
    assert (process.returncode, "Traceback" in "".join([*seen, rest, errors])) == (0, False)


@pytest.mark.parametrize("setting", ["WEB_BIND", "DESK_BIND", "FLOWER_PORT"])
def test_port_that_is_taken_names_its_setting(environment, setting, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(environment[setting].rpartition(":")[2])))
        other.listen()
        ran = run_forked("project.local", environment=environment, folder=ROOT)

    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith(f"{setting}: 127.0.0.1:")
    assert not (tmp_path / "dev.db").exists()
