"""A bucket that is away, wrong or closed, and what it is asked for."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from nightshift.database import Session
from proxies import Proxy
from servers import free_port
from sqlalchemy import select

from services.calendars import buckets, feeds, serving
from services.calendars.models import Feed, FeedKind
from services.calendars.store import FeedStore, StoreAway
from tests.services.calendars.builders import (
    NEXT_RUN,
    SCHOOL_NAME,
    WINDOW,
    build,
    counts,
    row,
)
from tests.services.calendars.storage import BUCKET, Storage, make_bucket_store

OWNER = (FeedKind.USER, 1)


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """Yield the address of a server that gives every request this answer."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_GET = do_PUT = do_HEAD = do_POST = answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


DO: dict[str, Callable[[FeedStore], object]] = {
    "write": lambda store: store.write(*OWNER, b"x"),
    "read": lambda store: store.read(*OWNER),
    "remove": lambda store: store.remove(*OWNER),
    "list": lambda store: store.list_owners(),
    "check": lambda store: store.check_readable(),
    "check for writing": lambda store: store.check_writable(),
}
ANSWERS = {
    "InvalidAccessKeyId": (403, "FEED_STORE_KEY and FEED_STORE_SECRET: {at} refuses them"),
    "SignatureDoesNotMatch": (403, "FEED_STORE_KEY and FEED_STORE_SECRET: {at} refuses them"),
    "AccessDenied": (403, "FEED_STORE_KEY and FEED_STORE_SECRET: {at} refuses them"),
    "AuthorizationHeaderMalformed": (400, "FEED_STORE_REGION: 'us-east-1' is not the region of"),
    "SlowDown": (503, "FEED_STORE_ENDPOINT: {at} does not answer for"),
}


@pytest.mark.parametrize("act", DO)
@pytest.mark.parametrize("code", ANSWERS)
def test_refusal_is_one_line_that_names_the_setting(
    storage_address: str, code: str, act: str
) -> None:
    status, line = ANSWERS[code]
    with answering(status, f"<Error><Code>{code}</Code>\n</Error>") as address:
        with pytest.raises(StoreAway) as raised:
            DO[act](make_bucket_store(address))

        said = str(raised.value)
        assert said.startswith(line.format(at=address))
        assert f"({code})" in said or status == 400
        assert "\n" not in said
        assert "a-secret" not in said


@pytest.mark.parametrize("act", DO)
def test_bucket_that_is_not_there_is_named(storage_address: str, act: str) -> None:
    with pytest.raises(StoreAway) as raised:
        DO[act](make_bucket_store(storage_address, name="another-bucket"))

    there_is_none = f"FEED_STORE: there is no bucket 'another-bucket' at {storage_address}"
    assert str(raised.value) == there_is_none


@pytest.mark.parametrize("act", DO)
def test_server_that_is_away_is_named(storage_address: str, act: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"

    with pytest.raises(StoreAway, match=f"^FEED_STORE_ENDPOINT: {address} does not answer"):
        DO[act](make_bucket_store(address))


def test_silent_server_is_given_up(storage_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "READING_TIMEOUT", "1s")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = make_bucket_store(f"http://127.0.0.1:{listener.getsockname()[1]}")

        with pytest.raises(StoreAway, match="does not answer"):
            store.read(*OWNER)


def test_secret_is_not_shown(storage_address: str) -> None:
    assert repr(make_bucket_store(storage_address, prefix="one").bucket) == f"s3://{BUCKET}/one"


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few feeds be listed, too, as thousands are."""
    monkeypatch.setattr(buckets, "LISTED_FROM", 3)


@pytest.mark.usefixtures("school")
def test_full_build_writes_each_feed_once_and_asks_nothing(
    session: Session, server: Storage
) -> None:
    store = make_bucket_store(server.address)
    feeds.add_missing(session)
    stale, _ = feeds.find_out_of_date(session, WINDOW, store, school_name=SCHOOL_NAME)

    build(session, store)

    assert len(stale) == 7
    assert server.count(store.bucket.prefix) == {"PUT": 7}


@pytest.mark.usefixtures("school", "small_lists")
def test_unchanged_feeds_cost_one_list_and_nothing_else(session: Session, server: Storage) -> None:
    store = make_bucket_store(server.address)
    build(session, store)
    before = server.count(store.bucket.prefix)

    stale = feeds.find_out_of_date(session, WINDOW, store, school_name=SCHOOL_NAME)

    assert stale == ([], 7)
    assert server.count(store.bucket.prefix) - before == {"LIST": 1}


def test_one_change_writes_its_feeds_only(
    session: Session, school: SimpleNamespace, server: Storage
) -> None:
    store = make_bucket_store(server.address)
    build(session, store)
    before = server.count(store.bucket.prefix)
    school.trip.title = "Studienreise Wien"

    assert build(session, store, run_id=NEXT_RUN) == counts(3, 4)
    assert server.count(store.bucket.prefix) - before == {"PUT": 3, "HEAD": 4}


def test_current_feed_is_known_without_a_download(
    session: Session, school: SimpleNamespace, server: Storage
) -> None:
    store = make_bucket_store(server.address)
    build(session, store)
    feed = row(session, FeedKind.CLASS, school.class_ga.id)
    before = server.count(store.bucket.prefix)

    assert serving.is_recorded(store, feed)
    assert server.count(store.bucket.prefix) - before == {"HEAD": 1}


def test_build_on_a_bucket_that_is_away_records_nothing(
    session: Session, school: SimpleNamespace, server: Storage
) -> None:
    with Proxy(server.address) as proxy:
        store = make_bucket_store(proxy.url)
        build(session, store)
        rows = session.execute(select(*Feed.__table__.c).order_by(Feed.id)).all()
        school.trip.title = "Studienreise Wien"
    # The proxy is gone.
    with pytest.raises(StoreAway, match="does not answer"):
        build(session, store, run_id=NEXT_RUN)

    assert session.execute(select(*Feed.__table__.c).order_by(Feed.id)).all() == rows
    again = make_bucket_store(server.address, prefix=store.bucket.prefix)
    assert build(session, again, run_id=NEXT_RUN) == counts(3, 4)


def test_orphan_of_a_bucket_that_is_away_keeps_its_row(
    session: Session, school: SimpleNamespace, server: Storage
) -> None:
    with Proxy(server.address) as proxy:
        store = make_bucket_store(proxy.url)
        build(session, store)
    school.anna.untis_id = None
    session.flush()
    with pytest.raises(StoreAway, match="does not answer"):
        feeds.remove_orphans(session, store)

    again = make_bucket_store(server.address, prefix=store.bucket.prefix)
    assert feeds.remove_orphans(session, again) == (1, [])
    assert (FeedKind.USER, school.anna.id) not in again.list_owners()
