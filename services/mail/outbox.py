"""The outbox for all callers but the delivery: queue messages, change them, and count them."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from email_validator import EmailNotValidError, validate_email
from nightshift.database import Session, ago, batched, insert_or, plain, utc_now
from nightshift.errors import Conflict, InvalidInput
from nightshift.jobs import enqueue
from nightshift.jobs.args import JobArgs
from nightshift.jobs.run import UnitOfWork, repeat
from sqlalchemy import (
    ColumnElement,
    Update,
    and_,
    case,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)

from services.mail.headers import SEVEN_BITS, SEVEN_BITS_UTF8, make_header_text
from services.mail.jobs import DeliverMail
from services.mail.models import ENDED, Mail, MailBounce, MailServer, MailState, Suppression

# Messages that are queued within this time are sent by one job.
DEBOUNCE = timedelta(seconds=1)

# Suppress an address after this many refusals that say that it does not exist.
SUPPRESSED_AFTER = 3

BATCH = 500

CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# What some programs fail to unquote, controls, and what reorders the text around it.
UNWANTED_IN_NAMES = re.compile(r'[@:,;"<>()\[\]\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]')

WAITING = (MailState.QUEUED, MailState.HELD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What to send to one person.

    `content` carries From, Subject, the body, and other headers if there are any; the outbox sets
    To, Date, Message-ID and Auto-Submitted. `dedupe_key` says what the message is (kind, recipient,
    object, version); of messages with one key only the first is queued. The message is not sent
    after `expires_at`. `resend`: send it again when it is unknown whether it was sent; otherwise a
    person decides. The body of a `sensitive` message is never shown, and is erased as soon as it is
    not needed. `held`: it waits until a person releases it. `about`, `reader_id` and `version` say
    what the message tells whom: see `find_about`.
    """

    kind: str
    dedupe_key: str
    recipient: str
    name: str = ""
    content: EmailMessage
    expires_at: datetime
    resend: bool = True
    sensitive: bool = False
    priority: int = 5
    held: bool = False
    about: str | None = None
    reader_id: int | None = None
    version: int | None = None


class Claimed(NamedTuple):
    """A message that is about to be sent."""

    id: int
    kind: str
    dedupe_key: str
    recipient: str
    about: str | None
    reader_id: int | None
    version: int | None
    attempt: int
    body: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a message must not be sent now.

    The message is cancelled; with `wait` it is queued again and due after that time. `job` is
    enqueued in the same transaction: it queues what is to be sent instead.
    """

    reason: str
    wait: timedelta | None = None
    job: JobArgs | None = None


# Look once more, right before it is sent, whether a message is still true and still wanted.
Check = Callable[[Session, Claimed], Halt | None]


@dataclass(frozen=True, slots=True)
class MailCheck:
    """What another component checks of messages of some kinds before they are sent.

    Where a component provides one, each delivery calls `begin` for a check of its own.
    """

    kinds: frozenset[str]
    begin: Callable[[], Check]


class Told(NamedTuple):
    """A message about an object to a reader, without its text."""

    id: int
    reader_id: int
    kind: str
    dedupe_key: str
    recipient: str
    version: int
    state: MailState
    repeats: int

    @property
    def waits(self) -> bool:
        """Return whether the message can still be withdrawn."""
        return self.state in WAITING

    @property
    def may_have_arrived(self) -> bool:
        """Return whether a server may have taken the message, although none said so."""
        return self.state == MailState.UNKNOWN or (
            self.state not in (MailState.SENT, MailState.SENDING) and self.repeats > 0
        )


def queue(session: Session, message: Message, *, now: datetime) -> int:
    """Put one message into the outbox and return its id. See `queue_many`."""
    return queue_many(session, [message], now=now)[0]


def queue_many(session: Session, messages: Sequence[Message], *, now: datetime) -> list[int]:
    """Put messages into the outbox, in the caller's transaction, and return their ids.

    For a message whose key is in the outbox already, the id is that of the message there. A message
    with a malformed address becomes `failed`, one with a suppressed address `suppressed`; the
    others are not affected.

    Raises InvalidInput for a content without From or Subject, or with a control character in a
    header.
    """
    if not messages:
        return []
    # Sorted, so that two callers with the same keys do not wait for each other.
    rows = sorted(
        (_make_row(message, now) for message in messages), key=lambda row: str(row["dedupe_key"])
    )
    suppressed = _find_suppressed(session, [row["recipient"].lower() for row in rows])
    for row in rows:
        if row["recipient"].lower() in suppressed and row["state"] in WAITING:
            row |= {
                "state": MailState.SUPPRESSED,
                "reply": "the address is suppressed",
                "ended_at": now,
                "body": None,
            }
    session.execute(
        insert_or(session, Mail).on_conflict_do_nothing(index_elements=[Mail.dedupe_key]), rows
    )
    ids: dict[str, int] = {}
    for some in batched([row["dedupe_key"] for row in rows], BATCH):
        query = select(Mail.dedupe_key, Mail.id).where(Mail.dedupe_key.in_(some))
        ids |= dict(session.execute(query).all())
    enqueue_delivery(session, now=now)
    return [ids[message.dedupe_key] for message in messages]


def enqueue_delivery(session: Session, *, now: datetime) -> None:
    """Enqueue the job that sends what is due, unless it is enqueued already."""
    # Debouncing locks the job's row until the caller commits. A lane that is just ending waits for
    # that, and then sees the caller's messages.
    enqueue(session, DeliverMail(lane=0), now=now, debounce=DEBOUNCE)


def _make_row(message: Message, now: datetime) -> dict[str, Any]:
    content = message.content
    if content["From"] is None or content["Subject"] is None:
        raise InvalidInput(f"mail {message.kind}: the content needs From and Subject")
    _refuse_controls(message)
    row: dict[str, Any] = {
        "kind": message.kind,
        "dedupe_key": message.dedupe_key,
        "message_id": f"<{uuid4().hex}@{content['From'].addresses[0].domain}>",
        "recipient": message.recipient[:320],
        "subject": str(content["Subject"]),
        "body": None,
        "sensitive": message.sensitive,
        "resend": message.resend,
        "about": message.about,
        "reader_id": message.reader_id,
        "version": message.version,
        "state": MailState.HELD if message.held else MailState.QUEUED,
        "priority": message.priority,
        "attempt": 0,
        "repeats": 0,
        "reply": None,
        "created_at": now,
        "due_at": now,
        "expires_at": message.expires_at,
        "ended_at": None,
    }
    try:
        # Whether the domain exists is not checked: the server answers that, and a transaction
        # should not wait for a lookup.
        address = validate_email(message.recipient, check_deliverability=False)
    except EmailNotValidError as error:
        return row | {
            "state": MailState.FAILED,
            "reply": f"malformed address: {error}",
            "ended_at": now,
        }
    # A domain has an ASCII form. The part before the @ has none, and needs a server that takes it
    # as it is (SMTPUTF8).
    domain = address.ascii_domain
    name = make_header_text(UNWANTED_IN_NAMES.sub(" ", message.name))
    for header, value in (
        ("To", Address(name, address.local_part, domain)),
        ("Date", now),
        ("Message-ID", row["message_id"]),
        ("Auto-Submitted", "auto-generated"),
    ):
        del content[header]
        content[header] = value
    policy = SEVEN_BITS if address.local_part.isascii() else SEVEN_BITS_UTF8
    return row | {
        "recipient": f"{address.local_part}@{domain}",
        "body": content.as_bytes(policy=policy),
    }


def _refuse_controls(message: Message) -> None:
    """Raise InvalidInput for a header that would be sent as two, or that terminals obey.

    `EmailMessage` refuses a line break as it is written. One that it decodes it may send.
    """
    for part in message.content.walk():
        for name, value in part.items():
            if found := CONTROLS.search(f"{name}{value}"):
                what = "a line break" if found[0] in "\r\n" else f"U+{ord(found[0]):04X}"
                raise InvalidInput(f"mail {message.kind}: the header {name!r} holds {what}")


def _find_suppressed(session: Session, addresses: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for some in batched(addresses, BATCH):
        listed = select(Suppression.address).where(
            Suppression.address.in_(some), Suppression.suppressed_at.is_not(None)
        )
        found.update(session.execute(listed).scalars())
    return found


# --- Changes by a person or a later event ---


def retry(session: Session, mail_id: int, *, now: datetime) -> None:
    """Queue a failed or unknown message again, with all its attempts.

    An unknown message may then arrive twice, and counts as a repeat. Raises Conflict for a message
    in another state or past its deadline, or whose body was erased or address is suppressed.
    """
    mail = _lock(session, mail_id)
    if mail.state not in (MailState.FAILED, MailState.UNKNOWN):
        raise Conflict(
            f"mail {mail_id} is {mail.state}: only failed and unknown mail can be retried"
        )
    if mail.expires_at <= now:
        raise Conflict(
            f"mail {mail_id} is past its deadline, {mail.expires_at:%Y-%m-%d %H:%M} UTC:"
            " request a new one"
        )
    if mail.body is None:
        raise Conflict(f"the body of mail {mail_id} was erased: request a new one")
    if _find_suppressed(session, [mail.recipient.lower()]):
        raise Conflict(
            f"the address of mail {mail_id} is suppressed: run `mail suppress --remove` first"
        )
    mail.repeats += mail.state == MailState.UNKNOWN
    mail.state, mail.attempt, mail.due_at = MailState.QUEUED, 0, now
    mail.ended_at = mail.claim_id = None
    enqueue_delivery(session, now=now)


def hold(session: Session, mail_id: int) -> None:
    """Hold a queued message until it is released. Raises Conflict when it is not queued."""
    _move(session, mail_id, MailState.QUEUED, MailState.HELD)


def release(session: Session, mail_id: int, *, now: datetime) -> None:
    """Queue a held message again. Raises Conflict when it is not held."""
    _move(session, mail_id, MailState.HELD, MailState.QUEUED)
    enqueue_delivery(session, now=now)


def find_about(
    session: Session, about: str, reader_ids: Collection[int] | None = None
) -> dict[int, list[Told]]:
    """Return the messages about an object by reader (only these readers), oldest first.

    They say what each reader was told: the newest that was sent, and those that
    `may_have_arrived`. Such a message is kept until its deadline.
    """
    columns = (getattr(Mail, name) for name in Told._fields)
    # Compared with `is not null` too, so that SQLite uses the index.
    found = select(*columns).where(Mail.about == about, Mail.about.is_not(None))
    told: dict[int, list[Told]] = defaultdict(list)
    for some in [None] if reader_ids is None else batched(sorted(reader_ids), BATCH):
        which = found if some is None else found.where(Mail.reader_id.in_(some))
        for row in session.execute(which.order_by(Mail.id)):
            told[row.reader_id].append(Told(*row))
    return told


def withdraw(
    session: Session, mail_ids: Collection[int], *, reason: str, now: datetime
) -> set[int]:
    """Cancel those of these messages that wait, and return their ids.

    One that is being sent is not cancelled.
    """
    withdrawn: set[int] = set()
    for some in batched(sorted(mail_ids), BATCH):
        ending = _ending(Mail.id.in_(some), state=MailState.CANCELLED, reply=reason, at=now)
        ending = ending.returning(Mail.id).execution_options(synchronize_session=False)
        withdrawn.update(session.execute(ending).scalars())
    return withdrawn


def confirm(session: Session, mail_ids: Collection[int], version: int) -> None:
    """Record that messages which wait also say what is so in this version."""
    for some in batched(sorted(mail_ids), BATCH):
        _execute(session, update(Mail).where(Mail.id.in_(some)).values(version=version))


def suppress(session: Session, address: str, *, now: datetime, reason: str = "by hand") -> None:
    """Suppress an address, and end what is queued for it as suppressed."""
    address = normalise(address)
    session.execute(
        insert_or(session, Suppression)
        .values(address=address, refusals=0, suppressed_at=now)
        .on_conflict_do_update(index_elements=[Suppression.address], set_={"suppressed_at": now})
    )
    _end(
        session,
        func.lower(Mail.recipient) == address,
        state=MailState.SUPPRESSED,
        reply=f"the address is suppressed: {reason}",
        at=now,
    )


def suppress_queued(session: Session, mail_ids: Sequence[int]) -> int:
    """End those of these messages that wait for a suppressed address, and return how many.

    An address may be suppressed while a message to it is being sent.
    """
    listed = exists().where(
        Suppression.address == func.lower(Mail.recipient), Suppression.suppressed_at.is_not(None)
    )
    return _end(
        session,
        Mail.id.in_(mail_ids),
        listed,
        state=MailState.SUPPRESSED,
        reply="the address is suppressed",
        at=utc_now(),
    )


def record_refusal(session: Session, address: str, *, now: datetime) -> None:
    """Record that a server says that an address does not exist; suppress it at the third time."""
    counted = (
        insert_or(session, Suppression)
        .values(address=address.lower(), refusals=1, refused_at=now)
        .on_conflict_do_update(
            index_elements=[Suppression.address],
            set_={"refusals": Suppression.refusals + 1, "refused_at": now},
        )
    )
    if session.execute(counted.returning(Suppression.refusals)).scalar_one() >= SUPPRESSED_AFTER:
        suppress(session, address, now=now, reason=f"refused {SUPPRESSED_AFTER} times")


def unsuppress(session: Session, address: str) -> bool:
    """Remove an address from the suppression list, and return whether it was there."""
    statement = delete(Suppression).where(Suppression.address == normalise(address))
    return _execute(session, statement) > 0


def normalise(address: str) -> str:
    """Return an address, as a person writes it, in the form that messages have, in lower case."""
    try:
        valid = validate_email(address.strip(), check_deliverability=False)
    except EmailNotValidError:
        return address.strip().lower()
    return f"{valid.local_part}@{valid.ascii_domain}".lower()


def fail_expired(session: Session) -> int:
    """Fail up to BATCH messages that are past their deadline and not sent; return how many.

    The oldest come first.
    """
    expired = select(Mail.id).where(
        Mail.expires_at <= utc_now(), Mail.state.in_(WAITING), Mail.ended_at.is_(None)
    )
    return _end(
        session,
        Mail.id.in_(expired.order_by(Mail.expires_at).limit(BATCH)),
        state=MailState.FAILED,
        reply="its deadline passed",
        at=utc_now(),
    )


def prune(unit_of_work: UnitOfWork, *, keep_sent: timedelta, keep_others: timedelta) -> int:
    """Delete messages that ended longer ago than they are kept, and return how many.

    Old counts of refusals are deleted too, and old reports that answer none of our messages.
    """
    old = select(Suppression.address).where(
        Suppression.suppressed_at.is_(None), Suppression.refused_at < ago(keep_others)
    )
    # A sensitive message cannot be sent again after its deadline, so its body is not needed.
    over = select(Mail.id).where(
        Mail.state == MailState.UNKNOWN,
        Mail.sensitive,
        Mail.body.is_not(None),
        Mail.expires_at <= utc_now(),
    )
    too_old = or_(
        and_(Mail.state == MailState.SENT, Mail.ended_at < ago(keep_sent)),
        and_(Mail.state.in_(ENDED), Mail.state != MailState.SENT, Mail.ended_at < ago(keep_others)),
    )
    # Until its deadline, a later message about the same is compared with it. Its text is not
    # needed for that.
    compared = and_(Mail.about.is_not(None), Mail.expires_at > utc_now())
    textless = select(Mail.id).where(too_old, compared, Mail.body.is_not(None))
    unanswered = select(MailBounce.id).where(
        MailBounce.mail_id.is_(None), MailBounce.received_at < ago(keep_others)
    )
    for statement in (
        delete(MailBounce).where(MailBounce.id.in_(unanswered.limit(BATCH))),
        delete(Suppression).where(Suppression.address.in_(old.limit(BATCH))),
        update(Mail).where(Mail.id.in_(over.limit(BATCH))).values(body=None),
        update(Mail).where(Mail.id.in_(textless.limit(BATCH))).values(body=None),
    ):
        repeat(unit_of_work, partial(_execute, statement=statement))
    some = select(Mail.id).where(too_old, ~compared).limit(BATCH)
    return repeat(unit_of_work, partial(_execute, statement=delete(Mail).where(Mail.id.in_(some))))


def _lock(session: Session, mail_id: int) -> Mail:
    mail = session.execute(
        select(Mail).where(Mail.id == mail_id).with_for_update()
    ).scalar_one_or_none()
    if mail is None:
        raise Conflict(f"there is no mail {mail_id}")
    return mail


def _move(session: Session, mail_id: int, expected: MailState, state: MailState) -> None:
    mail = _lock(session, mail_id)
    if mail.state != expected:
        raise Conflict(f"mail {mail_id} is {mail.state}, not {expected}")
    mail.state = state


def _end(
    session: Session, *which: ColumnElement[bool], state: MailState, reply: str, at: Any
) -> int:
    return _execute(session, _ending(*which, state=state, reply=reply, at=at))


def _ending(*which: ColumnElement[bool], state: MailState, reply: str, at: Any) -> Update:
    body = case((Mail.sensitive, null()), else_=Mail.body)
    return (
        update(Mail)
        .where(*which, Mail.state.in_(WAITING), Mail.ended_at.is_(None))
        .values(state=state, reply=reply, ended_at=at, body=body)
    )


def _execute(session: Session, statement: Any) -> int:
    unsynchronised = statement.execution_options(synchronize_session=False)
    return int(session.execute(unsynchronised).rowcount)  # type: ignore[attr-defined]


# --- For people, probes and metrics ---


def find_mails(
    session: Session,
    *,
    state: MailState | None = None,
    kind: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Mail]:
    """Return messages, newest first; with `before` only those with a smaller id."""
    wanted = [
        column == value
        for column, value in ((Mail.state, state), (Mail.kind, kind))
        if value is not None
    ]
    if before is not None:
        wanted.append(Mail.id < before)
    return list(
        session.execute(select(Mail).where(*wanted).order_by(Mail.id.desc()).limit(limit)).scalars()
    )


def count_mails(session: Session) -> dict[tuple[str, str], int]:
    """Return how many messages there are by (kind, state)."""
    state = plain(Mail.state)
    rows = session.execute(select(Mail.kind, state, func.count()).group_by(Mail.kind, state))
    return {(kind, name): number for kind, name, number in rows}


def count_repeats(session: Session) -> int:
    """Return how often messages were sent again that may have been sent before."""
    return int(session.execute(select(func.coalesce(func.sum(Mail.repeats), 0))).scalar_one())


def find_oldest_due(session: Session) -> datetime | None:
    """Return when the message became due that has been due for the longest time."""
    return session.execute(
        select(func.min(Mail.due_at)).where(
            Mail.state == MailState.QUEUED, Mail.due_at <= utc_now()
        )
    ).scalar()


def count_undecided(session: Session) -> int:
    """Return how many messages wait for a person to decide whether they are sent again."""
    return session.execute(
        select(func.count()).where(Mail.state == MailState.UNKNOWN, Mail.expires_at > utc_now())
    ).scalar_one()


def find_failing_servers(session: Session) -> list[MailServer]:
    """Return the servers that do not take mail now."""
    return list(session.execute(select(MailServer).where(MailServer.failures > 0)).scalars())
