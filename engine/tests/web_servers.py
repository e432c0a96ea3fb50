"""Real web servers on ports of their own, and a client for each."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from forking import ForkedProcess
from servers import free_port

TESTS = Path(__file__).parent


@dataclass
class WebServer:
    """A running web server and a client of it."""

    client: httpx.Client
    log: Path
    pid: int

    def request(
        self, method: str, target: str, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send a target as it is: httpx would tidy it."""
        options = {"headers": headers, "extensions": {"target": target.encode()}}
        return self.client.request(method, "/", **options)

    def wait_for_log(self, words: str) -> str:
        """Wait until the log holds these words and return it: some is written after the answer."""
        give_up = time.monotonic() + 100
        while words not in (log := self.log.read_text()):
            assert time.monotonic() < give_up, log
            time.sleep(0.02)
        return log

    def send_bytes(self, request: bytes) -> bytes:
        """Send bytes and return what comes until the server closes."""
        address = ("127.0.0.1", self.client.base_url.port)
        with socket.create_connection(address, timeout=100) as connection:
            connection.sendall(request)
            got = b""
            while piece := connection.recv(65_536):
                got += piece
        return got


@contextmanager
def web_server(module: str, folder: Path, **settings: str) -> Iterator[WebServer]:
    """Start `python -m module` with the environment and these settings; wait until it answers."""
    address = f"127.0.0.1:{free_port()}"
    with _running([module], address, folder, WEB_BIND=address, **settings) as server:
        yield server


@contextmanager
def uvicorn_server(factory: str, folder: Path, **settings: str) -> Iterator[WebServer]:
    """Start uvicorn by its own command, with its own options, for an application's factory."""
    port = free_port()
    words = ["uvicorn", "--factory", factory, "--port", str(port)]
    with _running(words, f"127.0.0.1:{port}", folder, **settings) as server:
        yield server


@contextmanager
def _running(words: list[str], address: str, folder: Path, **settings: str) -> Iterator[WebServer]:
    log = folder / f"web-{address.rpartition(':')[2]}.log"
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **settings}
    module, *arguments = words
    process = ForkedProcess(module, arguments, environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=100) as client:
            give_up = time.monotonic() + 100
            while not _lives(client):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up, log.read_text()
                time.sleep(0.05)
            yield WebServer(client, log, process.pid)
    finally:
        process.terminate()
        process.wait(100)


def _lives(client: httpx.Client) -> bool:
    try:
        return client.get("/health").text == "ok\n"
    except httpx.TransportError:
        return False
