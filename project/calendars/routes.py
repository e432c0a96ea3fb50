"""The feeds' addresses: `/f/<token>.ics`, and the page `/f/<token>` for people.

docs/serving.md says what they answer, and why.

A feed's token is part of its path, which is written nowhere.
"""

import logging
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

from nightshift.celery import logs
from nightshift.runtime import Runtime
from nightshift.web.server import COMMON, NOT_FOUND, UNAVAILABLE
from sqlalchemy import Row
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from project.calendars import pages, subscribing
from services.calendars import serving
from services.calendars.store import FeedStore, StoreAway

logger = logging.getLogger(__name__)

# HTTP's dates count seconds: what was written a moment ago may be written again in the same one.
YOUNG = timedelta(seconds=2)


def make_routes(runtime: Runtime) -> list[Route]:
    """Return the feeds' route and, in development, those of the pages."""

    def feed(request: Request) -> Response:
        """Serve a calendar, or the page about it, to a request that has its address."""
        # Not by the route: its pattern would let a line feed pass at the end.
        token, dot, suffix = request.path_params["name"].partition(".")
        if (dot, suffix) not in ((".", "ics"), ("", "")) or not serving.TOKEN.fullmatch(token):
            return NOT_FOUND
        with runtime.read_only() as session:
            found = serving.find(session, token)
        if found is None:
            return NOT_FOUND
        try:
            if not suffix:
                content = serving.read_whole(runtime[FeedStore], found)
                return subscribing.answer(request, runtime, token, content)
            return _answer(request, runtime[FeedStore], found, runtime.now())
        except StoreAway as error:
            logger.warning("no calendar can be served: %s", error, extra=logs.SELDOM)
            return UNAVAILABLE

    return [Route("/f/{name}", feed), *pages.make_routes(runtime)]


def _answer(request: Request, store: FeedStore, found: Row[Any], now: datetime) -> Response:
    recorded = serving.find_recorded(found, now=now)
    # Nothing is read for a client that has what the last build wrote.
    if recorded and _has(request, recorded, now) and serving.is_recorded(store, found):
        return Response(status_code=304, headers=_make_headers(recorded))
    served = recorded and serving.read_served(store, found, recorded)
    if served is None:
        what = "feed %s/%s has no whole file: the next sync makes one"
        logger.warning(what, found.kind, found.owner_id)
        return UNAVAILABLE
    content, validators = served
    headers = _make_headers(validators)
    if _has(request, validators, now):
        return Response(status_code=304, headers=headers)
    headers |= {"content-disposition": 'inline; filename="calendar.ics"'}
    return Response(content, headers=headers, media_type="text/calendar")


def _make_headers(validators: serving.Validators) -> dict[str, str]:
    headers = COMMON | {"etag": f'"{validators.etag}"'}
    if validators.modified_at is None:
        return headers
    return headers | {"last-modified": format_datetime(validators.modified_at, usegmt=True)}


def _has(request: Request, known: serving.Validators, now: datetime) -> bool:
    """Return whether the client has these bytes already (RFC 9110, section 13)."""
    tags = request.headers.getlist("if-none-match")
    if tags:
        given = ", ".join(tags)
        return given.strip() == "*" or known.etag in re.findall(r'(?:W/)?"([^"]*)"', given)
    since = request.headers.getlist("if-modified-since")
    if len(since) != 1 or known.modified_at is None or now - known.modified_at < YOUNG:
        return False
    try:
        at = parsedate_to_datetime(since[0])
    except (ValueError, OverflowError):
        return False
    return known.modified_at <= (at if at.tzinfo else at.replace(tzinfo=UTC))
