"""The feeds at the desk: owner, events, build and error, with rotate and revoke.

No address of a feed is shown there: `celery -A project feeds url` prints one.
"""

import logging
from datetime import datetime
from pathlib import Path

from nightshift.database import Session
from nightshift.desk import Desk, Form, Number, Part, Tile
from nightshift.errors import InvalidInput, NotFound
from nightshift.runtime import Runtime
from starlette.requests import Request
from starlette.responses import Response

from project.calendars.settings import CalendarSettings
from project.front.pages import LARGEST_ID
from services.calendars import feeds, serving, sync
from services.calendars.models import FeedKind
from services.calendars.store import FeedStore, StoreAway, StoreUnavailable

logger = logging.getLogger(__name__)

PAGE = 50


def make_part(desk: Desk) -> Part:
    """Return the feeds' page."""
    runtime = desk.runtime

    def show(request: Request) -> Response:
        given = request.query_params
        kind, only = given.get("kind") or None, given.get("only") or None
        if kind is not None and kind not in list(FeedKind):
            raise InvalidInput(f"kind: {kind!r} is not one of {', '.join(FeedKind)}")
        if only not in (None, "failed", "revoked"):
            raise InvalidInput(f"only: {only!r} is neither failed nor revoked")
        after = given.get("after", "")
        with runtime.read_only() as session:
            rows = feeds.find_feeds(
                session,
                kind=None if kind is None else FeedKind(kind),
                only=only,
                after=int(after) if after.isdecimal() and int(after) <= LARGEST_ID else 0,
                limit=PAGE + 1,
            )
        return desk.page(
            request,
            "feeds/desk.html",
            rows=[
                {
                    "id": row.id,
                    "kind": row.kind,
                    "owner": row.owner or f"{row.kind} {row.owner_id}",
                    "events": row.event_count,
                    "left_out": row.left_out,
                    "built_at": row.built_at,
                    "revoked_at": row.revoked_at,
                    "error": desk.mask.text(row.error or ""),
                }
                for row in rows[:PAGE]
            ],
            kind=kind,
            only=only,
            kinds=list(FeedKind),
            after=rows[PAGE - 1].id if len(rows) > PAGE else None,
            first=not after,
        )

    def act(request: Request, form: Form) -> str:
        feed_id, verb = request.path_params["feed_id"], request.path_params["verb"]
        if feed_id > LARGEST_ID:
            raise NotFound(f"there is no feed {feed_id}")
        if verb not in ("rotate", "revoke"):
            raise InvalidInput(f"a feed cannot be {verb!r}")
        with runtime.unit_of_work() as session:
            if verb == "rotate":
                kind, owner_id = serving.rotate_feed(session, feed_id)
            else:
                kind, owner_id = serving.revoke_feed(session, feed_id, now=runtime.now())
            desk.record(session, request, verb, f"feed {feed_id} of {kind} {owner_id}")
        if verb == "rotate":
            return (
                f"Feed {feed_id} has a new address, and the old one is dead;"
                f" `celery -A project feeds url {kind} …` prints it."
            )
        return f"Feed {feed_id} has no address any more. {_remove(runtime, kind, owner_id)}"

    def make_tile(session: Session) -> Tile:
        return count_tile(runtime, session, now=runtime.now())

    return Part(
        name="feeds",
        title="Feeds",
        pages={"/": show},
        acts={"/{feed_id:int}/{verb}": act},
        tile=make_tile,
        templates=Path(__file__).parent / "templates",
    )


def _remove(runtime: Runtime, kind: FeedKind, owner_id: int) -> str:
    """Remove a feed's file, and return a sentence where it stays."""
    try:
        runtime[FeedStore].remove(kind, owner_id)
    except (StoreAway, StoreUnavailable, InvalidInput) as error:
        logger.warning("the file of a revoked feed stays until the next sync: %s", error)
        return "Its file stays until the next sync."
    return ""


def count_tile(runtime: Runtime, session: Session, *, now: datetime) -> Tile:
    """Return how many feeds are fresh, late and failed.

    Late are those that were not built yet and, where no sync was good for too long, all others.
    """
    total, failed, unbuilt = feeds.count_health(session)
    late_sync = runtime[CalendarSettings].is_late(sync.find_last_good(session), now=now)
    late = total - failed if late_sync else unbuilt
    return Tile(
        "Feeds",
        "/feeds",
        [
            Number("fresh", total - failed - late, "good"),
            Number("late", late, "warn" if late else ""),
            Number("failed", failed, "bad" if failed else "", "/feeds?only=failed"),
        ],
    )
