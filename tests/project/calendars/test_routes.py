"""What the web server answers to those who ask for a feed: a real one, and a real client."""

import json
import os
import re
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from forking import run_forked
from nightshift.database import Base
from servers import free_port
from sqlalchemy import select, update

from project.settings import WEB_PORT
from services.calendars import serving
from services.calendars.models import Feed, FeedKind, SyncRun
from services.calendars.store import FeedStore
from tests.conftest import ROOT, metric
from tests.installing import install
from tests.serving import EXAMPLE, load_example, serve, sync

UNKNOWN = "A" * 32
COMMON = {
    "cache-control": "private, no-cache",
    "x-robots-tag": "noindex",
    "x-content-type-options": "nosniff",
}
PLAIN = {"content-type": "text/plain; charset=utf-8"}


def headers(response):
    return {name: value for name, value in response.headers.items() if name != "date"}


def answer(response):
    return response.status_code, headers(response), response.content


NOT_FOUND = (404, COMMON | PLAIN | {"content-length": "10"}, b"not found\n")
NOT_ALLOWED = (
    405,
    COMMON | PLAIN | {"content-length": "15", "allow": "GET, HEAD"},
    b"only GET, HEAD\n",
)
UNAVAILABLE = (
    503,
    COMMON | PLAIN | {"content-length": "16", "retry-after": "60"},
    b"try again later\n",
)


@pytest.fixture(scope="module", params=["embedded", "servers"])
def web(request, tmp_path_factory):
    """Yield a server of the example school.

    One feed is as it should be; each of the others has something wrong.
    """
    folder = tmp_path_factory.mktemp("web")
    with (
        install(request.param, folder, metrics_token="one of our own") as installation,
        ExitStack() as stack,
    ):
        runtime, store = installation.runtime, installation.runtime[FeedStore]
        load_example(installation.app)
        sync(installation.app)
        with runtime.unit_of_work() as session:
            tokens = {
                name: serving.find_token(session, FeedKind.CLASS, name)
                for name in ("27Ga", "27GA", "28Ga", "27Wa", "28Wb")
            }
            serving.revoke(session, FeedKind.CLASS, "27GA", now=runtime.now())
            ids = {feed.token: feed.owner_id for feed in session.execute(select(Feed)).scalars()}
            session.execute(
                update(Feed).where(Feed.token == tokens["28Ga"]).values(modified_at=None)
            )
            # What was written a moment ago is never answered with a 304 by its date.
            past = runtime.now() - timedelta(hours=1)
            session.execute(
                update(Feed).where(Feed.token == tokens["27Ga"]).values(modified_at=past)
            )
        os.utime(path := store.path(FeedKind.CLASS, ids[tokens["27Ga"]]), (1, 1))
        with runtime.unit_of_work() as session:
            [stamp] = store.find_stamps([(FeedKind.CLASS, ids[tokens["27Ga"]])]).values()
            session.execute(update(Feed).where(Feed.token == tokens["27Ga"]).values(stamp=stamp))
        store.path(FeedKind.CLASS, ids[tokens["27Wa"]]).unlink()
        store.path(FeedKind.CLASS, ids[tokens["28Wb"]]).write_bytes(b"")
        running = stack.enter_context(serve(folder, LOG_LEVEL="DEBUG"))
        named = dict(
            zip(("good", "revoked", "unbuilt", "missing", "short"), tokens.values(), strict=True)
        )
        with runtime.read_only() as session:
            etag = session.execute(
                select(Feed.etag).where(Feed.token == named["good"])
            ).scalar_one()
        yield SimpleNamespace(
            running=running,
            runtime=runtime,
            store=store,
            tokens=named,
            content=path.read_bytes(),
            words={
                **named,
                "unknown": UNKNOWN,
                "etag": f'"{etag}"',
                "modified": format_datetime(past, usegmt=True),
                "before": format_datetime(past - timedelta(seconds=1), usegmt=True),
                "after": format_datetime(past + timedelta(seconds=1), usegmt=True),
                "asctime": past.strftime("%a %b %d %H:%M:%S %Y"),
            },
        )


# Method, target, the request's headers; the answer. `{good}` is a token, `{etag}` and `{modified}`
# are what the last answer said.
TABLE = [
    # A calendar, and whether the client has it already.
    ("GET", "/f/{good}.ics", {}, 200),
    ("HEAD", "/f/{good}.ics", {}, 200),
    ("GET", "/f/{good}.ics?refresh=1", {}, 200),
    ("GET", "/f/{good}.ics", {"accept": "text/html"}, 200),
    ("GET", "/f/{good}.ics", {"accept-encoding": "gzip, br"}, 200),
    ("GET", "/f/{good}.ics", {"range": "bytes=0-9"}, 200),
    ("GET", "/f/{good}.ics", {"if-none-match": "{etag}"}, 304),
    ("HEAD", "/f/{good}.ics", {"if-none-match": "{etag}"}, 304),
    ("GET", "/f/{good}.ics", {"if-none-match": "W/{etag}"}, 304),
    ("GET", "/f/{good}.ics", {"if-none-match": '"another", W/"a,b" , {etag}'}, 304),
    ("GET", "/f/{good}.ics", {"if-none-match": "*"}, 304),
    ("GET", "/f/{good}.ics", {"if-none-match": '"another"'}, 200),
    ("GET", "/f/{good}.ics", {"if-none-match": '"*"'}, 200),
    ("GET", "/f/{good}.ics", {"if-none-match": "etag without quotes"}, 200),
    ("GET", "/f/{good}.ics", {"if-none-match": ""}, 200),
    ("GET", "/f/{good}.ics", {"if-modified-since": "{modified}"}, 304),
    ("HEAD", "/f/{good}.ics", {"if-modified-since": "{modified}"}, 304),
    ("GET", "/f/{good}.ics", {"if-modified-since": "{after}"}, 304),
    ("GET", "/f/{good}.ics", {"if-modified-since": "{asctime}"}, 304),
    ("GET", "/f/{good}.ics", {"if-modified-since": "{before}"}, 200),
    ("GET", "/f/{good}.ics", {"if-modified-since": "yesterday"}, 200),
    (
        "GET",
        "/f/{good}.ics",
        {"if-modified-since": "Sun, 06 Nov 1994 08:49:37 +99999999999999999999"},
        200,
    ),
    (
        "GET",
        "/f/{good}.ics",
        {"if-none-match": '"another"', "if-modified-since": "{modified}"},
        200,
    ),
    ("GET", "/f/{good}.ics", {"if-none-match": "{etag}", "if-modified-since": "{before}"}, 304),
    # No calendar to be had now: subscribers keep theirs.
    ("GET", "/f/{unbuilt}.ics", {}, 503),
    ("GET", "/f/{missing}.ics", {}, 503),
    ("GET", "/f/{missing}.ics", {"if-none-match": "*"}, 503),
    ("GET", "/f/{short}.ics", {}, 503),
    # Nothing there, and nothing told.
    ("GET", "/f/{unknown}.ics", {}, 404),
    ("GET", "/f/{unknown}.ics", {"if-none-match": "*"}, 404),
    ("GET", "/f/{revoked}.ics", {}, 404),
    ("GET", "/f/{revoked}.ics", {"if-none-match": "*"}, 404),
    ("GET", "/f/{good}.ics/", {}, 404),
    ("GET", "/f/{good}.ics%0a", {}, 404),
    ("GET", "/f/{good}.ics%00", {}, 404),
    ("GET", "/f/{good}%00.ics", {}, 404),
    ("GET", "/f/{good}.ICS", {}, 404),
    ("GET", "/f/{good}.ics.ics", {}, 404),
    ("GET", "/F/{good}.ics", {}, 404),
    ("GET", "//f/{good}.ics", {}, 404),
    ("GET", "/f//{good}.ics", {}, 404),
    ("GET", "/f/x/../{good}.ics", {}, 404),
    ("GET", "/f/..%2f{good}.ics", {}, 404),
    ("GET", "/f/../../../../etc/passwd", {}, 404),
    ("GET", "/f/..%2f..%2f..%2fetc%2fpasswd", {}, 404),
    ("GET", "/f/%2e%2e%2fclasses%2f1.ics", {}, 404),
    ("GET", "/f/..%5c1.ics", {}, 404),
    ("GET", "/f/%.ics", {}, 404),
    ("GET", "/f/%ff%fe.ics", {}, 404),
    ("GET", "/f/%C3%A9%F0%9F%93%85.ics", {}, 404),
    ("GET", "/f/' or 1=1 --.ics".replace(" ", "%20"), {}, 404),
    ("GET", "/f/.ics", {}, 404),
    ("GET", "/f/" + "A" * 8000 + ".ics", {}, 404),
    ("GET", "/f/", {}, 404),
    ("GET", "/f", {}, 404),
    ("GET", "/health/", {}, 404),
    ("GET", "http://127.0.0.1/f/{good}.ics", {}, 404),
    ("GET", "/users/1.ics", {}, 404),
    ("GET", "/metrics", {}, 404),
    ("GET", "/metrics", {"authorization": "Bearer"}, 404),
    ("GET", "/metrics", {"authorization": "Bearer another"}, 404),
    # Nothing can be changed.
    ("POST", "/f/{good}.ics", {}, 405),
    ("PUT", "/f/{unknown}.ics", {}, 405),
    ("DELETE", "/f/{revoked}.ics", {}, 405),
    ("OPTIONS", "/f/{good}.ics", {}, 405),
    ("PROPFIND", "/f/{good}.ics", {}, 405),
    ("POST", "/health", {}, 405),
]


@pytest.mark.parametrize(
    ("method", "target", "given", "expected"),
    TABLE,
    ids=[f"{row[0]} {row[1][:40]} {row[2]}" for row in TABLE],
)
def test_request_has_its_answer(web, method, target, given, expected):
    validators = {"etag": web.words["etag"], "last-modified": web.words["modified"]}
    whole = {
        "content-type": "text/calendar; charset=utf-8",
        "content-disposition": 'inline; filename="calendar.ics"',
        "content-length": str(len(web.content)),
    }
    meant = {
        200: (200, COMMON | validators | whole, b"" if method == "HEAD" else web.content),
        304: (304, COMMON | validators, b""),
        404: NOT_FOUND,
        405: NOT_ALLOWED,
        503: UNAVAILABLE,
    }

    got = web.running.request(
        method,
        target.format(**web.words),
        {name: value.format(**web.words) for name, value in given.items()},
    )

    assert answer(got) == meant[expected]


def test_calendar_is_the_file_byte_for_byte(web):
    assert web.content.startswith(b"BEGIN:VCALENDAR\r\n")
    assert b"SUMMARY:" in web.content
    assert web.running.request("GET", "/f/{good}.ics".format(**web.words)).content == web.content


def test_file_that_was_replaced_by_hand_is_served_with_a_tag_of_its_own(web):
    target = "/f/{good}.ics".format(**web.words)
    with web.runtime.read_only() as session:
        owner_id = session.execute(
            select(Feed.owner_id).where(Feed.token == web.tokens["good"])
        ).scalar_one()
    path = web.store.path(FeedKind.CLASS, owner_id)
    before = path.stat()
    other = web.content.replace(b"SUMMARY:", b"SUMMARY:!")
    try:
        path.write_bytes(other)
        os.utime(path, (2, 2))
        got = web.running.request("GET", target, {"if-none-match": web.words["etag"]})
        by_date = web.running.request("GET", target, {"if-modified-since": web.words["modified"]})
        again = web.running.request("GET", target, {"if-none-match": got.headers["etag"]})
    finally:
        path.write_bytes(web.content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (got.status_code, got.content) == (200, other)
    assert got.headers["etag"] != web.words["etag"]
    assert "last-modified" not in got.headers
    assert (by_date.status_code, again.status_code) == (200, 304)
    assert (
        web.running.request("GET", target, {"if-none-match": web.words["etag"]}).status_code == 304
    )


def test_young_file_is_not_answered_by_its_date(web):
    target = "/f/{good}.ics".format(**web.words)
    soon = datetime.now(UTC) + timedelta(hours=1)
    with web.runtime.unit_of_work() as session:
        before = session.execute(
            select(Feed.modified_at).where(Feed.token == web.tokens["good"])
        ).scalar_one()
        session.execute(
            update(Feed).where(Feed.token == web.tokens["good"]).values(modified_at=soon)
        )
    try:
        got = web.running.request("GET", target)
        # Never later than the answer itself.
        assert parsedate_to_datetime(got.headers["last-modified"]) <= parsedate_to_datetime(
            got.headers["date"]
        ) + timedelta(seconds=1)
        assert (
            web.running.request(
                "GET", target, {"if-modified-since": format_datetime(soon, usegmt=True)}
            ).status_code
            == 200
        )
        assert (
            web.running.request("GET", target, {"if-none-match": got.headers["etag"]}).status_code
            == 304
        )
    finally:
        with web.runtime.unit_of_work() as session:
            session.execute(
                update(Feed).where(Feed.token == web.tokens["good"]).values(modified_at=before)
            )


def test_ready_says_what_it_looked_at(web):
    got = web.running.client.get("/ready")
    names = ("database", "sync", "failed feeds", "addresses", "store")
    said = {"ready": True, "status": "ok", "probes": dict.fromkeys(names, "ok")}
    assert (got.status_code, got.json()) == (200, said)


def test_ready_says_when_the_last_good_sync_is_old(web):
    for ago, said in ((14, "fail"), (12, "ok")):
        with web.runtime.unit_of_work() as session:
            at = web.runtime.now() - timedelta(hours=ago)
            session.execute(update(SyncRun).values(finished_at=at))
        got = web.running.client.get("/ready")
        # The feeds of yesterday are better than none.
        assert (got.status_code, got.json()["probes"]["sync"]) == (200, said)


def test_metrics_are_for_who_has_the_token(web):
    got = web.running.client.get("/metrics", headers={"authorization": "Bearer one of our own"})
    assert (got.status_code, got.headers["content-type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    assert f'{metric("feeds")}{{kind="class"}} 6.0\n' in got.text


def test_many_wrong_tokens_have_one_answer_and_cost_no_memory(web):
    process = psutil.Process(web.running.pid)
    seen = set()
    for number in range(2000):
        if number == 500:
            before = process.memory_info().rss
        got = web.running.request("GET", f"/f/{number:032d}.ics")
        seen.add(json.dumps(answer(got)[:2]) + got.text)
    assert len(seen) == 1
    assert process.memory_info().rss - before < 10_000_000


def test_access_log_has_a_line_for_each_answer_and_no_token(web):
    web.running.request("HEAD", "/f/{good}.ics".format(**web.words))
    web.running.request("GET", "/somewhere/else/{good}".format(**web.words))
    web.running.client.get("/health?{good}".format(**web.words))
    # The last one has a word that no other request of this server has.
    web.running.request("LAST", "/f/{good}.ics".format(**web.words))
    log = web.running.wait_for_log("LAST /f/…")
    lines = [re.sub(r"^.*INFO +\d+ (.*) \d+ ms$", r"\1", line) for line in log.splitlines()[-4:]]
    assert lines == [
        "HEAD /f/… 200 0 bytes",
        "GET /… 404 10 bytes",
        "GET /health 200 3 bytes",
        "LAST /f/… 405 15 bytes",
    ]
    assert not [token for token in web.tokens.values() if token in log]


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_database_that_is_away_is_no_reason_to_forget_an_address(tmp_path, kind):
    away = {
        "postgres": f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none",
        "sqlite": f"sqlite:///{tmp_path}/none.db",
    }[kind]
    (tmp_path / "feeds").mkdir()
    with serve(
        tmp_path,
        DATABASE_URL=away,
        FEED_STORE=f"{tmp_path}/feeds",
        METRICS_TOKEN="ours",
        LOG_LEVEL="DEBUG",
    ) as running:
        assert answer(running.request("GET", f"/f/{UNKNOWN}.ics")) == UNAVAILABLE
        assert answer(running.request("GET", "/f/no-token.ics")) == NOT_FOUND
        assert (
            answer(running.request("GET", "/metrics", {"authorization": "Bearer ours"}))
            == UNAVAILABLE
        )
        assert running.client.get("/health").status_code == 200
        got = running.client.get("/ready")
        # SQLite makes an empty database at once.
        found = {"postgres": ("fail", "skip"), "sqlite": ("ok", "fail")}[kind]
        probes = {
            "database": found[0],
            "sync": found[1],
            "failed feeds": found[1],
            "addresses": found[1],
            "store": "ok",
        }
        said = {"ready": False, "status": "fail", "probes": probes}
        assert (got.status_code, got.json()) == (503, said)
        assert UNKNOWN not in running.wait_for_log("WARNING")


def everything_written(folder: Path, runtime) -> str:
    """Return all logs, and all that the tables hold except for the column of the tokens."""
    said = "\n".join(path.read_text(errors="replace") for path in folder.rglob("*.log"))
    with runtime.read_only() as session:
        for table in Base.metadata.sorted_tables:
            columns = [
                column for column in table.c if (table.name, column.name) != ("feed", "token")
            ]
            said += "\n".join(str(row) for row in session.execute(select(*columns)))
    return said


@pytest.mark.timeout(360)
def test_no_token_is_written_anywhere(tmp_path):
    with install("servers", tmp_path, log_level="DEBUG") as installation:
        runtime = installation.runtime

        def command(*words):
            words = ["-A", "project", *words]
            ran = run_forked("celery", *words, environment=os.environ, folder=ROOT)
            with (tmp_path / "commands.log").open("a") as log:
                log.write(ran.stderr)
            assert ran.returncode == 0, ran.stderr
            return ran.stdout.strip()

        command("school", "load", str(EXAMPLE))
        port = free_port()
        installation.worker("--task-events")
        login = {"FLOWER_BASIC_AUTH": "admin:ours", "FLOWER_UNAUTHENTICATED_API": "false"}
        installation.start("flower", "--address=127.0.0.1", f"--port={port}", **login)
        flower = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("admin", "ours"))

        def tasks():
            try:
                return flower.get("/api/tasks").json()
            except httpx.TransportError:
                return {}

        installation.until(lambda: flower_lives(flower))
        command("feeds", "sync")
        address = command("feeds", "url", "class", "27Ga")
        with serve(tmp_path, LOG_LEVEL="DEBUG", LOG_FORMAT="json") as running:
            target = address.removeprefix(f"http://127.0.0.1:{WEB_PORT}")
            assert running.request("GET", target).status_code == 200
            rotated = command("feeds", "rotate", "class", "27Ga")
            assert running.request("GET", target).status_code == 404
            assert (
                running.request(
                    "GET", rotated.removeprefix(f"http://127.0.0.1:{WEB_PORT}")
                ).status_code
                == 200
            )
        command("feeds", "sync")
        command("feeds", "list")
        assert (
            command("feeds", "revoke", "class", "27Ga")
            == "the feed of class 27Ga has no address any more"
        )
        seen = installation.until(lambda: len(found := tasks()) >= 4 and json.dumps(found))
        flower.close()
        with runtime.read_only() as session:
            tokens = list(session.execute(select(Feed.token)).scalars())
        tokens.append(target.removeprefix("/f/").removesuffix(".ics"))
        said = everything_written(tmp_path, runtime) + seen
        assert "calendars.finish_sync" in seen
        assert '"message": "GET /f/\\u2026 200' in said or '"message": "GET /f/… 200' in said
        assert [token for token in tokens if token in said] == []


def flower_lives(client):
    try:
        return client.get("/healthcheck").status_code == 200
    except httpx.TransportError:
        return False
