"""What a download takes and refuses, from a server that says anything."""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from nightshift.errors import InvalidInput

from services.school.downloads import Away, Limits, Refused, fetch, find_reason_against

LOOPBACK = (ip_network("127.0.0.0/8"),)
HERE = Limits(networks=LOOPBACK, seconds=100)


@dataclass
class Server:
    """A server's address, and the heads of the requests that it got."""

    port: int
    heads: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/secret.ics"


@contextmanager
def serving(answer: Callable[[socket.socket, str], Any]) -> Iterator[Server]:
    """Answer each request with what `answer` sends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(listener.getsockname()[1])

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    head = connection.recv(65536).decode()
                    server.heads.append(head)
                    answer(connection, head.split()[1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        # A blocked accept() does not notice that its socket is closed.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def say(*headers: str, body: bytes = b"", status: str = "200 OK") -> Callable[..., None]:
    lines = "".join(f"{line}\r\n" for line in (*headers, "Connection: close"))

    def answer(connection: socket.socket, _path: str) -> None:
        connection.sendall(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body)

    return answer


def test_returns_the_file_and_its_validators() -> None:
    answer = say(
        'ETag: "1"',
        "Last-Modified: Sat, 28 Nov 2026 18:00:00 GMT",
        "Content-Type: text/calendar",
        body=b"BEGIN",
    )
    with serving(answer) as server:
        found = fetch(server.url, limits=HERE)
    assert found is not None
    assert (found.content, found.content_type) == (b"BEGIN", "text/calendar")
    assert (found.etag, found.last_modified) == ('"1"', "Sat, 28 Nov 2026 18:00:00 GMT")


def test_asks_with_the_validators_and_returns_none_when_nothing_changed() -> None:
    with serving(say(status="304 Not Modified")) as server:
        assert fetch(server.url, limits=HERE, etag='"1"', last_modified="yesterday") is None
    assert 'If-None-Match: "1"\r\n' in server.heads[0]
    assert "If-Modified-Since: yesterday\r\n" in server.heads[0]


def test_refuses_304_for_a_question_that_had_no_validators() -> None:
    with (
        serving(say(status="304 Not Modified")) as server,
        pytest.raises(Refused, match="answers 304"),
    ):
        fetch(server.url, limits=HERE)


def test_unpacks_gzip() -> None:
    with serving(say("Content-Encoding: gzip", body=gzip.compress(b"BEGIN"))) as server:
        found = fetch(server.url, limits=HERE)
    assert found is not None
    assert found.content == b"BEGIN"


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (say("Content-Length: 1000000000"), Refused, "has 1,000,000,000 bytes; the limit is 1,000"),
        (say(body=b"x" * 1001), Refused, "has more than 1,000 bytes, which is the limit"),
        (
            say("Content-Encoding: gzip", body=gzip.compress(bytes(50_000_000))),
            Refused,
            "has more than 1,000 bytes when it is unpacked",
        ),
        (say("Content-Encoding: br", body=b"x"), Refused, "packs its file as 'br'"),
        (say("Content-Encoding: gzip", body=b"BEGIN"), Away, "packed file that is damaged"),
        (
            say("Content-Encoding: gzip", body=gzip.compress(b"BEGIN")[:-6]),
            Away,
            "packed file without its end",
        ),
        (say(status="404 Not Found"), Refused, "answers 404"),
        (say(status="503 Busy"), Away, "answers 503"),
        (say("Content-Length: 10", body=b"x"), Away, "cannot be read"),
        (say("Location: ftp://127.0.0.1/", status="302 Found"), Refused, "redirects to ftp:"),
        (say("Location: file:///etc/passwd", status="302 Found"), Refused, "redirects to file:"),
        (say("Location: /secret.ics", status="302 Found"), Refused, "redirects in a circle"),
    ],
)
def test_refuses(answer: Callable[..., None], error: type[Exception], message: str) -> None:
    limits = Limits(size=1000, networks=LOOPBACK, seconds=100)
    with serving(answer) as server, pytest.raises(error, match=message) as refusal:
        fetch(server.url, limits=limits)
    assert "secret" not in str(refusal.value)


def test_refuses_a_redirect_after_the_fifth() -> None:
    def answer(connection: socket.socket, path: str) -> None:
        say(f"Location: {path}x", status="302 Found")(connection, path)

    with (
        serving(answer) as server,
        pytest.raises(Refused, match="redirects more than 5 times"),
    ):
        fetch(server.url, limits=HERE)
    assert len(server.heads) == 6


def test_follows_a_redirect_and_keeps_the_password_from_the_other_host() -> None:
    with serving(say(body=b"BEGIN")) as other:
        there = f"Location: http://127.0.0.1:{other.port}/b.ics"
        with serving(say(there, status="301 Moved")) as server:
            login = server.url.replace("//", "//anna:pass%20word@")
            found = fetch(login, limits=HERE)
    assert found is not None
    assert found.content == b"BEGIN"
    assert "Authorization: Basic YW5uYTpwYXNzIHdvcmQ=\r\n" in server.heads[0]
    assert "Authorization" not in other.heads[0]


def test_a_redirect_into_the_own_network_is_refused() -> None:
    answer = say("Location: http://10.1.2.3/", status="302 Found")
    with (
        serving(answer) as server,
        pytest.raises(Refused, match=r"10\.1\.2\.3 is no address of the public internet"),
    ):
        fetch(server.url, limits=HERE)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_refuses_addresses_of_the_own_network(address: str) -> None:
    assert "no address of the public internet" in find_reason_against(ip_address(address))


def test_takes_public_addresses_and_allowed_networks() -> None:
    assert find_reason_against(ip_address("93.184.215.14")) == ""
    assert find_reason_against(ip_address("2606:2800:21f:cb07::1")) == ""
    assert find_reason_against(ip_address("127.0.0.1"), LOOPBACK) == ""
    assert find_reason_against(ip_address("::ffff:127.0.0.1"), LOOPBACK) == ""


def test_a_name_of_which_one_address_is_inside_is_refused() -> None:
    def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["93.184.215.14", "127.0.0.1"]

    with pytest.raises(Refused, match=r"school\.example is not asked: 127\.0\.0\.1"):
        fetch("https://school.example/", resolve=resolve)


def test_a_name_is_resolved_once_and_its_checked_address_is_asked() -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    def resolve(_host: str, _port: int) -> Sequence[str]:
        return answers.pop(0)

    with serving(say(body=b"BEGIN")) as server:
        found = fetch(f"http://school.example:{server.port}/", limits=HERE, resolve=resolve)
    assert found is not None
    assert len(answers) == 1
    assert f"Host: school.example:{server.port}\r\n" in server.heads[0]


def test_gives_up_a_server_that_sends_a_byte_now_and_then() -> None:
    def drip(connection: socket.socket, _path: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.05)

    with serving(drip) as server:
        begun = time.monotonic()
        with pytest.raises(Away, match="takes too long"):
            fetch(server.url, limits=Limits(seconds=0.5, networks=LOOPBACK))
        assert time.monotonic() - begun < 3


def test_gives_up_a_resolver_that_hangs() -> None:
    forever = threading.Event()

    def resolve(_host: str, _port: int) -> Sequence[str]:
        forever.wait()
        return []

    with pytest.raises(Away, match="takes too long"):
        fetch("https://school.example/", limits=Limits(seconds=0.2), resolve=resolve)
    forever.set()


def test_a_server_that_is_not_there_may_come_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unheard:
        port = unheard.getsockname()[1]
    with pytest.raises(Away, match=r"127\.0\.0\.1 cannot be read"):
        fetch(f"http://127.0.0.1:{port}/", limits=HERE)


@pytest.mark.parametrize("url", ["", "events.ics", "ftp://a/b", "https://", "http://[::1", "//a/b"])
def test_refuses_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidInput, match="this is no address"):
        fetch(url)


def test_encodes_what_a_request_cannot_hold() -> None:
    with serving(say(body=b"BEGIN")) as server:
        url = f"http://127.0.0.1:{server.port}/Prüfungen 1.ics?a=ü\r\nX: y"
        fetch(url, limits=HERE)
    assert server.heads[0].startswith("GET /Pr%C3%BCfungen%201.ics?a=%C3%BCX:%20y HTTP/1.1\r\n")
