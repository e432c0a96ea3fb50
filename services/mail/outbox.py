"""The outbox as everybody but the delivery sees it: queueing, what a person may do to messages, and what there is to see."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from typing import Any
from uuid import uuid4

from email_validator import EmailNotValidError, validate_email
from sqlalchemy import ColumnElement, and_, case, delete, exists, func, null, or_, select, update

from services.database import Session, ago, insert_or, plain, utc_now
from services.errors import Conflict, InvalidInput
from services.jobs import enqueue
from services.jobs.run import UnitOfWork
from services.mail.headers import literal
from services.mail.jobs import DeliverMail
from services.mail.models import ENDED, Mail, MailServer, MailState, Suppression

# Many messages queued within it make one run.
DEBOUNCE = timedelta(seconds=1)

# So many servers' word that an address does not exist is taken for it.
SUPPRESSED_AFTER = 3

BATCH = 500

WAITING = (MailState.QUEUED, MailState.HELD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What to send to one person.

    `content` carries From, Subject, the body, and other headers if there are any; the outbox sets To, Date, Message-ID and
    Auto-Submitted. `dedupe_key` says what the message is (kind, recipient, object, version): there is only one of it. It is not sent
    after `expires_at`. With `resend` it is sent again when nobody knows whether it was sent; without, a person decides. The body of a
    `sensitive` one is shown to nobody, and erased as soon as it is not needed.
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


def queue(session: Session, message: Message, *, now: datetime) -> int:
    """Put one message into the outbox, in the caller's transaction, and return its id. See `queue_many`."""
    return queue_many(session, [message], now=now)[0]


def queue_many(session: Session, messages: Sequence[Message], *, now: datetime) -> list[int]:
    """Put messages into the outbox, in the caller's transaction, and return their ids; one whose key is there already is that one.

    A malformed address makes that message `failed`, and a suppressed one `suppressed`: the others are none the worse. Line breaks in a
    header are refused by `content` itself.

    Raises InvalidInput for a content without From or Subject.
    """
    if not messages:
        return []
    # In one order, or two callers with the same keys could wait for each other.
    rows = sorted((_row(message, now) for message in messages), key=lambda row: str(row["dedupe_key"]))
    barred = _barred(session, [row["recipient"].lower() for row in rows])
    for row in rows:
        if row["recipient"].lower() in barred and row["state"] == MailState.QUEUED:
            row |= {"state": MailState.SUPPRESSED, "reply": "the address is suppressed", "ended_at": now, "body": None}
    session.execute(insert_or(session, Mail).on_conflict_do_nothing(index_elements=[Mail.dedupe_key]), rows)
    ids: dict[str, int] = {}
    for some in _batched([row["dedupe_key"] for row in rows]):
        ids |= {key: mail_id for key, mail_id in session.execute(select(Mail.dedupe_key, Mail.id).where(Mail.dedupe_key.in_(some)))}  # noqa: C416
    wake(session, now=now)
    return [ids[message.dedupe_key] for message in messages]


def wake(session: Session, *, now: datetime) -> None:
    """Have the queued messages looked at, soon."""
    # Debounced, because that holds the job's row until the caller commits: a lane that is just ending sees our messages then.
    enqueue(session, DeliverMail(lane=0), now=now, debounce=DEBOUNCE)


def _row(message: Message, now: datetime) -> dict[str, Any]:
    content = message.content
    if content["From"] is None or content["Subject"] is None:
        raise InvalidInput(f"mail {message.kind}: the content needs From and Subject")
    row: dict[str, Any] = {
        "kind": message.kind,
        "dedupe_key": message.dedupe_key,
        "message_id": f"<{uuid4().hex}@{content['From'].addresses[0].domain}>",
        "recipient": message.recipient[:320],
        "subject": str(content["Subject"]),
        "body": None,
        "sensitive": message.sensitive,
        "resend": message.resend,
        "state": MailState.QUEUED,
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
        # Not asked whether the domain exists: that is the server's to say, and no lookup belongs into a transaction.
        address = validate_email(message.recipient, check_deliverability=False)
    except EmailNotValidError as error:
        return row | {"state": MailState.FAILED, "reply": f"malformed address: {error}", "ended_at": now}
    # A domain has an ASCII form; what stands before the @ has none, and needs a server that takes it as it is (SMTPUTF8).
    domain = address.ascii_domain
    # What display names may not hold unquoted is what some programs fail to unquote.
    name = literal(re.sub(r'[@:,;"<>()\[\]\\\x00-\x1f\x7f]', " ", message.name))
    for header, value in (
        ("To", Address(name, address.local_part, domain)),
        ("Date", now),
        ("Message-ID", row["message_id"]),
        ("Auto-Submitted", "auto-generated"),
    ):
        del content[header]
        content[header] = value
    # Seven bits: nothing then depends on what the servers on the way can do.
    policy = (SMTP if address.local_part.isascii() else SMTPUTF8).clone(cte_type="7bit")
    return row | {"recipient": f"{address.local_part}@{domain}", "body": content.as_bytes(policy=policy)}


def _barred(session: Session, addresses: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for some in _batched(addresses):
        listed = select(Suppression.address).where(Suppression.address.in_(some), Suppression.suppressed_at.is_not(None))
        found.update(session.execute(listed).scalars())
    return found


def _batched(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[at : at + BATCH] for at in range(0, len(items), BATCH))


# --- What a person, or a later event, may do to them ---


def retry(session: Session, mail_id: int, *, now: datetime) -> None:
    """Send a message that failed once more, with all its attempts, or one of which nobody knows; the second counts as a repeat.

    Raises Conflict for one in another state, past its deadline, whose body was erased, or whose address is suppressed.
    """
    mail = _locked(session, mail_id)
    if mail.state not in (MailState.FAILED, MailState.UNKNOWN):
        raise Conflict(f"mail {mail_id} is {mail.state}: only failed and unknown ones are sent again")
    if mail.expires_at <= now:
        raise Conflict(f"mail {mail_id} is past its deadline, {mail.expires_at:%Y-%m-%d %H:%M} UTC: have it made anew")
    if mail.body is None:
        raise Conflict(f"mail {mail_id} has no body any more: have it made anew")
    if _barred(session, [mail.recipient.lower()]):
        raise Conflict(f"the address of mail {mail_id} is suppressed: `mail suppress --remove` first")
    mail.repeats += mail.state == MailState.UNKNOWN
    mail.state, mail.attempt, mail.due_at, mail.ended_at, mail.claim_id = MailState.QUEUED, 0, now, None, None
    wake(session, now=now)


def hold(session: Session, mail_id: int) -> None:
    """Keep a queued message from being sent until it is released. Raises Conflict when it is not queued."""
    _move(session, mail_id, MailState.QUEUED, MailState.HELD)


def release(session: Session, mail_id: int, *, now: datetime) -> None:
    """Let a held message be sent. Raises Conflict when it is not held."""
    _move(session, mail_id, MailState.HELD, MailState.QUEUED)
    wake(session, now=now)


def cancel(session: Session, dedupe_keys: Sequence[str], *, now: datetime) -> int:
    """Withdraw those of these messages that wait to be sent, and return how many."""
    return _end(session, Mail.dedupe_key.in_(dedupe_keys), state=MailState.CANCELLED, reply="withdrawn", at=now)


def suppress(session: Session, address: str, *, now: datetime, reason: str = "by hand") -> None:
    """Send nothing to an address any more; what is queued for it ends as suppressed."""
    address = _listed(address)
    put = insert_or(session, Suppression).values(address=address, refusals=0, suppressed_at=now)
    session.execute(put.on_conflict_do_update(index_elements=[Suppression.address], set_={"suppressed_at": now}))
    reply = f"the address is suppressed: {reason}"
    _end(session, func.lower(Mail.recipient) == address, state=MailState.SUPPRESSED, reply=reply, at=now)


def bar(session: Session, mail_ids: Sequence[int]) -> int:
    """End those of these messages that wait and whose addresses are suppressed, and return how many: that may happen during a try."""
    listed = exists().where(Suppression.address == func.lower(Mail.recipient), Suppression.suppressed_at.is_not(None))
    return _end(session, Mail.id.in_(mail_ids), listed, state=MailState.SUPPRESSED, reply="the address is suppressed", at=utc_now())


def refused(session: Session, address: str, *, now: datetime) -> None:
    """Count a server's word that an address does not exist, and suppress it after the third."""
    row = {"address": address.lower(), "refusals": 1, "refused_at": now}
    put = insert_or(session, Suppression).values(row)
    counted = put.on_conflict_do_update(
        index_elements=[Suppression.address], set_={"refusals": Suppression.refusals + 1, "refused_at": now}
    )
    if session.execute(counted.returning(Suppression.refusals)).scalar_one() >= SUPPRESSED_AFTER:
        suppress(session, address, now=now, reason=f"refused {SUPPRESSED_AFTER} times")


def unsuppress(session: Session, address: str) -> bool:
    """Take an address off the suppression list, and say whether it was on it."""
    return bool(_rows(session, delete(Suppression).where(Suppression.address == _listed(address))))


def _listed(address: str) -> str:
    """Return an address as a person writes it in the form that messages have."""
    try:
        valid = validate_email(address.strip(), check_deliverability=False)
    except EmailNotValidError:
        return address.strip().lower()
    return f"{valid.local_part}@{valid.ascii_domain}".lower()


def expire(session: Session) -> int:
    """End what was not sent by its deadline, and return how many."""
    return _end(session, Mail.expires_at <= utc_now(), state=MailState.FAILED, reply="its deadline passed", at=utc_now())


def prune(unit_of_work: UnitOfWork, *, keep_sent: timedelta, keep_others: timedelta) -> int:
    """Delete messages that ended longer ago than they are kept, and return how many; old counts of refusals go too."""
    pruned = 0
    with unit_of_work() as session:
        old = and_(Suppression.suppressed_at.is_(None), Suppression.refused_at < ago(keep_others))
        _rows(session, delete(Suppression).where(old))
        # Past its deadline nobody can send a sensitive one again, so what it says need not be kept.
        over = and_(Mail.state == MailState.UNKNOWN, Mail.sensitive, Mail.body.is_not(None), Mail.expires_at <= utc_now())
        _rows(session, update(Mail).where(over).values(body=None))
    while True:
        with unit_of_work() as session:
            too_old = or_(
                and_(Mail.state == MailState.SENT, Mail.ended_at < ago(keep_sent)),
                and_(Mail.state.in_(ENDED), Mail.state != MailState.SENT, Mail.ended_at < ago(keep_others)),
            )
            some = select(Mail.id).where(too_old).limit(BATCH)
            number = _rows(session, delete(Mail).where(Mail.id.in_(some)))
        pruned += number
        if number == 0:
            return pruned


def _locked(session: Session, mail_id: int) -> Mail:
    mail = session.execute(select(Mail).where(Mail.id == mail_id).with_for_update()).scalar_one_or_none()
    if mail is None:
        raise Conflict(f"there is no mail {mail_id}")
    return mail


def _move(session: Session, mail_id: int, expected: MailState, state: MailState) -> None:
    mail = _locked(session, mail_id)
    if mail.state != expected:
        raise Conflict(f"mail {mail_id} is {mail.state}, not {expected}")
    mail.state = state


def _end(session: Session, *which: ColumnElement[bool], state: MailState, reply: str, at: Any) -> int:
    body = case((Mail.sensitive, null()), else_=Mail.body)
    ending = (
        update(Mail)
        .where(*which, Mail.state.in_(WAITING), Mail.ended_at.is_(None))
        .values(state=state, reply=reply, ended_at=at, body=body)
    )
    return _rows(session, ending)


def _rows(session: Session, statement: Any) -> int:
    return int(session.execute(statement.execution_options(synchronize_session=False)).rowcount)  # type: ignore[attr-defined]


# --- What there is to see ---


def listed(session: Session, *, state: MailState | None = None, kind: str | None = None, limit: int = 50) -> list[Mail]:
    """Return messages, newest first."""
    wanted = [column == value for column, value in ((Mail.state, state), (Mail.kind, kind)) if value is not None]
    return list(session.execute(select(Mail).where(*wanted).order_by(Mail.id.desc()).limit(limit)).scalars())


def counts(session: Session) -> dict[tuple[str, str], int]:
    """Return how many messages there are by (kind, state)."""
    state = plain(Mail.state)
    rows = session.execute(select(Mail.kind, state, func.count()).group_by(Mail.kind, state))
    return {(kind, name): number for kind, name, number in rows}


def repeats(session: Session) -> int:
    """Return how often messages were sent again of which nobody knew whether they had been sent."""
    return int(session.execute(select(func.coalesce(func.sum(Mail.repeats), 0))).scalar_one())


def oldest_due(session: Session) -> datetime | None:
    """Return since when the message that waits longest could have been sent."""
    return session.execute(select(func.min(Mail.due_at)).where(Mail.state == MailState.QUEUED, Mail.due_at <= utc_now())).scalar()


def undecided(session: Session) -> int:
    """Return how many messages wait for a person to say whether they are sent again."""
    return session.execute(select(func.count()).where(Mail.state == MailState.UNKNOWN, Mail.expires_at > utc_now())).scalar_one()


def failing(session: Session) -> list[MailServer]:
    """Return the servers that do not take our mail now."""
    return list(session.execute(select(MailServer).where(MailServer.failures > 0)).scalars())
