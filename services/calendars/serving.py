"""The secret addresses of feeds, and the files behind them.

A token is the only right that a subscriber needs: with it, any client may read the feed.
"""

import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from nightshift.database import Session, plain
from nightshift.errors import Conflict, NotFound
from sqlalchemy import Row, bindparam, case, literal, select, union_all, update

from services.calendars.feeds import TOKEN_BYTES, make_etag
from services.calendars.ics import CALENDAR_FOOT
from services.calendars.models import Feed, FeedKind
from services.calendars.store import FeedStore
from services.school.models import Department, SchoolClass, User

# Only what looks like this is looked up in the database.
TOKEN = re.compile(r"[A-Za-z0-9_-]{22,64}")

OWNERS = {
    FeedKind.USER: User.email,
    FeedKind.CLASS: SchoolClass.name,
    FeedKind.DEPARTMENT: Department.name,
}

# Built once: each request executes it, and building it takes longer than executing it.
_FIND = select(plain(Feed.kind), Feed.owner_id, Feed.etag, Feed.stamp, Feed.modified_at).where(
    Feed.token == bindparam("token"), Feed.revoked_at.is_(None)
)


class Validators(NamedTuple):
    """What a client remembers of a feed's bytes, to ask whether it has the current ones.

    `modified_at` is None for bytes that the last build did not record: their date tells nothing.
    """

    etag: str
    modified_at: datetime | None


def find(session: Session, token: str) -> Row[Any] | None:
    """Return the feed behind an address, or None: there is none, or it was revoked.

    Each token costs one look into a unique index. The index compares from the first letter on, so
    its time depends on the token by nanoseconds. A client cannot measure these behind a network's
    milliseconds, so it cannot guess a token letter by letter.
    """
    return session.connection().execute(_FIND, {"token": token}).one_or_none()


def find_recorded(feed: Row[Any], *, now: datetime) -> Validators | None:
    """Return what the last build recorded of a feed, or None when there was none."""
    if feed.modified_at is None:
        return None
    return Validators(feed.etag, min(feed.modified_at, now).replace(microsecond=0))


def is_recorded(store: FeedStore, feed: Row[Any]) -> bool:
    """Return whether a feed's file is the recorded one, without reading it."""
    owner = (feed.kind, feed.owner_id)
    return store.find_stamps([owner]) == {owner: feed.stamp}


def read_served(
    store: FeedStore, feed: Row[Any], recorded: Validators
) -> tuple[bytes, Validators] | None:
    """Return a feed's bytes with their validators; None when they are missing or not whole.

    The file is replaced before its row is written, and people restore files. So the tag is made of
    the bytes.
    """
    content = read_whole(store, feed)
    if content is None:
        return None
    etag = make_etag(content)
    return content, recorded if etag == recorded.etag else Validators(etag, None)


def read_whole(store: FeedStore, feed: Row[Any]) -> bytes | None:
    """Return a feed's bytes, or None when they are missing or not whole.

    After a power cut a file may be short. Subscribers would take the missing events for deleted.
    """
    content = store.read(feed.kind, feed.owner_id)
    return content if content is not None and content.endswith(CALENDAR_FOOT) else None


def find_token(session: Session, kind: FeedKind, owner: str) -> str:
    """Return the token of a feed, by its owner's email or name.

    Raises NotFound, and Conflict for a feed that was revoked.
    """
    feed = _find_owned(session, kind, owner)
    if feed.revoked_at is not None:
        raise Conflict(
            f"the feed of {kind} {owner} was revoked; `feeds rotate` gives it a new address"
        )
    return str(feed.token)


def rotate(session: Session, kind: FeedKind, owner: str) -> str:
    """Give a feed a new token and return it.

    The old token ends with the commit. A revoked feed has an address again; the refresh that
    follows writes its file.
    """
    token = secrets.token_urlsafe(TOKEN_BYTES)
    feed = _find_owned(session, kind, owner)
    session.execute(update(Feed).where(Feed.id == feed.id).values(token=token, revoked_at=None))
    return token


def rotate_feed(session: Session, feed_id: int) -> tuple[FeedKind, int]:
    """Give a feed a new token, as `rotate` does, and return its kind and its owner's id."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return _change(session, feed_id, token=token, revoked_at=None)


def revoke_feed(session: Session, feed_id: int, *, now: datetime) -> tuple[FeedKind, int]:
    """Take a feed's address away, as `revoke` does, and return its kind and its owner's id."""
    return _change(session, feed_id, revoked_at=now)


def _change(session: Session, feed_id: int, **values: Any) -> tuple[FeedKind, int]:
    changed = update(Feed).where(Feed.id == feed_id).values(values)
    row = session.execute(changed.returning(Feed.kind, Feed.owner_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no feed {feed_id}")
    return FeedKind(row.kind), row.owner_id


def revoke(session: Session, kind: FeedKind, owner: str, *, now: datetime) -> int:
    """Take a feed's address away until it is rotated, and return the owner's id.

    The row stays, so no sync adds another. With the commit the address is dead, and no build writes
    the file. Then the caller removes it; where that fails, the next sync does.
    """
    feed = _find_owned(session, kind, owner)
    session.execute(update(Feed).where(Feed.id == feed.id).values(revoked_at=now))
    return int(feed.owner_id)


def _find_owned(
    session: Session, kind: FeedKind, owner: str
) -> Row[int, int, str, datetime | None]:
    name = OWNERS[kind]
    ids = session.execute(select(name.class_.id).where(name == owner)).scalars().all()
    if not ids:
        raise NotFound(
            f"there is no {kind} {owner!r}; `feeds list --kind {kind}` shows those with a feed"
        )
    query = select(Feed.id, Feed.owner_id, Feed.token, Feed.revoked_at).where(
        Feed.kind == kind, Feed.owner_id == ids[0]
    )
    feed = session.execute(query).one_or_none()
    if feed is None:
        raise NotFound(
            f"{kind} {owner} has no feed; `feeds sync` makes those of all who are entitled to one"
        )
    return feed


def list_calendars(
    session: Session, *, kind: FeedKind | None = None, owner_id: int | None = None
) -> Sequence[Row[Any]]:
    """Return the calendars with their owners' names and addresses, by kind and name.

    A calendar that was revoked has no token.
    """
    owners = union_all(
        *(
            select(literal(of.value).label("kind"), name.class_.id.label("id"), name.label("name"))
            for of, name in OWNERS.items()
        )
    ).subquery()
    wanted = [
        column == value
        for column, value in ((Feed.kind, kind), (Feed.owner_id, owner_id))
        if value is not None
    ]
    token = case((Feed.revoked_at.is_(None), Feed.token)).label("token")
    query = (
        select(Feed.kind, Feed.owner_id, owners.c.name, Feed.event_count, token)
        .join(owners, (owners.c.kind == Feed.kind) & (owners.c.id == Feed.owner_id))
        .where(*wanted)
        .order_by(Feed.kind, owners.c.name)
    )
    return session.execute(query).all()
