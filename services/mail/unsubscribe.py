"""Links that turn a kind of mail off, by one click (RFC 8058): signed, and good for a year. Whoever has one can do only that with it."""

from datetime import datetime, timedelta

from itsdangerous import BadData, URLSafeSerializer
from sqlalchemy import update

from services.database import Session
from services.errors import InvalidInput
from services.mail.compose import MailRules
from services.school.models import Locale, User

FLAGS = ("mail_events", "mail_reviews", "mail_digest")

LASTS = timedelta(days=365)

PATH = "/u/unsubscribe"


def link(rules: MailRules, user_id: int, flag: str, *, now: datetime) -> str:
    """Return the address at which a user turns a flag off."""
    # Short, because it stands in a header. Not itsdangerous' own timestamp: that asks the clock.
    payload = [user_id, FLAGS.index(flag), int((now + LASTS).timestamp())]
    return f"{rules.public_url}{PATH}?t={_signed(rules.link_secret).dumps(payload)}"


def read(session: Session, token: str, *, secret: str, now: datetime) -> tuple[User, str]:
    """Return whose flag a link is about, and which. Raises InvalidInput for one that is forged, expired, or whose user is gone."""
    try:
        user_id, flag, expires = _signed(secret).loads(token)
    except BadData:
        user_id, flag, expires = 0, 0, 0
    user = session.get(User, user_id) if expires > now.timestamp() else None
    if user is None:
        raise InvalidInput("this link does not work, or does not any more: take the one in a newer mail")
    return user, FLAGS[flag]


def unsubscribe(session: Session, token: str, *, secret: str, now: datetime) -> Locale:
    """Turn off what a link is about, and return its user's language; a second time changes nothing. Raises InvalidInput as `read`."""
    user, flag = read(session, token, secret=secret, now=now)
    session.execute(update(User).where(User.id == user.id).values({flag: False}))
    return user.locale


def _signed(secret: str) -> URLSafeSerializer:
    if not secret:
        raise InvalidInput("links cannot be signed: set LINK_SECRET")
    return URLSafeSerializer(secret, salt="unsubscribe")
