"""The Caddyfile with a real Caddy: what it lets through, and that its log holds no address.

Skipped, loudly, where there is no `caddy` (Debian's package has it).
"""

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from servers import free_port

from tests.conftest import ROOT

TOKEN = "a-token-that-no-log-may-hold"


def answer(listener: socket.socket) -> None:
    """Answer like the web server; for `/f/broken…`, end in the middle of the answer."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, suppress(OSError):
            request = client.recv(65_536)
            body = b"x" * (3 if b"/broken" in request else 10)
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n"
            client.sendall(head + body)


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        yield listener


def test_caddy_publishes_two_paths_and_logs_none(tmp_path: Path, upstream: socket.socket) -> None:
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("CADDY IS NOT INSTALLED: ITS LOG IS NOT TESTED (apt-get install caddy)")
    # With the local CA that Caddy has for localhost; its port for http:// is moved out of the way.
    text = (ROOT / "Caddyfile").read_text(encoding="utf-8")
    settings = f"skip_install_trust\n\thttp_port {free_port()}\n\tadmin off"
    (tmp_path / "Caddyfile").write_text(text.replace("admin off", settings), encoding="utf-8")
    address = f"https://localhost:{free_port()}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [caddy, "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"],
            env={
                "PUBLIC_URL": address,
                "UPSTREAM": f"127.0.0.1:{upstream.getsockname()[1]}",
                "HOME": str(tmp_path),
            },
            stderr=log,
        )
        try:
            with httpx.Client(base_url=address, verify=False) as client:
                give_up = time.monotonic() + 30
                while time.monotonic() < give_up:
                    with suppress(httpx.HTTPError):
                        client.get("/")
                        break
                    time.sleep(0.1)

                paths = (f"/f/{TOKEN}.ics", f"/u/{TOKEN}", "/", "/metrics", "/ready", "/calendars/")
                assert [client.get(path).status_code for path in paths] == [200, 200] + [404] * 4
                with pytest.raises(httpx.RemoteProtocolError):
                    client.get(f"/f/broken-{TOKEN}.ics")
                upstream.shutdown(socket.SHUT_RDWR)  # Else the thread goes on to accept.
                upstream.close()
                assert client.get(f"/f/{TOKEN}.ics").status_code == 502
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
    written = (tmp_path / "log").read_text(encoding="utf-8")
    assert "serving initial configuration" in written  # It is the log.
    assert TOKEN not in written
