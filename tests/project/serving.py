"""A real feed server on a port of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from project.bootstrap import Bootstrap
from project.testing import run_due
from services.calendars.jobs import SyncCalendars
from services.jobs import enqueue
from services.jobs.models import JobState
from tests.faults.servers import free_port

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Server:
    """A running feed server and a client of it."""

    client: httpx.Client
    log: Path
    pid: int

    def request(self, method: str, target: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """Send a target as it is: httpx would tidy it."""
        return self.client.request(method, "/", headers=headers, extensions={"target": target.encode()})


@contextmanager
def server(folder: Path, **settings: str) -> Iterator[Server]:
    """Start a server with the environment's settings and these, and wait until it lives."""
    address = f"127.0.0.1:{free_port()}"
    log = folder / f"web-{address.rpartition(':')[2]}.log"
    with log.open("wb") as output:
        environment = {**os.environ, "WEB_BIND": address, **settings}
        process = subprocess.Popen([sys.executable, "-m", "project.web"], cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            found = Server(client, log, process.pid)
            give_up = time.monotonic() + 30
            while not lives(client):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up, log.read_text()
                time.sleep(0.05)
            yield found
    finally:
        process.terminate()
        process.wait(20)


def lives(client: httpx.Client) -> bool:
    try:
        return client.get("/health").text == "ok\n"
    except httpx.TransportError:
        return False


def sync(boot: Bootstrap) -> None:
    """Bring every feed up to date, in this process."""
    with boot.unit_of_work() as session:
        enqueue(session, SyncCalendars(), now=boot.now())
    assert {job.state for job in run_due(boot)} == {JobState.SUCCEEDED}
