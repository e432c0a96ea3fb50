"""One school on two hosts: the worker on one, the web server on the other, a bucket between them.

A host is a network namespace with an address of its own. Both reach Postgres, Redis and the storage
through proxies on the bridge, and nothing else of this machine. Only root may make namespaces.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from installations import Installation
from nightshift.jobs import enqueue
from proxies import Proxy
from servers import POSTGRES_URL, REDIS_URL
from sqlalchemy import func, make_url, select, text

from services.calendars import serving
from services.calendars.jobs import SyncCalendars
from services.calendars.models import ChangeLog, Feed, FeedKind, SyncRun
from services.calendars.store import FeedStore
from services.school.models import SchoolClass
from tests.installing import install
from tests.services.calendars.storage import Storage, settings, storage
from tests.serving import load_example

WORKER, WEB = 2, 3  # the last number of a host's address
PORT = 8000
AWAY_SECONDS = 60


class Network:
    """A bridge, and a namespace for each host. `address` is the bridge's."""

    def __init__(self) -> None:
        name = f"ns{uuid4().hex[:6]}"
        self.bridge, self.net = f"{name}b", f"10.77.{os.getpid() % 250}"
        self.address = f"{self.net}.1"
        self.hosts = {number: f"{name}h{number}" for number in (WORKER, WEB)}

    def make(self) -> None:
        run("link", "add", self.bridge, "type", "bridge")
        run("address", "add", f"{self.address}/24", "dev", self.bridge)
        run("link", "set", self.bridge, "up")
        for number, host in self.hosts.items():
            run("netns", "add", host)
            run("link", "add", f"{host}v", "type", "veth", "peer", "name", "eth0", "netns", host)
            run("link", "set", f"{host}v", "master", self.bridge, "up")
            run("-n", host, "address", "add", f"{self.net}.{number}/24", "dev", "eth0")
            run("-n", host, "link", "set", "eth0", "up")
            run("-n", host, "link", "set", "lo", "up")

    def remove(self) -> None:
        for host in self.hosts.values():
            run("netns", "delete", host, check=False)
        run("link", "delete", self.bridge, check=False)


def run(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def network() -> Iterator[Network]:
    made = Network()
    try:
        made.make()
    except (OSError, subprocess.CalledProcessError) as error:
        made.remove()
        pytest.skip(f"TWO HOSTS ARE NOT TESTED: no network namespace can be made ({error})")
    try:
        yield made
    finally:
        made.remove()


class Hosts:
    """The installation, with processes on two hosts, and the proxy in front of its storage."""

    def __init__(
        self,
        installation: Installation,
        network: Network,
        environment: dict[str, str],
        bucket: Proxy,
        server: Storage,
    ) -> None:
        self.installation, self.network, self.environment = installation, network, environment
        self.bucket, self.server = bucket, server
        self.prefix = environment["FEED_STORE"].rpartition("/")[2]
        self.client = httpx.Client(
            base_url=f"http://{network.net}.{WEB}:{PORT}", timeout=60, trust_env=False
        )

    def command(self, host: int, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.network.hosts[host], sys.executable, "-m", *words]

    def start(self, host: int, name: str, *words: str) -> None:
        with (self.installation.folder / f"{name}.log").open("wb") as log:
            self.installation.processes.append(
                subprocess.Popen(
                    self.command(host, *words), env=self.environment, stdout=log, stderr=log
                )
            )

    def celery(self, *words: str, code: int = 0) -> str:
        command = self.command(WEB, "celery", "-A", "project", *words)
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def counted(self) -> dict[str, int]:
        """Return what was asked of the storage since the last call, by kind of request."""
        now = self.server.count(self.prefix)
        told = now - getattr(self, "_before", type(now)())
        self._before = now
        return dict(told)

    def sync(self) -> SyncRun:
        runtime = self.installation.runtime
        with runtime.unit_of_work() as session:
            run_id = enqueue(session, SyncCalendars(), now=runtime.now())

        def ended() -> SyncRun | None:
            with runtime.read_only() as session:
                done = SyncRun.finished_at.is_not(None)
                return session.execute(select(SyncRun).where(SyncRun.id == run_id, done)).scalar()

        return self.installation.until(ended, seconds=120)

    def notes(self) -> int:
        with self.installation.runtime.read_only() as session:
            return session.execute(select(func.count()).select_from(ChangeLog)).scalar_one()

    def rename(self, title: str) -> None:
        """Change the timed events of 27Ga by SQL alone."""
        with self.installation.runtime.unit_of_work() as session:
            of_one = select(SchoolClass.id).where(SchoolClass.name == "27Ga").scalar_subquery()
            linked = text("SELECT event_id FROM event_class WHERE class_id = :id")
            ids = session.execute(linked, {"id": session.execute(select(of_one)).scalar()}).all()
            for (event_id,) in ids:
                session.execute(
                    text("UPDATE event SET title = :title WHERE id = :id AND starts_on IS NULL"),
                    {"title": title, "id": event_id},
                )

    def path(self, name: str) -> str:
        with self.installation.runtime.read_only() as session:
            return f"/f/{serving.find_token(session, FeedKind.CLASS, name)}.ics"

    def holders(self, title: str) -> set[tuple[FeedKind, int]]:
        """Return the feeds whose bytes hold a title, read behind the proxy."""
        store = self.installation.runtime[FeedStore]
        owners = store.list_owners()
        return {owner for owner in owners if title.encode() in (store.read(*owner) or b"")}

    def log(self, name: str) -> str:
        return (self.installation.folder / f"{name}.log").read_text(encoding="utf-8")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        net = stack.enter_context(network())
        server = stack.enter_context(storage(tmp_path / "requests"))
        there = {name.lower(): value for name, value in settings(server.address).items()}
        installation = stack.enter_context(
            install("servers", tmp_path, web_bind=f"{net.net}.{WEB}:{PORT}", **there)
        )
        ours = installation.environment
        database, broker, bucket = (
            stack.enter_context(Proxy(url, net.address))
            for url in (POSTGRES_URL.replace("+psycopg", ""), REDIS_URL, server.address)
        )
        address = make_url(ours["DATABASE_URL"]).set(host=net.address, port=database.port)
        number = ours["BROKER_URL"].rpartition("/")[2]
        environment = {
            **os.environ,
            **ours,
            "DATABASE_URL": address.render_as_string(hide_password=False),
            "BROKER_URL": f"{broker.url.rpartition('/')[0]}/{number}",
            "FEED_STORE_ENDPOINT": bucket.url,
            "NO_PROXY": "*",
            "no_proxy": "*",
        }
        made = Hosts(installation, net, environment, bucket, server)
        stack.callback(made.client.close)
        yield made


def test_two_hosts_share_one_school(hosts: Hosts) -> None:
    installation, client = hosts.installation, hosts.client
    load_example(installation.app)
    with installation.runtime.unit_of_work() as session:
        session.execute(ChangeLog.__table__.delete())
    hosts.start(WORKER, "worker", "celery", "-A", "project", "worker", "--concurrency=2")
    hosts.start(WEB, "web", "project.web")

    first = hosts.sync()
    with installation.runtime.read_only() as session:
        total = session.execute(select(func.count()).select_from(Feed)).scalar_one()
    asked = {"full sync": hosts.counted()}
    assert (first.built, first.failed, first.errors) == (total, 0, [])
    assert asked["full sync"]["PUT"] == total

    second = hosts.sync()
    asked["unchanged sync"] = hosts.counted()
    assert (second.built, second.unchanged) == (0, total)
    assert asked["unchanged sync"].keys() <= {"LIST", "HEAD"}  # Few feeds are not listed.

    path = hosts.path("27Ga")
    installation.until(lambda: answers(client), seconds=60)
    hosts.counted()
    got = client.get(path)
    asked["200"] = hosts.counted()
    again = client.get(path, headers={"if-none-match": got.headers["etag"]})
    asked["304"] = hosts.counted()
    assert (got.status_code, again.status_code) == (200, 304)
    assert (asked["200"], asked["304"]) == ({"GET": 1}, {"HEAD": 1})

    hosts.rename("Anders im Netz")
    installation.until(lambda: not hosts.notes(), seconds=60)
    asked["one change"] = hosts.counted()
    holding = hosts.holders("Anders im Netz")
    hosts.counted()
    changed = client.get(path, headers={"if-none-match": got.headers["etag"]})
    assert b"Anders im Netz" in changed.content
    assert asked["one change"]["PUT"] == len(holding)

    revoked = hosts.path("28Ba")
    assert client.get(revoked).status_code == 200
    hosts.celery("feeds", "revoke", "class", "28Ba")
    assert client.get(revoked).status_code == 404
    assert len(installation.runtime[FeedStore].list_owners()) == total - 1
    third = hosts.sync()
    assert (third.unchanged, third.failed) == (total - 1, 0)
    assert len(installation.runtime[FeedStore].list_owners()) == total - 1
    for what, requests in asked.items():
        print(f"{what}: {requests}")


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_bucket_that_is_away_for_a_minute_loses_nothing(hosts: Hosts) -> None:
    installation, client = hosts.installation, hosts.client
    load_example(installation.app)
    hosts.start(WORKER, "worker", "celery", "-A", "project", "worker", "--concurrency=2")
    hosts.start(WEB, "web", "project.web")
    first = hosts.sync()
    installation.until(lambda: answers(client) and not hosts.notes(), seconds=120)
    path = hosts.path("27Ga")
    assert client.get(path).status_code == 200

    # Half of the time it says nothing, the other half it refuses.
    began = time.monotonic()
    hosts.bucket.silent = True
    hosts.rename("Im Dunkeln geändert")
    silent = client.get(path)
    while time.monotonic() - began < AWAY_SECONDS / 2:
        time.sleep(0.5)
    hosts.bucket.silent, hosts.bucket.refusing = False, True
    hosts.bucket.cut()
    refused, ready = client.get(path), client.get("/ready")
    told = hosts.celery("doctor", code=2)
    while time.monotonic() - began < AWAY_SECONDS:
        time.sleep(0.5)
    waiting = hosts.notes()
    hosts.bucket.refusing = False
    back = time.monotonic()
    installation.until(lambda: not hosts.notes(), seconds=180)
    seconds = time.monotonic() - back

    line = f"FEED_STORE_ENDPOINT: {hosts.bucket.url} does not answer"
    assert (silent.status_code, refused.status_code) == (503, 503)
    assert (ready.status_code, ready.json()["probes"]["store"]) == (503, "fail")
    assert line in told.replace("\n", " ")
    assert line in hosts.log("worker")
    assert line in hosts.log("web")
    assert waiting > 0
    assert "Im Dunkeln geändert".encode() in client.get(path).content
    last = hosts.sync()
    assert (last.failed, last.errors) == (0, [])
    assert last.unchanged == first.built
    with installation.runtime.read_only() as session:
        failed = session.execute(text("SELECT count(*) FROM job WHERE state = 'failed'")).scalar()
    assert failed == 0
    print(f"away for {AWAY_SECONDS} s; up to date {seconds:.1f} s after it was back")
