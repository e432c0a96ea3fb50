"""The web server on loopback: calendars and 304s a second.

Beside it: nginx, which serves the same files from the disk.
"""

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from benchmarks.servers import ROOT, free_port, installation, make_runtime
from services.calendars.models import Feed
from services.calendars.store import FeedStore

FEEDS, SECONDS, CONNECTIONS = 100, 8, 16

NGINX = """
daemon off; user {user}; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log /dev/null; default_type "text/calendar; charset=utf-8"; sendfile on;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2;
  fastcgi_temp_path {folder}/3; uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""

# Each request is for the next feed, with its tag or without.
WRK = """
local requests = {{ {requests} }}
local at = 0
request = function()
  at = at % #requests + 1
  return wrk.format("GET", requests[at][1], {{["If-None-Match"] = requests[at][2]}})
end
"""


def run() -> dict[str, Any]:
    """Measure and return the figures."""
    missing = [name for name in ("wrk", "nginx") if shutil.which(name) is None]
    if missing:
        names = " AND ".join(missing).upper()
        return {f"SKIPPED: {names} NOT INSTALLED (apt-get install wrk nginx-light)": ""}
    with (
        installation(SCHOOL_NAME="Bench", LOG_LEVEL="INFO"),
        tempfile.TemporaryDirectory(prefix="nightshift-bench-") as name,
    ):
        made_up_school = [sys.executable, "examples/made_up_school.py"]
        sync = [sys.executable, "-m", "celery", "-A", "project", "feeds", "sync", "--inline"]
        for command in (made_up_school, sync):
            subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        folder = Path(name)
        paths, size = link(folder)
        ours, theirs = free_port(), free_port()
        (folder / "nginx.conf").write_text(
            NGINX.format(folder=folder, port=theirs, user=getpass.getuser())
        )
        os.environ["WEB_BIND"] = f"127.0.0.1:{ours}"
        figures: dict[str, Any] = {"feeds asked for": len(paths), "bytes of one, mean": size}
        with (
            running(ours, [sys.executable, "-m", "project.web"]),
            running(
                theirs,
                ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", str(folder / "error.log")],
            ),
        ):
            for answer in (200, 304):
                rates = [load(folder, port, paths, answer) for port in (ours, theirs)]
                figures |= {
                    f"{answer}s a second": rates[0],
                    f"{answer}s a second, nginx": rates[1],
                    f"{answer}s / nginx's": rates[0] / rates[1],
                }
    return figures


def link(folder: Path) -> tuple[list[str], float]:
    """Put some feeds where nginx serves them at the same paths.

    Return the paths and the mean size.
    """
    runtime = make_runtime()
    (folder / "f").mkdir()
    with runtime.read_only() as session:
        feeds = session.execute(select(Feed).order_by(Feed.id.desc()).limit(FEEDS)).scalars().all()
        for feed in feeds:
            (folder / "f" / f"{feed.token}.ics").symlink_to(
                Path(runtime[FeedStore].locate(feed.kind, feed.owner_id)).absolute()
            )
    return [f"/f/{feed.token}.ics" for feed in feeds], sum(feed.size for feed in feeds) / len(feeds)


def load(folder: Path, port: int, paths: list[str], answer: int) -> float:
    """Ask for the paths with wrk, so that this is the answer, and return how many came a second."""
    address = f"http://127.0.0.1:{port}"
    requests = []
    with httpx.Client(base_url=address) as client:
        for path in paths:
            tag = (
                client.head(path).raise_for_status().headers["etag"]
                if answer == 304
                else '"another"'
            )
            assert client.get(path, headers={"if-none-match": tag}).status_code == answer
            requests.append(f"{{[[{path}]], [[{tag}]]}}")
    script = folder / "wrk.lua"
    script.write_text(WRK.format(requests=", ".join(requests)))
    command = [
        "wrk",
        "--threads=1",
        f"--connections={CONNECTIONS}",
        f"--duration={SECONDS}s",
        f"--script={script}",
        address,
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in said, said
    return float(re.findall(r"Requests/sec: +([\d.]+)", said)[0])


@contextmanager
def running(port: int, command: Sequence[str]) -> Iterator[None]:
    """Yield while a server listens at the port."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            assert process.poll() is None, command
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)
