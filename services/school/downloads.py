"""Fetch a file from an address that a person has entered, within limits.

Such an address may lead anywhere: to a file without an end, or into the network that this machine
is in. So each name is resolved once, all its addresses are checked, and the connection goes to
one of these addresses. The same is done again after a redirect. Proxies of the environment are not
used: a proxy would resolve the name again.
"""

import socket
import ssl
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import certifi
import httpcore
import psutil
from nightshift.errors import InvalidInput, PermanentError, TransientError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# Return the addresses of a host's name. Raises OSError.
Resolve = Callable[[str, int], Sequence[str]]

# For one connection attempt, and for one silence of the server.
SILENCE = 10.0
PIECE = 64 * 1024
PORTS = {"http": 80, "https": 443}
SCHEMES = {"http": "http", "https": "https", "webcal": "https", "webcals": "https"}
REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (408, 425, 429)
NAT64 = ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a download may take: bytes as they are unpacked, seconds from first to last, redirects.

    `networks` are networks of this side of the firewall in which a source may be nevertheless.
    """

    size: int = 20_000_000
    seconds: float = 30.0
    redirects: int = 5
    networks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Download:
    """A file, and the validators to ask for it with the next time."""

    content: bytes
    content_type: str
    etag: str | None
    last_modified: str | None


class Refused(PermanentError):
    """The source is not fetched: the message names the limit, or what the server said."""


class Away(TransientError):
    """The source does not answer now."""


def fetch(
    url: str,
    *,
    limits: Limits | None = None,
    etag: str | None = None,
    last_modified: str | None = None,
    resolve: Resolve | None = None,
) -> Download | None:
    """Return the file at an http, https or webcal address, or None where it has not changed.

    `etag` and `last_modified` are those of the earlier Download. A name and a password in the
    address are sent to its host only. Messages name the host, never the path, which may be secret.

    Raises:
        InvalidInput: It is no such address.
        Refused: It leads into the machine's own network or in a circle, is larger than a limit,
            or the server refuses it.
        Away: It did not answer, or not in time. Later it may.
    """
    limits = limits or Limits()
    deadline = _Deadline(limits.seconds)
    backend = _PinnedBackend(deadline, limits.networks, resolve or _resolve)
    asked = {"If-None-Match": etag, "If-Modified-Since": last_modified}
    headers = {name: value for name, value in asked.items() if value}
    target = _parse(url)
    login, origin = _make_login(target), target.netloc
    seen: set[str] = set()
    with httpcore.ConnectionPool(ssl_context=_tls(), network_backend=backend) as pool:
        while True:
            if target.geturl() in seen:
                raise Refused(f"{target.hostname} redirects in a circle")
            seen.add(target.geturl())
            own = login if target.netloc == origin else {}
            found = _ask(pool, target, headers | own, limits.size, deadline)
            if not isinstance(found, str):
                return found
            if len(seen) > limits.redirects:
                raise Refused(f"{target.hostname} redirects more than {limits.redirects} times")
            target = _follow(target, found)


def find_reason_against(address: Address, networks: Iterable[Network] = ()) -> str:
    """Return why an address must not be asked, or an empty string."""
    every = list(_find_meant(address))
    if any(meant in network for meant in every for network in networks):
        return ""
    for meant in every:
        if not meant.is_global or meant.is_multicast:
            return f"{address} is no address of the public internet"
        if any(meant in network for network in _find_own_networks()):
            return f"{address} is in this machine's own network"
    return ""


def _ask(
    pool: httpcore.ConnectionPool,
    target: SplitResult,
    headers: Mapping[str, str],
    size: int,
    deadline: "_Deadline",
) -> Download | str | None:
    """Return the file, where it is instead, or None when it has not changed."""
    host, port = target.hostname or "", target.port or PORTS[target.scheme]
    path = target._replace(scheme="", netloc="", fragment="").geturl() or "/"
    usual = {
        "Host": _name_host(target),
        "User-Agent": "Nightshift",
        "Accept": "*/*",
        "Accept-Encoding": "gzip",
    }
    try:
        with pool.stream(
            "GET",
            httpcore.URL(
                scheme=target.scheme.encode(), host=host.encode(), port=port, target=path.encode()
            ),
            headers=list({**usual, **headers}.items()),
            extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), SILENCE)},
        ) as response:
            said = {name.decode("latin-1").lower(): value for name, value in response.headers}
            told = {name: value.decode("latin-1") for name, value in said.items()}
            if response.status in REDIRECTS and "location" in told:
                return told["location"]
            if response.status == 304 and headers.keys() & {"If-None-Match", "If-Modified-Since"}:  # noqa: PLR2004
                return None
            _check_status(host, response.status)
            content = b"".join(_read(response, host, told, size))
            return Download(
                content,
                told.get("content-type", ""),
                told.get("etag"),
                told.get("last-modified"),
            )
    except httpcore.TimeoutException as error:
        how = "takes too long" if deadline.is_over() else "does not answer"
        raise Away(f"{host} {how}: {type(error).__name__}") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise Away(f"{host} cannot be read: {error or type(error).__name__}") from error


def _check_status(host: str, status: int) -> None:
    if status == 200:  # noqa: PLR2004
        return
    said = f"{host} answers {status}"
    if status >= 500 or status in BUSY:  # noqa: PLR2004
        raise Away(said)
    raise Refused(f"{said}; look at the address in a browser")


def _read(
    response: httpcore.Response, host: str, headers: Mapping[str, str], size: int
) -> Iterator[bytes]:
    """Yield the body unpacked, no more than `size` bytes of it."""
    if headers.get("content-length", "0").isdecimal():
        length = int(headers.get("content-length", "0"))
        if length > size:
            raise Refused(f"{host} has {length:,} bytes; the limit is {size:,}")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise Refused(f"{host} packs its file as {coding[:40]!r}, which was not asked for")
    packed = coding not in ("identity", "")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32) if packed else None
    left = size
    for piece in response.iter_stream():
        for start in range(0, len(piece), PIECE):
            some = piece[start : start + PIECE]
            if unpacker is not None:
                some = _unpack(unpacker, some, left + 1, host)
            left -= len(some)
            if left < 0:
                packing = " when it is unpacked" if packed else ""
                raise Refused(f"{host} has more than {size:,} bytes{packing}, which is the limit")
            yield some
    if unpacker is not None and not unpacker.eof:
        raise Away(f"{host} sent a packed file without its end")


def _unpack(unpacker: Any, some: bytes, most: int, host: str) -> bytes:
    try:
        return bytes(unpacker.decompress(some, most))
    except zlib.error as error:
        raise Away(f"{host} sent a packed file that is damaged: {error}") from error


# --- addresses ---


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError as error:  # Also a name that IDNA does not take.
        raise InvalidInput(f"this is no address: {error}") from error
    scheme = SCHEMES.get(parts.scheme.lower())
    if scheme is None or not host:
        raise InvalidInput("this is no address; write it as https://school.example/events.ics")
    login, _, _ = parts.netloc.rpartition("@")
    netloc = f"[{host}]" if ":" in host else host
    netloc += "" if port in (None, PORTS[scheme]) else f":{port}"
    path = _quote(parts.path or "/")
    return SplitResult(
        scheme, f"{login}@{netloc}" if login else netloc, path, _quote(parts.query), ""
    )


def _quote(text: str) -> str:
    """Return a path or query with what an HTTP request must not hold percent-encoded."""
    return "".join(
        one if "!" <= one <= "~" else "".join(f"%{byte:02X}" for byte in one.encode())
        for one in text
    )


def _follow(target: SplitResult, location: str) -> SplitResult:
    there = urljoin(target._replace(netloc=_name_host(target)).geturl(), location)
    if urlsplit(there).scheme not in SCHEMES:
        raise Refused(f"{target.hostname} redirects to {urlsplit(there).scheme[:20]}:")
    following = _parse(there)
    if target.scheme == "https" and following.scheme == "http":
        raise Refused(f"{target.hostname} redirects from https to http")
    # A name and a password stay with their host.
    host = _name_host(following)
    return target._replace(**following._replace(netloc=host)._asdict())


def _name_host(target: SplitResult) -> str:
    return target.netloc.rpartition("@")[2]


def _make_login(target: SplitResult) -> dict[str, str]:
    if target.username is None:
        return {}
    pair = f"{unquote(target.username)}:{unquote(target.password or '')}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _find_meant(address: Address) -> Iterator[Address]:
    """Yield an address and the IPv4 addresses that it stands for."""
    yield address
    if isinstance(address, IPv6Address):
        inner = (address.ipv4_mapped, address.sixtofour, (address.teredo or (None, None))[1])
        yield from filter(None, inner)
        if address in NAT64:
            yield IPv4Address(int(address) & 0xFFFFFFFF)


def _find_own_networks() -> Iterator[Network]:
    for interfaces in psutil.net_if_addrs().values():
        for one in interfaces:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.netmask:
                address = one.address.partition("%")[0]
                length = int(ip_address(one.netmask)).bit_count()
                yield ip_interface(f"{address}/{length}").network


def _resolve(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


# --- the connection ---


@cache
def _tls() -> ssl.SSLContext:
    """Return a context with this system's certificates, a company's among them, and certifi's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class _Deadline:
    """The end of a whole download. A server that sends a byte now and then does not move it."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def is_over(self) -> bool:
        return time.monotonic() >= self._ends

    def limit(self, timeout: float | None, error: type[Exception]) -> float:
        """Return the seconds that one step may take. Raises `error` when none are left."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise error("the time for the whole download is over")
        return min(left, SILENCE if timeout is None else timeout)


class _PinnedBackend(httpcore.NetworkBackend):
    """Connections to checked addresses only, with a deadline."""

    def __init__(
        self, deadline: _Deadline, networks: tuple[Network, ...], resolve: Resolve
    ) -> None:
        self._deadline = deadline
        self._networks = networks
        self._resolve = resolve
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._find_addresses(host, port, timeout)
        for address in addresses:
            if reason := find_reason_against(address, self._networks):
                raise Refused(
                    f"{host} is not asked: {reason}. If that is meant, add its network to"
                    " SCHOOL_SOURCE_NETWORKS"
                )
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            limit = self._deadline.limit(timeout, httpcore.ConnectTimeout)
            try:
                stream = self._backend.connect_tcp(str(address), port, timeout=limit)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure

    def _find_addresses(self, host: str, port: int, timeout: float | None) -> list[Address]:
        """Resolve a name in a thread: the system's resolver takes no time limit."""
        found: list[Sequence[str] | Exception] = []

        def resolve() -> None:
            try:
                found.append(self._resolve(host, port))
            except Exception as error:  # noqa: BLE001 - it is raised below
                found.append(error)

        thread = threading.Thread(target=resolve, daemon=True, name="resolve")
        thread.start()
        thread.join(self._deadline.limit(timeout, httpcore.ConnectTimeout))
        if not found:
            raise httpcore.ConnectTimeout("its name is not resolved")
        if isinstance(found[0], Exception):
            raise httpcore.ConnectError(f"its name is not resolved: {found[0]}") from found[0]
        return [ip_address(text.partition("%")[0]) for text in dict.fromkeys(found[0])]


class _TimedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limit = self._deadline.limit(timeout, httpcore.ReadTimeout)
        return self._stream.read(max_bytes, limit)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.limit(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        limit = self._deadline.limit(timeout, httpcore.ConnectTimeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, limit)
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
