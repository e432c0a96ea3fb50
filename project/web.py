"""The feed server: `python -m project.web`. docs/serving.md says what it answers, and why.

A feed's token is part of its path: no path is written anywhere, neither by us nor by what we stand on.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import anyio.to_thread
import uvicorn
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from project import logs, pages
from project.bootstrap import POOL_SIZE, bootstrap
from project.metrics import exposition
from project.settings import Settings
from services.calendars import serving
from services.calendars.jobs import SyncCalendars
from services.jobs import schedule

logger = logging.getLogger("project.web")

# A request has one line and a few headers; more is refused before it is kept.
LARGEST_HEAD = 16_384
MOST_CONNECTIONS = 500
KEEP_ALIVE, GRACE = 15, 10

# HTTP's dates count seconds: what was written a moment ago may be written again in the same one.
YOUNG = timedelta(seconds=2)

# `no-cache` keeps a copy but asks each time whether it is still good; that costs a 304.
COMMON = {"cache-control": "private, no-cache", "x-robots-tag": "noindex", "x-content-type-options": "nosniff"}

# The same bytes whatever was asked for, so that they tell nothing.
NOT_FOUND = PlainTextResponse("not found\n", 404, COMMON)
# Subscribers keep what they have; an empty calendar would empty theirs.
UNAVAILABLE = PlainTextResponse("try again later\n", 503, COMMON | {"retry-after": "60"})


def feed(request: Request) -> Response:
    """Serve a calendar to whoever has its address."""
    # Not by the route: its pattern would let a line feed pass at the end.
    token, dot, suffix = request.path_params["name"].partition(".")
    if (dot, suffix) != (".", "ics") or not serving.TOKEN.fullmatch(token):
        return NOT_FOUND
    boot = bootstrap()
    with boot.read_only() as session:
        found = serving.find(session, token)
    if found is None:
        return NOT_FOUND
    now = boot.now()
    served = serving.served(boot.feed_store, found, now=now)
    if served is None:
        logger.warning("feed %s/%s has no whole file: the next sync makes one", found.kind, found.owner_id)
        return UNAVAILABLE
    validators = {"etag": f'"{served.etag}"', "last-modified": format_datetime(served.modified_at, usegmt=True)}
    if _has(request, served, now):
        return Response(status_code=304, headers=COMMON | validators)
    headers = COMMON | validators | {"content-disposition": 'inline; filename="calendar.ics"'}
    return Response(served.content, headers=headers, media_type="text/calendar")


def _has(request: Request, served: serving.Served, now: datetime) -> bool:
    """Say whether the client has these bytes already (RFC 9110, section 13)."""
    tags = request.headers.getlist("if-none-match")
    if tags:
        given = ", ".join(tags)
        return given.strip() == "*" or served.etag in re.findall(r'(?:W/)?"([^"]*)"', given)
    since = request.headers.getlist("if-modified-since")
    if len(since) != 1 or not served.recorded or now - served.modified_at < YOUNG:
        return False
    try:
        at = parsedate_to_datetime(since[0])
    except (ValueError, OverflowError):
        return False
    return served.modified_at <= (at if at.tzinfo else at.replace(tzinfo=UTC))


async def health(_request: Request) -> Response:
    """Say that the process lives; also without a database."""
    return PlainTextResponse("ok\n", headers=COMMON)


def ready(_request: Request) -> Response:
    """Say whether subscribers get good calendars: the database answers, the store can be read, the last good sync is not too old."""
    boot = bootstrap()
    age: timedelta | None = None
    try:
        with boot.read_only() as session:
            synced_at = schedule.last_success(session, SyncCalendars.policy.kind)
    except SQLAlchemyError:
        database, sync = "unreachable", "unknown"
    else:
        age = None if synced_at is None else boot.now() - synced_at
        # A run may be missed, and may take its time.
        late = age is None or age > 2 * boot.settings.sync_every + timedelta(hours=1)
        database, sync = "ok", "late" if late else "ok"
    store = "ok" if os.access(boot.feed_store.root, os.R_OK | os.X_OK) else "unreadable"
    good = (database, store, sync) == ("ok", "ok", "ok")
    seconds = None if age is None else round(age.total_seconds())
    said = {"ready": good, "database": database, "store": store, "sync": sync, "last_good_sync_seconds": seconds}
    return JSONResponse(said, 200 if good else 503, COMMON)


def metrics(request: Request) -> Response:
    """Give the ledger's metrics to whoever has METRICS_TOKEN. Without one, or with a wrong one, there is no such page."""
    boot = bootstrap()
    wanted = boot.settings.metrics_token.get_secret_value()
    given = request.headers.get("authorization", "")
    if not wanted or not secrets.compare_digest(given.encode(), f"Bearer {wanted}".encode()):
        return NOT_FOUND
    return Response(exposition(boot), headers=COMMON | {"content-type": CONTENT_TYPE_PLAIN_0_0_4})


ROUTES = [Route("/f/{name}", feed), Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
OPEN_PATHS = {route.path for route in ROUTES[1:]} | pages.PATHS


class AccessLog:
    """Writes a line for each answer: method, page, status, bytes and milliseconds. A path that may hold a secret is not written."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and count."""
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
            page = scope["path"] if scope["path"] in OPEN_PATHS else "/f/…" if scope["path"].startswith("/f/") else "/…"
            milliseconds = (time.perf_counter() - began) * 1000
            logger.info("%s %s %d %d bytes %.0f ms", scope["method"][:8], page, status, size, milliseconds)


@asynccontextmanager
async def _bounded(_app: Starlette) -> AsyncIterator[None]:
    # More threads than pooled connections would open and close a connection for each request.
    anyio.to_thread.current_default_thread_limiter().total_tokens = POOL_SIZE
    yield
    bootstrap().disconnect()


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NOT_FOUND
    # Starlette lists them in no order.
    allowed = ", ".join(sorted((error.headers or {}).get("Allow", "GET").split(", ")))
    return PlainTextResponse(f"only {allowed}\n", error.status_code, COMMON | {"allow": allowed})


async def _without_database(_request: Request, error: Exception) -> Response:
    # The first line: the statement is in the next.
    logger.warning("the database does not answer: %s", str(error).partition("\n")[0])
    return UNAVAILABLE


def make_app() -> Starlette:
    """Return the application. However it is started, uvicorn's own access log, which would hold tokens, is off."""
    settings = bootstrap().settings
    logs.setup(settings.log_format, settings.log_level)
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    handlers: dict[Any, Any] = {404: _refuse, 405: _refuse, SQLAlchemyError: _without_database}
    app = Starlette(
        routes=[*ROUTES, *pages.make_routes(bootstrap())],
        middleware=[Middleware(AccessLog)],
        exception_handlers=handlers,
        lifespan=_bounded,
    )
    app.router.redirect_slashes = False
    return app


def main() -> None:
    """Serve at WEB_BIND until SIGTERM."""
    host, _, port = Settings().web_bind.rpartition(":")
    uvicorn.run(
        "project.web:make_app",
        factory=True,
        host=host.strip("[]"),
        port=int(port),
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


if __name__ == "__main__":
    main()
