"""Links that turn a kind of mail off by one click (RFC 8058).

They are signed and work for a year. A link can do only this.
"""

from datetime import datetime, timedelta
from typing import Annotated

from itsdangerous import BadData, URLSafeSerializer
from nightshift.database import Session
from nightshift.errors import InvalidInput
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import func, update

from services.letters.kinds import LETTERS
from services.letters.rules import LetterRules
from services.mail.models import Mail
from services.school.models import User
from services.translation import Locale

FLAGS = ("mail_events", "mail_reviews", "mail_digest")

LASTS = timedelta(days=365)

PATH = "/u/unsubscribe"

# What a link says. Another release, or another program with the secret, may have signed more.
PAYLOAD = TypeAdapter(
    tuple[
        Annotated[int, Field(ge=1, lt=2**63)],
        Annotated[int, Field(ge=0, lt=len(FLAGS))],
        Annotated[int, Field(lt=2**63)],
    ]
)


def make_link(rules: LetterRules, user_id: int, flag: str, *, now: datetime) -> str:
    """Return the address at which a user turns a flag off."""
    # Short, because it stands in a header. Without the timestamp of itsdangerous, which reads the
    # clock.
    payload = [user_id, FLAGS.index(flag), int((now + LASTS).timestamp())]
    return f"{rules.public_url}{PATH}?t={_make_serializer(rules.link_secret).dumps(payload)}"


def read_link(session: Session, token: str, *, secret: str, now: datetime) -> tuple[User, str]:
    """Return the user and the flag that a link is about.

    Raises InvalidInput for a link that is forged or expired, or whose user is gone.
    """
    try:
        user_id, flag, expires = PAYLOAD.validate_python(_make_serializer(secret).loads(token))
    except (BadData, ValidationError):
        user_id, flag, expires = 0, 0, 0
    user = session.get(User, user_id) if expires > now.timestamp() else None
    if user is None:
        raise InvalidInput(
            "this link does not work, or does not any more: take the one in a newer mail"
        )
    return user, FLAGS[flag]


def unsubscribe(session: Session, token: str, *, secret: str, now: datetime) -> Locale:
    """Turn off the flag that a link is about, and return its user's language.

    A second call changes nothing. Raises InvalidInput for a link that does not work.
    """
    user, flag = read_link(session, token, secret=secret, now=now)
    session.execute(update(User).where(User.id == user.id).values({flag: False}))
    return user.locale


def turn_off_after_complaint(session: Session, mail: Mail) -> None:
    """Turn off what a letter is sent for, after its reader called it spam.

    For a letter that cannot be turned off, nothing changes.
    """
    kind = LETTERS.get(mail.kind)
    if kind is not None and kind.wanted_by is not None:
        is_reader = (
            func.lower(User.email) == mail.recipient.lower()
            if mail.reader_id is None
            else User.id == mail.reader_id
        )
        session.execute(update(User).where(is_reader).values({kind.wanted_by: False}))


def _make_serializer(secret: str) -> URLSafeSerializer:
    if not secret:
        raise InvalidInput("links cannot be signed without a secret: set LINK_SECRET")
    return URLSafeSerializer(secret, salt="unsubscribe")
