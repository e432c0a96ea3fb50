"""The web server: `/health`, `/ready`, `/metrics`, and the routes of the components.

A path's parameter may be secret (a feed's token), so neither this server nor a library that it uses
logs a path with parameters.
"""

import errno
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import anyio.to_thread
import uvicorn
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightshift.celery import logs, sentry
from nightshift.component import Composition, Status
from nightshift.database import POOL_SIZE
from nightshift.errors import InvalidInput, first_line
from nightshift.observe.metrics import render_metrics
from nightshift.observe.probes import run_probes
from nightshift.runtime import Runtime

logger = logging.getLogger("nightshift.web")

# Bytes of a request's line and headers; a longer request is refused.
LARGEST_HEAD = 16_384
MOST_CONNECTIONS = 500
KEEP_ALIVE, GRACE = 15, 10
WATCHED = ("/health", "/ready")

# `no-cache`: a client may keep a copy, but asks each time whether it is current, and gets a 304.
COMMON = {
    "cache-control": "private, no-cache",
    "x-robots-tag": "noindex",
    "x-content-type-options": "nosniff",
}

# What uvicorn answers to bytes that are no request.
REFUSED = PlainTextResponse("not a good request\n", 400, COMMON | {"connection": "close"})
FAILED = PlainTextResponse("internal error\n", 500, COMMON)

# The same bytes for every request: they must not tell whether a token exists.
NOT_FOUND = PlainTextResponse("not found\n", 404, COMMON)
# Not an empty 200, which would empty the subscribers' calendars.
UNAVAILABLE = PlainTextResponse("try again later\n", 503, COMMON | {"retry-after": "60"})


def make_routes(runtime: Runtime) -> list[BaseRoute]:
    """Return the engine's own routes."""

    async def health(_request: Request) -> Response:
        """Answer that the process lives, with or without a database."""
        return PlainTextResponse("ok\n", headers=COMMON)

    def ready(_request: Request) -> Response:
        """Answer whether the server can serve requests now, and how the installation is.

        Only probes with `ready` decide the status code: what this server could not do better if it
        were restarted, or left out of a load balancer, is told and no more.
        """
        probes = [probe for probe in runtime[Composition].probes if probe.ready or probe.told]
        found = run_probes(runtime, probes, runtime.read_only)
        deciding = {probe.name for probe in probes if probe.ready}
        good = all(one.status in (Status.OK, Status.WARN) for one in found if one.probe in deciding)
        said = {
            "ready": good,
            "status": max((one.status for one in found), key=list(Status).index),
            "probes": {one.probe: one.status.value for one in found},
        }
        return JSONResponse(said, 200 if good else 503, COMMON)

    def metrics(request: Request) -> Response:
        """Answer with the metrics when the request has METRICS_TOKEN, else with 404."""
        wanted = runtime.settings.metrics_token.get_secret_value()
        given = request.headers.get("authorization", "")
        if not wanted or not secrets.compare_digest(given.encode(), f"Bearer {wanted}".encode()):
            return NOT_FOUND
        headers = COMMON | {"content-type": CONTENT_TYPE_PLAIN_0_0_4}
        return Response(render_metrics(runtime), headers=headers)

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]


class AccessLog:
    """Logs a line for each answer: method, page, status, bytes and milliseconds.

    What asks `/health` and `/ready` asks every few seconds: they have a line when their status
    changes. Of a path with parameters only the part before the first parameter is logged.
    """

    def __init__(self, app: ASGIApp, routes: list[BaseRoute]) -> None:
        self.app = app
        paths = [route.path for route in routes if isinstance(route, Route)]
        self._open = {path for path in paths if "{" not in path}
        self._last: dict[str, int] = {}
        masked = {path.partition("{")[0] for path in paths if "{" in path}
        self._masked = sorted(masked, key=len, reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, size = time.perf_counter(), 500, 0

        async def counted(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            elif scope["method"] != "HEAD":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            milliseconds = (time.perf_counter() - began) * 1000
            page = self._page(scope["path"])
            if page not in WATCHED or self._last.get(page) != status:
                line = "%s %s %d %d bytes %.0f ms"
                logger.info(line, scope["method"][:8], page, status, size, milliseconds)
            if page in WATCHED:
                self._last[page] = status

    def _page(self, path: str) -> str:
        if path in self._open:
            return path
        return next((f"{start}…" for start in self._masked if path.startswith(start)), "/…")


class Strictness:
    """Refuses requests that are too long or can be read in two ways; marks what is answered.

    uvicorn counts a head only while parts of it are missing. A request with both a length and
    chunks is one to us and perhaps two to a proxy, so its connection is closed (RFC 9112, 6.1).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("x-content-type-options", "nosniff")
            await send(message)

        names = {name for name, _ in scope["headers"]}
        # `: ` and a line's end.
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        refused = size > LARGEST_HEAD or {b"content-length", b"transfer-encoding"} <= names
        await (REFUSED if refused else self.app)(scope, receive, marked)


async def _fail(_request: Request, _error: Exception) -> Response:
    # Starlette raises the error again, and uvicorn logs it.
    return FAILED


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NOT_FOUND
    # Starlette lists them in a changing order.
    allowed = ", ".join(sorted((error.headers or {}).get("Allow", "GET").split(", ")))
    headers = COMMON | {"allow": allowed}
    return PlainTextResponse(f"only {allowed}\n", error.status_code, headers)


async def _answer_without_database(_request: Request, error: Exception) -> Response:
    logger.warning("the database does not answer: %s", first_line(error), extra=logs.SELDOM)
    return UNAVAILABLE


def bound_threads() -> None:
    """Let this server have as many threads as pooled connections: more would open one each."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = POOL_SIZE


def make_app(runtime: Runtime) -> Starlette:
    """Return the ASGI application of a project.

    It turns off uvicorn's own access log, which would hold tokens, however it is started. Raises
    InvalidInput for a secret that is missing.
    """
    runtime[Composition].require_secrets(runtime, "web")
    logs.setup(runtime.settings.log_format, runtime.settings.log_level)
    sentry.start(runtime.settings)
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    routes = [*make_routes(runtime), *runtime[Composition].routes(runtime)]

    @asynccontextmanager
    async def bounded(_app: Starlette) -> AsyncIterator[None]:
        bound_threads()
        yield
        runtime.disconnect()

    handlers: dict[Any, Any] = {
        404: _refuse,
        405: _refuse,
        SQLAlchemyError: _answer_without_database,
        Exception: _fail,
    }
    app = Starlette(
        routes=routes,
        middleware=[Middleware(AccessLog, routes=routes), Middleware(Strictness)],
        exception_handlers=handlers,
        lifespan=bounded,
    )
    app.router.redirect_slashes = False
    return app


def require_free_port(setting: str, host: str, port: int) -> None:
    """Raise InvalidInput, which names the setting, when this process cannot listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "another program listens there; name another port" if taken else str(error)
        raise InvalidInput(f"{setting}: {host}:{port}: {why}") from error


def read_bind(bind: str) -> tuple[str, int]:
    """Return the host and the port of ADDRESS:PORT."""
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


def run_server(app: Starlette, host: str, port: int) -> None:
    """Serve an application until SIGTERM. Nothing that it is asked for is logged here."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )


def serve(runtime: Runtime) -> None:
    """Serve at WEB_BIND until SIGTERM. Raises InvalidInput when that address cannot be used."""
    host, port = read_bind(runtime.settings.web_bind)
    require_free_port("WEB_BIND", host, port)
    run_server(make_app(runtime), host, port)
