"""Those whom mail about events goes to, and a mail for one of them."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from email.policy import Policy
from typing import Any, NamedTuple

from sqlalchemy import and_, select

from services.calendars.models import Feed, FeedKind
from services.database import Session
from services.mail import unsubscribe
from services.mail.compose import MailRules, compose
from services.mail.kinds import KINDS
from services.mail.outbox import Message
from services.school.models import Locale, User

# A mail takes some milliseconds to compose; a job makes so many.
READERS_A_CHUNK = 200


class Recipient(NamedTuple):
    """A user as far as mail needs one. `wants` are the flags that are set; `token` is the secret address of the user's calendar."""

    id: int
    address: str
    name: str
    locale: Locale
    wants: frozenset[str]
    token: str | None


class Unfolded(str):
    """A List-Unsubscribe header on one line: to fold it, `email` would write a long address as encoded words, which no program follows."""

    __slots__ = ()
    name = "List-Unsubscribe"

    def fold(self, *, policy: Policy) -> str:
        """Write the header, as `email` asks for it."""
        return f"{self.name}: {self}{policy.linesep}"


def chunks(user_ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Cut readers into as many as one job writes to."""
    return (tuple(user_ids[at : at + READERS_A_CHUNK]) for at in range(0, len(user_ids), READERS_A_CHUNK))


def recipients(session: Session, user_ids: Collection[int]) -> list[Recipient]:
    """Return those of these users that there are, by id."""
    theirs = and_(Feed.kind == FeedKind.USER, Feed.owner_id == User.id, Feed.revoked_at.is_(None))
    rows = session.execute(select(User, Feed.token).outerjoin(Feed, theirs).where(User.id.in_(user_ids)).order_by(User.id))
    return [
        Recipient(
            user.id,
            user.email,
            f"{user.first_name} {user.last_name}",
            user.locale,
            frozenset(flag for flag in unsubscribe.FLAGS if getattr(user, flag)),
            token,
        )
        for user, token in rows
    ]


def letter(
    kind: str, to: Recipient, rules: MailRules, *, about: str, now: datetime, expires_at: datetime | None = None, **context: Any
) -> Message | None:
    """Return one mail, or None for who does not want this kind. `about` says what it is of, so that there is only one of it to each."""
    how = KINDS[kind]
    url = None
    if how.wanted_by is not None:
        if how.wanted_by not in to.wants:
            return None
        url = unsubscribe.link(rules, to.id, how.wanted_by, now=now)
    calendar_url = None if to.token is None else rules.calendar_url(to.token)
    content = compose(kind, to.locale, rules, calendar_url=calendar_url, unsubscribe_url=url, **context)
    if url is not None:
        content["List-Unsubscribe"] = Unfolded(f"<{url}>")
        content["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    if expires_at is None:
        assert how.lasts is not None
        expires_at = now + how.lasts
    return Message(
        kind=kind,
        dedupe_key=f"{kind}:{about}:{to.id}",
        recipient=to.address,
        name=to.name,
        content=content,
        expires_at=expires_at,
        resend=how.resend,
        sensitive=how.sensitive,
    )
