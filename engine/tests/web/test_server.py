"""What the engine's web server answers: a real one, and a real client."""

import re
from types import SimpleNamespace

import pytest
from exposed import samples
from servers import free_port
from web_servers import uvicorn_server, web_server

SECRET = "s3cret-part-of-a-path"
COMMON = {
    "cache-control": "private, no-cache",
    "x-robots-tag": "noindex",
    "x-content-type-options": "nosniff",
}
PLAIN = {"content-type": "text/plain; charset=utf-8"}


def not_allowed(allowed):
    text = f"only {allowed}\n".encode()
    return 405, COMMON | PLAIN | {"content-length": str(len(text)), "allow": allowed}, text


OK = (200, COMMON | PLAIN | {"content-length": "3"}, b"ok\n")
# A page that sets no headers of its own.
WORD = (200, PLAIN | {"content-length": "5", "x-content-type-options": "nosniff"}, b"word\n")
NOT_FOUND = (404, COMMON | PLAIN | {"content-length": "10"}, b"not found\n")
NOT_ALLOWED = not_allowed("GET, HEAD")
UNAVAILABLE = (
    503,
    COMMON | PLAIN | {"content-length": "16", "retry-after": "60"},
    b"try again later\n",
)


def answer(response):
    headers = {name: value for name, value in response.headers.items() if name != "date"}
    return response.status_code, headers, response.content


@pytest.fixture(scope="module")
def web(database_url, tmp_path_factory):
    """Yield a running server, and the file that its probes read."""
    folder = tmp_path_factory.mktemp("web")
    state = folder / "state"
    state.write_text("ok")
    with web_server(
        "web_pages",
        folder,
        DATABASE_URL=database_url,
        PAGE_STATE=str(state),
        METRICS_TOKEN="one of our own",
        LOG_LEVEL="DEBUG",
    ) as running:
        yield SimpleNamespace(running=running, state=state)


TABLE = [
    ("GET", "/health", {}, OK),
    ("HEAD", "/health", {}, (*OK[:2], b"")),
    ("GET", "/health?x=1", {}, OK),
    ("GET", f"/word/{SECRET}", {}, WORD),
    ("GET", "/health/", {}, NOT_FOUND),
    ("GET", "//health", {}, NOT_FOUND),
    ("GET", "/Health", {}, NOT_FOUND),
    ("GET", "/health%00", {}, NOT_FOUND),
    ("GET", "/x/../health", {}, NOT_FOUND),
    ("GET", "/word/", {}, NOT_FOUND),
    ("GET", f"/word/{SECRET}/", {}, NOT_FOUND),
    ("GET", f"/word/{SECRET}/more", {}, NOT_FOUND),
    ("GET", "/../../../../etc/passwd", {}, NOT_FOUND),
    ("GET", "/..%2f..%2f..%2fetc%2fpasswd", {}, NOT_FOUND),
    ("GET", "/%", {}, NOT_FOUND),
    ("GET", "/%ff%fe", {}, NOT_FOUND),
    ("GET", "/%C3%A9%F0%9F%93%85", {}, NOT_FOUND),
    ("GET", "/" + "A" * 8000, {}, NOT_FOUND),
    ("GET", "/", {}, NOT_FOUND),
    ("GET", "http://127.0.0.1/health", {}, NOT_FOUND),
    ("GET", "/metrics", {}, NOT_FOUND),
    ("GET", "/metrics", {"authorization": "Bearer"}, NOT_FOUND),
    ("GET", "/metrics", {"authorization": "Bearer another"}, NOT_FOUND),
    ("GET", "/metrics", {"authorization": "one of our own"}, NOT_FOUND),
    ("POST", "/health", {}, NOT_ALLOWED),
    ("POST", "/ready", {}, NOT_ALLOWED),
    ("POST", "/metrics", {}, NOT_ALLOWED),
    ("PUT", f"/word/{SECRET}", {}, NOT_ALLOWED),
    ("DELETE", f"/word/{SECRET}", {}, NOT_ALLOWED),
    ("OPTIONS", f"/word/{SECRET}", {}, NOT_ALLOWED),
    ("PROPFIND", f"/word/{SECRET}", {}, NOT_ALLOWED),
    ("DELETE", "/form", {}, not_allowed("GET, HEAD, POST")),
]


@pytest.mark.parametrize(
    ("method", "target", "given", "expected"),
    TABLE,
    ids=[f"{row[0]} {row[1][:40]} {row[2]}" for row in TABLE],
)
def test_request_has_its_answer(web, method, target, given, expected):
    assert answer(web.running.request(method, target, given)) == expected


def test_metrics_are_for_the_holder_of_the_token(web):
    got = web.running.client.get("/metrics", headers={"authorization": "Bearer one of our own"})

    status, headers, _ = answer(got)
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert COMMON.items() <= headers.items()
    assert samples(got.text)["nightshift_workers", ("queue", "default")] == 0


def test_without_a_token_there_are_no_metrics(tmp_path):
    with web_server("web_pages", tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/none.db") as running:
        for given in ("Bearer", ""):
            got = running.request("GET", "/metrics", {"authorization": given})
            assert answer(got) == NOT_FOUND


@pytest.mark.parametrize(
    ("state", "status", "ready"),
    [("ok", 200, True), ("warn", 200, True), ("fail", 503, False), ("skip", 503, False)],
)
def test_ready_says_what_the_probes_found(web, state, status, ready):
    web.state.write_text(state)
    try:
        got = web.running.client.get("/ready")
    finally:
        web.state.write_text("ok")

    said = {
        "ready": ready,
        "status": state,
        "probes": {"database": "ok", "state": state, "ledger's state": state, "told": "ok"},
    }
    assert (got.status_code, got.json()) == (status, said)
    assert COMMON.items() <= answer(got)[1].items()


def test_probe_that_is_only_told_leaves_the_server_in_its_load_balancer(web):
    told = web.state.with_name("told")
    told.write_text("fail")
    try:
        got = web.running.client.get("/ready")
    finally:
        told.unlink()

    assert (got.status_code, got.json()["ready"], got.json()["status"]) == (200, True, "fail")
    assert got.json()["probes"]["told"] == "fail"


def test_probe_that_raises_makes_the_server_not_ready(web):
    web.state.write_text("nonsense")
    try:
        got = web.running.client.get("/ready")
    finally:
        web.state.write_text("ok")

    assert (got.status_code, got.json()["probes"]["state"]) == (503, "fail")
    assert "nonsense" not in got.text


def test_access_log_has_a_line_for_each_answer_and_no_secret(web):
    web.running.request("HEAD", f"/word/{SECRET}")
    web.running.request("GET", f"/somewhere/else/{SECRET}")
    web.running.request("GET", f"/metrics?{SECRET}")
    web.running.request("PROPFINDANDMORE", f"/word/{SECRET}")
    # The last one has a word that no other request of this server has.
    web.running.request("LAST", f"/word/{SECRET}")

    log = web.running.wait_for_log("LAST /word/…")
    lines = [re.sub(r"^.*INFO +\d+ (.*) \d+ ms$", r"\1", line) for line in log.splitlines()[-5:]]
    assert lines == [
        "HEAD /word/… 200 0 bytes",
        "GET /… 404 10 bytes",
        "GET /metrics 404 10 bytes",
        "PROPFIND /word/… 405 15 bytes",
        "LAST /word/… 405 15 bytes",
    ]
    assert SECRET not in log


def test_error_of_a_page_is_logged_without_its_path(web):
    got = web.running.request("GET", f"/broken/{SECRET}")

    text = b"internal error\n"
    assert answer(got) == (500, COMMON | PLAIN | {"content-length": str(len(text))}, text)
    log = web.running.wait_for_log("ZeroDivisionError")
    assert "GET /broken/… 500" in log
    assert SECRET not in log


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /word/%b HTTP/1.1\r\nHost: x\r\nX-Long: " % SECRET.encode() + b"a" * 100_000,
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)),
        b"GET /word/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /word/a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["long header", "long path", "many headers", "not ASCII", "NUL", "TLS"],
)
def test_bytes_that_are_not_a_request_are_refused_before_they_are_kept(web, request_bytes):
    try:
        got = web.running.send_bytes(request_bytes)
    except ConnectionResetError:  # It does not read to the end.
        return
    assert got.startswith(b"HTTP/1.1 400 ")
    assert web.running.client.get("/health").status_code == 200


@pytest.mark.parametrize("size", [16_384, 17_000, 40_000, 60_000])
@pytest.mark.parametrize("place", ["header", "path", "query"])
def test_limit_on_the_head_holds_when_it_arrives_at_once(web, place, size):
    much = b"a" * size
    target = {"path": b"/" + much, "query": b"/health?" + much}.get(place, b"/health")
    header = b"X-Long: " + much if place == "header" else b"X-Short: a"
    got = web.running.send_bytes(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (target, header))

    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.endswith(b"not a good request\n")


@pytest.mark.parametrize("page", [b"/health", b"/form", b"/nowhere"])
def test_request_with_a_length_and_chunks_is_refused_and_ends_its_connection(web, page):
    # What a proxy takes for the body of one request must not be another one here.
    smuggled = b"GET /word/%b HTTP/1.1\r\nHost: x\r\n\r\n" % SECRET.encode()
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (page, 5 + len(smuggled))
    got = web.running.send_bytes(
        request + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled
    )

    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_database_that_is_away_is_said(tmp_path, kind):
    away = {
        "postgres": f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none",
        "sqlite": f"sqlite:///{tmp_path}/none.db",
    }[kind]
    settings = {"METRICS_TOKEN": "ours", "LOG_LEVEL": "DEBUG"}
    with web_server("web_pages", tmp_path, DATABASE_URL=away, **settings) as running:
        metrics = running.request("GET", "/metrics", {"authorization": "Bearer ours"})
        assert answer(running.request("GET", f"/ask/{SECRET}")) == UNAVAILABLE
        assert answer(metrics) == UNAVAILABLE
        assert answer(running.request("GET", f"/word/{SECRET}")) == WORD
        assert answer(running.request("GET", "/elsewhere")) == NOT_FOUND
        assert answer(running.request("GET", "/health")) == OK
        log = running.wait_for_log("WARNING")
    assert SECRET not in log


def test_ready_says_that_the_database_is_away(tmp_path):
    (tmp_path / "state").write_text("ok")
    away = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"
    settings = {"DATABASE_URL": away, "PAGE_STATE": f"{tmp_path}/state"}
    with web_server("web_pages", tmp_path, **settings) as running:
        got = running.client.get("/ready")

    said = {
        "ready": False,
        "status": "fail",
        "probes": {"database": "fail", "state": "ok", "ledger's state": "skip", "told": "ok"},
    }
    assert (got.status_code, got.json()) == (503, said)


def test_pages_that_are_watched_have_a_line_when_their_status_changes(tmp_path):
    state = tmp_path / "state"
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/none.db", "PAGE_STATE": str(state)}
    with web_server("web_pages", tmp_path, **settings) as running:
        for said in ("ok", "fail", "ok"):
            state.write_text(said)
            for _ in range(5):
                running.client.get("/health")
                running.client.get("/ready")
        running.request("GET", "/last")
        log = running.wait_for_log("GET /… 404")

    lines = re.findall(r"GET /(?:health|ready) \d+", log)
    assert lines == ["GET /health 200", "GET /ready 200", "GET /ready 503", "GET /ready 200"]


def test_database_that_is_away_has_one_line_in_a_minute(tmp_path):
    away = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"
    with web_server("web_pages", tmp_path, DATABASE_URL=away) as running:
        for _ in range(5):
            assert running.request("GET", "/ask/1").status_code == 503
        running.request("GET", "/last")
        log = running.wait_for_log("GET /… 404")

    assert log.count("the database does not answer") == 1


def test_server_that_uvicorn_starts_by_itself_logs_no_secret(tmp_path):
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/none.db"}
    with uvicorn_server("web_pages:make_pages", tmp_path, **settings) as running:
        assert running.request("GET", f"/ask/{SECRET}").status_code == 503

        log = running.wait_for_log("GET /ask/… 503 16 bytes")
    assert SECRET not in log
