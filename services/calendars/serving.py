"""The secret addresses of feeds, and what stands behind one. A token is the whole of a subscriber's right: whoever has it may read."""

import re
import secrets
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, select, update

from services.calendars.feeds import TOKEN_BYTES, etag
from services.calendars.ics import CALENDAR_FOOT
from services.calendars.models import Feed, FeedKind
from services.calendars.store import FeedStore, Stamp
from services.database import Session, plain
from services.errors import Conflict, NotFound
from services.school.models import Department, SchoolClass, User

# What the database is asked for: anything else is no token, whoever made it.
TOKEN = re.compile(r"[A-Za-z0-9_-]{22,64}")

OWNERS = {FeedKind.USER: User.email, FeedKind.CLASS: SchoolClass.name, FeedKind.DEPARTMENT: Department.name}

# Made once: it is asked at each request, and making it takes longer than asking.
_FIND = select(plain(Feed.kind), Feed.owner_id, Feed.etag, Feed.size, Feed.mtime_ns, Feed.modified_at).where(
    Feed.token == bindparam("token"), Feed.revoked_at.is_(None)
)


class Served(NamedTuple):
    """A feed's file as it is served. `recorded`: it is the file that the last build wrote, so `modified_at` is its own."""

    content: bytes
    etag: str
    modified_at: datetime
    recorded: bool


def find(session: Session, token: str) -> Row[Any] | None:
    """Return the feed behind an address, or None when there is none, or it was revoked.

    One look into a unique index, whether the token is right, wrong or revoked. The index compares beginnings, but its nanoseconds cannot
    be told from here, and 192 random bits are not found a letter at a time among a network's milliseconds.
    """
    return session.connection().execute(_FIND, {"token": token}).one_or_none()


def served(store: FeedStore, feed: Row[Any], *, now: datetime) -> Served | None:
    """Return a feed's file with its validators, or None when there is nothing good to serve: not built yet, missing, or not whole.

    The file is replaced before its row is written, and people restore files: only of the recorded one is the recorded tag true.
    """
    # A file without a build was left by a feed of another database.
    found = None if feed.modified_at is None else store.read_stamped(feed.kind, feed.owner_id)
    if found is None:
        return None
    content, stamp = found
    # After a power cut a file may be short: subscribers would take what is missing for deleted.
    if not content.endswith(CALENDAR_FOOT):
        return None
    recorded = stamp == Stamp(feed.size, feed.mtime_ns)
    modified_at = min(max(feed.modified_at, stamp.modified_at), now)
    return Served(content, feed.etag if recorded else etag(content), modified_at.replace(microsecond=0), recorded)


def token_of(session: Session, kind: FeedKind, owner: str) -> str:
    """Return the token of a feed by its owner's email or name. Raises NotFound, and Conflict when it was revoked."""
    _, token, revoked_at = _owned(session, kind, owner)
    if revoked_at is not None:
        raise Conflict(f"the feed of {kind} {owner} was revoked; `feeds rotate` gives it a new address")
    return token


def rotate(session: Session, kind: FeedKind, owner: str) -> str:
    """Give a feed a new token and return it; the old one is worth nothing from the commit on. Also ends a revocation."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    session.execute(update(Feed).where(Feed.id == _owned(session, kind, owner).id).values(token=token, revoked_at=None))
    return token


def revoke(session: Session, kind: FeedKind, owner: str, *, now: datetime) -> None:
    """Take a feed's address away until it is rotated. Its row stays, so that no sync gives it another."""
    session.execute(update(Feed).where(Feed.id == _owned(session, kind, owner).id).values(revoked_at=now))


def _owned(session: Session, kind: FeedKind, owner: str) -> Row[int, str, datetime | None]:
    name = OWNERS[kind]
    ids = session.execute(select(name.class_.id).where(name == owner)).scalars().all()
    if not ids:
        raise NotFound(f"there is no {kind} {owner!r}; `feeds list --kind {kind}` shows those with a feed")
    query = select(Feed.id, Feed.token, Feed.revoked_at).where(Feed.kind == kind, Feed.owner_id == ids[0])
    feed = session.execute(query).one_or_none()
    if feed is None:
        raise NotFound(f"{kind} {owner} has no feed; `feeds sync` makes those of all who are entitled to one")
    return feed
