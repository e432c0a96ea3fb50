"""Mails about a user's account: the welcome, and keys.

A key proves that its user reads mail at an address. It is made while its mail is composed, and
stands only in that mail's body, which is sensitive; the database holds its hash. Of a user's keys
for one purpose only the newest works.
"""

import hashlib
import secrets
from datetime import datetime
from typing import Any
from uuid import UUID

from nightshift.database import Session, upsert
from nightshift.errors import NotFound
from nightshift.jobs import Discard, Outcome
from sqlalchemy import select, update

from services.calendars.models import Feed, FeedKind
from services.letters.kinds import LETTERS
from services.letters.rules import LetterRules
from services.mail import outbox
from services.mail.compose import compose
from services.mail.models import Mail
from services.school.models import KeyPurpose, User, UserKey

KEY_BYTES = 32

# The paths of the mails' links, below PUBLIC_URL.
PATHS = {KeyPurpose.VERIFY_ADDRESS: "/u/verify", KeyPurpose.RESET_PASSWORD: "/u/reset"}


def queue_welcome(
    session: Session, user_id: int, rules: LetterRules, *, request_id: UUID, now: datetime
) -> Outcome:
    """Queue a welcome with the address of the user's calendar; for one request, one mail."""
    user = _find_recipient(session, user_id, "welcome", request_id)
    if not isinstance(user, User):
        return user
    theirs = (Feed.kind == FeedKind.USER, Feed.owner_id == user_id, Feed.revoked_at.is_(None))
    token = session.scalar(select(Feed.token).where(*theirs))
    if token is None:
        return Discard("the user has no calendar, or its address was revoked")
    return _queue(
        session,
        "welcome",
        user,
        rules,
        request_id,
        calendar_url=rules.calendar_url(token),
        page_url=rules.page_url(token),
        webcal_url=rules.webcal_url(token),
        now=now,
    )


def queue_key(
    session: Session,
    user_id: int,
    purpose: KeyPurpose,
    rules: LetterRules,
    *,
    request_id: UUID,
    now: datetime,
) -> Outcome:
    """Issue a key and queue the mail with its link; for one request, one key and one mail."""
    user = _find_recipient(session, user_id, purpose, request_id)
    if not isinstance(user, User):
        return user
    key, expires_at = issue(session, user, purpose, now=now)
    url = f"{rules.public_url}{PATHS[purpose]}?key={key}"
    return _queue(
        session, purpose, user, rules, request_id, key_url=url, expires_at=expires_at, now=now
    )


def _find_recipient(
    session: Session, user_id: int, kind: str, request_id: UUID
) -> User | Discard | dict[str, int]:
    """Return the user, or the job's outcome if it queues no mail.

    That is so if the user is gone or an earlier run has queued the mail.
    """
    queued = session.scalar(select(Mail.id).where(Mail.dedupe_key == f"{kind}:{request_id}"))
    if queued is not None:
        return {"mail_id": queued}
    return session.get(User, user_id) or Discard("the user is gone")


def _queue(
    session: Session,
    kind: str,
    user: User,
    rules: LetterRules,
    request_id: UUID,
    *,
    now: datetime,
    **context: Any,
) -> dict[str, int]:
    name, how = f"{user.first_name} {user.last_name}", LETTERS[kind]
    assert how.lasts is not None
    # Of the keys for one purpose only the newest works, and one welcome is enough.
    earlier = outbox.find_about(session, kind, [user.id]).get(user.id, [])
    waiting = [mail.id for mail in earlier if mail.waits]
    outbox.withdraw(session, waiting, reason="overtaken: its reader is sent a newer one", now=now)
    message = outbox.Message(
        kind=kind,
        about=kind,
        reader_id=user.id,
        version=0,
        dedupe_key=f"{kind}:{request_id}",
        recipient=user.email,
        name=name,
        content=compose(kind, user.locale, rules.frame, name=name, **context),
        expires_at=now + how.lasts,
        resend=how.resend,
        sensitive=how.sensitive,
        # A person is waiting for a key.
        priority=1 if kind in PATHS else 5,
    )
    return {"mail_id": outbox.queue(session, message, now=now)}


def issue(
    session: Session, user: User, purpose: KeyPurpose, *, now: datetime
) -> tuple[str, datetime]:
    """Write a new key for a user's present address, and return the key and its expiry.

    An older key for the same purpose does not work any more.
    """
    lasts = LETTERS[purpose].lasts
    assert lasts is not None
    key = secrets.token_urlsafe(KEY_BYTES)
    row = {
        "user_id": user.id,
        "purpose": purpose,
        "hash": _hash(key),
        "address": user.email,
        "expires_at": now + lasts,
        "redeemed_at": None,
    }
    upsert(session, UserKey, [row])
    return key, now + lasts


def redeem(session: Session, key: str, purpose: KeyPurpose, *, now: datetime) -> int:
    """Use up a key and return its user's id. A key that verifies an address marks it as verified.

    Raises:
        NotFound: The key is unknown, used up, expired, replaced by a newer one, or was sent to an
            address that the user does not have any more. The error does not say which.
    """
    # One statement: if two redeem a key at the same time, one finds it used. It compares hashes.
    # The time that takes says nothing about a key, because a caller cannot choose how a hash
    # begins.
    address = select(User.email).where(User.id == UserKey.user_id).scalar_subquery()
    good = (
        UserKey.hash == _hash(key),
        UserKey.purpose == purpose,
        UserKey.redeemed_at.is_(None),
        UserKey.expires_at > now,
    )
    using = update(UserKey).where(*good, UserKey.address == address).values(redeemed_at=now)
    user_id = session.scalar(
        using.returning(UserKey.user_id).execution_options(synchronize_session=False)
    )
    if user_id is None:
        raise NotFound("this key does not work, or does not any more: ask for a new one")
    if purpose is KeyPurpose.VERIFY_ADDRESS:
        session.execute(update(User).where(User.id == user_id).values(email_verified_at=now))
    return user_id


def _hash(key: str) -> bytes:
    # A fast hash is enough: 256 random bits cannot be guessed.
    return hashlib.sha256(key.encode(errors="replace")).digest()
