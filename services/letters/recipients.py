"""The recipients of letters about events, and a letter to one of them."""

from collections.abc import Collection, Sequence
from datetime import datetime
from email.policy import Policy
from typing import Any, NamedTuple, Self

from nightshift.database import Session
from sqlalchemy import and_, select

from services.calendars.models import Feed, FeedKind
from services.letters import unsubscribe
from services.letters.kinds import LETTERS
from services.letters.rules import LetterRules
from services.mail.compose import compose
from services.mail.models import MailState
from services.mail.outbox import Message, Told
from services.school.models import User
from services.translation import Locale

# A letter takes some milliseconds to compose; a job makes this many.
READERS_PER_JOB = 200


class Recipient(NamedTuple):
    """What a letter needs of a user.

    `wants` are the flags that are set; `token` is the secret part of the user's calendar address.
    """

    id: int
    address: str
    name: str
    locale: Locale
    wants: frozenset[str]
    token: str | None


class Unfolded(str):
    """A header's value on one line.

    `email` would fold a long address or id into encoded words, which mail programs do not follow.
    """

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, value: str) -> Self:
        """Return the value of the header with this name."""
        made = super().__new__(cls, value)
        made.name = name
        return made

    def fold(self, *, policy: Policy) -> str:
        """Return the header's line; `email` calls this."""
        return f"{self.name}: {self}{policy.linesep}"


def find_recipients(session: Session, user_ids: Collection[int]) -> list[Recipient]:
    """Return those of these users that exist, ordered by id."""
    theirs = and_(Feed.kind == FeedKind.USER, Feed.owner_id == User.id, Feed.revoked_at.is_(None))
    rows = session.execute(
        select(User, Feed.token)
        .outerjoin(Feed, theirs)
        .where(User.id.in_(user_ids))
        .order_by(User.id)
    )
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


def make_letter(
    kind: str,
    to: Recipient,
    rules: LetterRules,
    *,
    key: str,
    about: str,
    now: datetime,
    version: int = 0,
    mails: Sequence[Told] = (),
    held: bool = False,
    expires_at: datetime | None = None,
    **context: Any,
) -> Message | None:
    """Return one letter, or None for a reader who does not want this kind.

    Each reader gets one letter of a kind with a key, unless all earlier ones among `mails` (those
    about the same thing to this reader) were withdrawn. `about` and `version` are the outbox's.
    """
    how = LETTERS[kind]
    url = None
    if how.wanted_by is not None:
        if how.wanted_by not in to.wants:
            return None
        url = unsubscribe.make_link(rules, to.id, how.wanted_by, now=now)
    calendar_url = None if to.token is None else rules.calendar_url(to.token)
    content = compose(
        kind, to.locale, rules.frame, calendar_url=calendar_url, unsubscribe_url=url, **context
    )
    domain = content["From"].addresses[0].domain
    headers: dict[str, str] = {}
    if url is not None:
        assert how.wanted_by is not None
        headers["List-Unsubscribe"] = f"<{url}>"
        headers["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        headers["List-Id"] = f"<{how.wanted_by.replace('_', '-')}.{domain}>"  # RFC 2919
    if how.threaded:
        # No message has this id: all about one thing answer it, so mail programs group them.
        headers["References"] = headers["In-Reply-To"] = f"<{about.replace(':', '.')}@{domain}>"
    for name, value in headers.items():
        content[name] = Unfolded(name, value)
    if expires_at is None:
        assert how.lasts is not None
        expires_at = now + how.lasts
    base = f"{kind}:{key}:{to.id}"
    earlier = [mail for mail in mails if f"{mail.dedupe_key}:".startswith(f"{base}:")]
    again = all(mail.state == MailState.CANCELLED for mail in earlier)
    return Message(
        kind=kind,
        dedupe_key=f"{base}:{len(earlier)}" if earlier and again else base,
        about=about,
        reader_id=to.id,
        version=version,
        held=held,
        recipient=to.address,
        name=to.name,
        content=content,
        expires_at=expires_at,
        resend=how.resend,
        sensitive=how.sensitive,
    )
