"""The desk's application, and how it is served: by uvicorn, as the web server is."""

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightshift.celery import logs, sentry
from nightshift.component import Composition
from nightshift.desk import history, jobs, overview, recurring
from nightshift.desk.guard import HEADERS, SESSION_SECONDS, Guard
from nightshift.desk.logins import Logins, read_users
from nightshift.desk.site import Desk
from nightshift.runtime import Runtime
from nightshift.settings import PLACEHOLDER, is_near
from nightshift.web.server import (
    FAILED,
    AccessLog,
    Strictness,
    bound_threads,
    read_bind,
    require_free_port,
    run_server,
)

OWN = (overview.make_part, jobs.make_part, recurring.make_part, history.make_part)


class Headers:
    """Adds the desk's headers to every answer that has none of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add headers to its answer."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, marked)


async def _fail(_request: Any, _error: Exception) -> Any:
    return FAILED


def make_app(runtime: Runtime) -> Starlette:
    """Return the ASGI application. Raises InvalidInput when it would be open, or lacks a secret."""
    settings = runtime.settings
    host, _ = read_bind(settings.desk_bind)
    if settings.environment == "production":
        runtime[Composition].require_secrets(runtime, "desk")
    users = read_users(settings, near=is_near(host) and host != "")
    logs.setup(settings.log_format, settings.log_level)
    sentry.start(settings)
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    runtime[Composition].table_branches()  # imports the models, so that relations find each other
    routes = Guard(Desk(runtime, OWN), Logins(users)).make_routes()
    secret = settings.desk_secret.get_secret_value()
    over_tls = settings.desk_url.startswith("https://")

    @asynccontextmanager
    async def bounded(_app: Starlette) -> AsyncIterator[None]:
        bound_threads()
        yield
        runtime.disconnect()

    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(AccessLog, routes=routes),
            Middleware(Headers),
            Middleware(Strictness),
            Middleware(
                SessionMiddleware,
                # A stand-in that everybody knows would let everybody sign: another one each time.
                secret_key=secrets.token_urlsafe(32) if secret in ("", PLACEHOLDER) else secret,
                session_cookie="__Host-desk" if over_tls else "desk",
                max_age=SESSION_SECONDS,
                same_site="strict",
                https_only=over_tls,
            ),
        ],
        exception_handlers={Exception: _fail},
        lifespan=bounded,
    )
    app.router.redirect_slashes = False
    return app


def serve(runtime: Runtime) -> None:
    """Serve at DESK_BIND until SIGTERM. Raises InvalidInput when that address cannot be used."""
    app = make_app(runtime)
    host, port = read_bind(runtime.settings.desk_bind)
    require_free_port("DESK_BIND", host, port)
    run_server(app, host, port)
