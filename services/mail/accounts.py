"""Mails about a user's own account: the welcome, and keys, which prove that somebody reads mail at an address.

A key is made while its mail is composed. It stands in that mail's body, which is sensitive, and nowhere else: the database holds its
hash. A user has one key for a purpose, the newest.
"""

import hashlib
import secrets
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from services.calendars.models import Feed, FeedKind
from services.database import Session, insert_or
from services.errors import NotFound
from services.jobs import Discard, Outcome
from services.mail import outbox
from services.mail.compose import MailRules, compose
from services.mail.kinds import KINDS
from services.mail.models import Mail
from services.school.models import KeyPurpose, User, UserKey

KEY_BYTES = 32

# Where the mails' links lead, below PUBLIC_URL.
PATHS = {KeyPurpose.VERIFY_ADDRESS: "/u/verify", KeyPurpose.RESET_PASSWORD: "/u/reset"}


def send_welcome(session: Session, user_id: int, rules: MailRules, *, request_id: UUID, now: datetime) -> Outcome:
    """Queue a welcome with the address of the user's calendar. One request makes one mail."""
    user = _awaiting(session, user_id, "welcome", request_id)
    if not isinstance(user, User):
        return user
    theirs = (Feed.kind == FeedKind.USER, Feed.owner_id == user_id, Feed.revoked_at.is_(None))
    token = session.scalar(select(Feed.token).where(*theirs))
    if token is None:
        return Discard("the user has no calendar, or its address was revoked")
    return _queue(session, "welcome", user, rules, request_id, calendar_url=rules.calendar_url(token), now=now)


def send_key(session: Session, user_id: int, purpose: KeyPurpose, rules: MailRules, *, request_id: UUID, now: datetime) -> Outcome:
    """Issue a key and queue the mail with its link. One request makes one key and one mail."""
    user = _awaiting(session, user_id, purpose, request_id)
    if not isinstance(user, User):
        return user
    key, expires_at = issue(session, user, purpose, now=now)
    url = f"{rules.public_url}{PATHS[purpose]}?key={key}"
    return _queue(session, purpose, user, rules, request_id, key_url=url, expires_at=expires_at, now=now)


def _awaiting(session: Session, user_id: int, kind: str, request_id: UUID) -> User | Discard | dict[str, int]:
    """Return the user, or how the job ends without a mail: its user is gone, or it has queued one before."""
    queued = session.scalar(select(Mail.id).where(Mail.dedupe_key == f"{kind}:{request_id}"))
    if queued is not None:
        return {"mail_id": queued}
    return session.get(User, user_id) or Discard("the user is gone")


def _queue(
    session: Session, kind: str, user: User, rules: MailRules, request_id: UUID, *, now: datetime, **context: Any
) -> dict[str, int]:
    name, how = f"{user.first_name} {user.last_name}", KINDS[kind]
    assert how.lasts is not None
    message = outbox.Message(
        kind=kind,
        dedupe_key=f"{kind}:{request_id}",
        recipient=user.email,
        name=name,
        content=compose(kind, user.locale, rules, name=name, **context),
        expires_at=now + how.lasts,
        resend=how.resend,
        sensitive=how.sensitive,
        # Somebody waits for a key.
        priority=1 if kind in PATHS else 5,
    )
    return {"mail_id": outbox.queue(session, message, now=now)}


def issue(session: Session, user: User, purpose: KeyPurpose, *, now: datetime) -> tuple[str, datetime]:
    """Return a new key for a user's present address and until when it can be redeemed; an older one for the purpose is void."""
    lasts = KINDS[purpose].lasts
    assert lasts is not None
    key = secrets.token_urlsafe(KEY_BYTES)
    row = {"hash": _hash(key), "address": user.email, "expires_at": now + lasts, "redeemed_at": None}
    put = insert_or(session, UserKey).values(user_id=user.id, purpose=purpose, **row)
    session.execute(put.on_conflict_do_update(index_elements=[UserKey.user_id, UserKey.purpose], set_=row))
    return key, now + lasts


def redeem(session: Session, key: str, purpose: KeyPurpose, *, now: datetime) -> int:
    """Use up a key and return whose it is. One that verifies an address marks it as verified.

    Raises:
        NotFound: It is unknown, used up, expired, replaced by a newer one, or was sent to an address that the user has no more;
            which of these, nobody is told.
    """
    # One statement: of two who come at the same time, one finds it used. It compares hashes, and how long that takes says nothing of
    # a key, because nobody can choose how a hash begins.
    address = select(User.email).where(User.id == UserKey.user_id).scalar_subquery()
    good = (UserKey.hash == _hash(key), UserKey.purpose == purpose, UserKey.redeemed_at.is_(None), UserKey.expires_at > now)
    using = update(UserKey).where(*good, UserKey.address == address).values(redeemed_at=now)
    user_id = session.scalar(using.returning(UserKey.user_id).execution_options(synchronize_session=False))
    if user_id is None:
        raise NotFound("this key does not work, or does not any more: ask for a new one")
    if purpose is KeyPurpose.VERIFY_ADDRESS:
        session.execute(update(User).where(User.id == user_id).values(email_verified_at=now))
    return user_id


def _hash(key: str) -> bytes:
    # A fast hash will do: 256 random bits cannot be tried out.
    return hashlib.sha256(key.encode(errors="replace")).digest()
