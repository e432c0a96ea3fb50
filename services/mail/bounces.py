"""What is reported of a message after a server took it: not delivered, late, or called spam.

Such reports are mails: delivery status notifications (RFC 3464), complaints (RFC 5965), and what
servers wrote before there was a standard, which `flufl.bounce` reads. Anyone can send one. A report
counts when it is an answer to a message of ours: it came to a return path that we signed, or it
holds the Message-ID, which cannot be guessed. Another is kept, named, and changes nothing.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes
from email.message import Message as Parsed
from email.utils import parseaddr
from typing import Any

from flufl.bounce import all_failures
from nightshift.database import Session, insert_or, plain
from sqlalchemy import exists, func, select

from services.mail import outbox
from services.mail.models import BounceKind, Mail, MailBounce
from services.mail.transport import DEAD_ADDRESS, clean_reply

logger = logging.getLogger(__name__)
# It logs each of its errors, with the traceback.
logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL)

# The beginning of a longer report is read: what it says stands before the message that it returns.
LARGEST = 1 << 20
MOST_PARTS = 100
MOST_IDS = 50

# RFC 3463, with the code of SMTP that may stand before it.
STATUS = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d.])")
PERMANENT = re.compile(r"(?<![\d.])5\d\d(?![\d.])")
AN_ID = r"<[!-;=?-~]{1,290}>"
MESSAGE_ID = re.compile(rf"^message-id:\s*({AN_ID})", re.IGNORECASE | re.MULTILINE)

# Where servers write to which address a mail was delivered.
DELIVERED_TO = ("delivered-to", "x-original-to", "envelope-to", "x-envelope-to", "to")
SIGNATURE_LENGTH = 20

ACTIONS = {
    "failed": BounceKind.FAILED,
    "delayed": BounceKind.DELAYED,
    "delivered": BounceKind.DELIVERED,
    "relayed": BounceKind.DELIVERED,
    "expanded": BounceKind.DELIVERED,
}
# RFC 5965, 3.1 and 7.3: these say that a reader wants the message, or nothing of a reader.
NO_COMPLAINT = ("not-spam", "auth-failure")
WORST_FIRST = (BounceKind.FAILED, BounceKind.DELAYED, BounceKind.DELIVERED)

# What a noun does about a complaint: its reader does not want such messages.
TurnOff = Callable[[Session, Mail], None]


@dataclass(frozen=True, slots=True)
class Complaints:
    """What another component does about a complaint. It may be called again for one message."""

    turn_off: TurnOff


@dataclass(frozen=True, slots=True)
class Report:
    """What one report says. `status` is RFC 3463's, or empty; `reply` names no address.

    `recipients` are the addresses that it is about, in lower case. `message_ids` are those that
    stand in it, `delivered_to` the addresses that it came to.
    """

    kind: BounceKind
    status: str
    reply: str
    recipients: frozenset[str]
    message_ids: tuple[str, ...]
    delivered_to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a report. `mail_id` is None for one that answers no message of ours."""

    kind: BounceKind
    mail_id: int | None
    status: str
    reply: str
    is_new: bool


def make_return_path(address: str, secret: str, mail_id: int) -> str:
    """Return the envelope's sender for a message: `bounces+4711.…@school.example`."""
    local, _, domain = address.rpartition("@")
    return f"{local}+{mail_id}.{_sign(secret, mail_id)}@{domain}"


def read_return_path(address: str, secret: str) -> int | None:
    """Return the number of the message to whose return path a report came, if we signed it."""
    found = re.search(r"\+(\d{1,18})\.([0-9a-f]+)@", address.lower())
    if not (found and secret):
        return None
    mail_id = int(found[1])
    return mail_id if hmac.compare_digest(found[2], _sign(secret, mail_id)) else None


def _sign(secret: str, mail_id: int) -> str:
    # In lower case: servers may change the case of an address.
    content = f"return path {mail_id}".encode()
    return hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()[:SIGNATURE_LENGTH]


def read_report(raw: bytes) -> Report:
    """Return what a mail reports. One that is no report has the kind `other`. Never raises."""
    try:
        return _read_parts(message_from_bytes(raw[:LARGEST]))
    except Exception:  # hostile bytes may break the parser, and any of the library's readers
        logger.exception("a report cannot be read")
        return Report(BounceKind.OTHER, "", "it cannot be read", frozenset(), (), ())


def _read_parts(mail: Parsed) -> Report:
    parts = [part for part, _ in zip(mail.walk(), range(MOST_PARTS), strict=False)]
    texts = [_read_text(part) for part in parts if not part.is_multipart()]
    return Report(
        **(_read_complaint(parts) or _read_statuses(parts) or _read_others(mail, texts)),
        message_ids=tuple(_find_message_ids(mail, parts, texts)),
        delivered_to=tuple(
            parseaddr(str(value))[1] for name in DELIVERED_TO for value in mail.get_all(name, [])
        ),
    )


def _read_complaint(parts: list[Parsed]) -> dict[str, Any] | None:
    for part in parts:
        if part.get_content_type() != "message/feedback-report":
            continue
        fields = _read_fields(part)
        given = fields.get("feedback-type", "").strip().lower()
        return {
            "kind": BounceKind.OTHER if given in NO_COMPLAINT else BounceKind.COMPLAINT,
            "status": "",
            "reply": clean_reply(f"complaint: {given}"),
            "recipients": frozenset(_read_addresses(fields.get("original-rcpt-to", ""))),
        }
    return None


def _read_statuses(parts: list[Parsed]) -> dict[str, Any] | None:
    """Return what the fields for each recipient say (RFC 3464, 2.3): the worst of them."""
    found = []
    for part in parts:
        if part.get_content_type() not in (
            "message/delivery-status",
            "message/global-delivery-status",
        ):
            continue
        for block in _read_blocks(part):
            kind = ACTIONS.get(block.get("action", "").strip().lower())
            if kind is None:
                continue
            said = block.get("diagnostic-code", "")
            status = _find_status(block.get("status", ""), said)
            names = [block.get("original-recipient", ""), block.get("final-recipient", "")]
            recipients = {one for name in names for one in _read_addresses(name)}
            found.append((WORST_FIRST.index(kind), status, said or status, recipients))
    if not found:
        return None
    rank, status, said, _ = min(found, key=lambda one: one[0])
    return {
        "kind": WORST_FIRST[rank],
        "status": status,
        "reply": clean_reply(said),
        "recipients": frozenset().union(*(one[3] for one in found if one[0] == rank)),
    }


def _read_others(mail: Parsed, texts: list[str]) -> dict[str, Any]:
    """Return what a report says that follows no standard."""
    try:
        temporary, permanent = all_failures(mail)
    except Exception:  # noqa: BLE001 - it has twenty readers, and some fail where a header is missing
        temporary = permanent = frozenset()
    text = texts[0] if texts else ""
    if not (temporary or permanent):
        kind, reply = BounceKind.OTHER, clean_reply(str(mail.get("subject", "")))
        return {"kind": kind, "status": "", "reply": reply, "recipients": frozenset()}
    # What is returned begins after these; it may hold any number.
    said = re.split(r"(?m)^-{2,}.*(?:copy|original|returned|headers).*$", text, maxsplit=1)[0]
    failed = bool(permanent)
    line = next((one for one in said.splitlines() if STATUS.search(one)), "") or next(
        (one for one in said.splitlines() if PERMANENT.search(one)), ""
    )
    return {
        "kind": BounceKind.FAILED if failed else BounceKind.DELAYED,
        "status": _find_status("", line),
        "reply": clean_reply(line or str(mail.get("subject", ""))),
        "recipients": frozenset(
            one.decode(errors="replace").lower() for one in permanent or temporary
        ),
    }


def _find_status(given: str, said: str) -> str:
    """Return the status of RFC 3463; where that says only failed, the one in the answer."""
    own, other = STATUS.search(given), STATUS.search(said)
    if own is None or (own[1].endswith(".0.0") and other and other[1][0] == own[1][0]):
        own = other or own
    return own[1] if own else ""


def _read_blocks(part: Parsed) -> Iterator[dict[str, str]]:
    """Yield the groups of fields of a delivery status (RFC 3464, 2.1).

    `email` has parsed them as messages. Some servers encode them, which RFC 3464 forbids and RFC
    6533 allows: then what it parsed is the code.
    """
    payload = part.get_payload()
    text = "\n\n".join(str(one) for one in payload) if isinstance(payload, list) else str(payload)
    whole = Parsed()
    whole["Content-Transfer-Encoding"] = str(part.get("content-transfer-encoding", "8bit"))
    whole.set_payload(text.strip())
    for block in re.split(r"\r?\n\s*\r?\n", _read_text(whole)):
        yield _parse_fields(block)


def _read_fields(part: Parsed) -> dict[str, str]:
    fields: dict[str, str] = {}
    for block in _read_blocks(part):
        fields |= block
    return fields


def _parse_fields(text: str) -> dict[str, str]:
    return {
        name.lower(): _unfold(value) for name, value in message_from_bytes(text.encode()).items()
    }


def _unfold(value: Any) -> str:
    return " ".join(str(value).split())


def _read_addresses(value: str) -> Iterator[str]:
    """Yield the address of a field such as `rfc822; anna@school.example`, in lower case."""
    address = parseaddr(value.rpartition(";")[2].strip())[1].lower()
    if "@" in address:
        yield address


def _read_text(part: Parsed) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset() or "utf-8", errors="replace")
    except LookupError:  # a charset that does not exist
        return payload.decode("latin-1")


def _find_message_ids(mail: Parsed, parts: list[Parsed], texts: list[str]) -> list[str]:
    """Return the Message-IDs of what the report returns, and those that it refers to."""
    found: dict[str, None] = {}
    for part in parts[1:]:
        for given in part.get_all("message-id", []):
            found |= dict.fromkeys(re.findall(AN_ID, str(given)))
        for text in (part.preamble, part.epilogue):
            found |= dict.fromkeys(MESSAGE_ID.findall(text or ""))
    for text in texts:
        found |= dict.fromkeys(MESSAGE_ID.findall(text))
    for name in ("in-reply-to", "references"):
        found |= dict.fromkeys(re.findall(AN_ID, str(mail.get(name, ""))))
    return list(found)[:MOST_IDS]


# --- What follows from it ---


def settle(
    session: Session,
    raw: bytes,
    *,
    secret: str,
    complaints: Complaints | None = None,
    now: datetime,
) -> Settled:
    """Record a report and do what follows from it. The same bytes count once.

    A message that failed because its address does not exist counts as a refusal of that address,
    once; a complaint lets its reader get no more of the kind. `secret` signs our return paths.
    """
    digest = hashlib.sha256(raw).digest()
    known = _find_known(session, digest)
    if known is not None:
        return known
    report = read_report(raw)
    mail = _find_mail(session, report, secret)
    # Its row is locked: of two reports on one message only the first counts.
    counted = (
        mail is not None
        and session.execute(
            select(
                exists().where(MailBounce.mail_id == mail.id, MailBounce.kind == BounceKind.FAILED)
            )
        ).scalar_one()
    )
    added = session.execute(
        insert_or(session, MailBounce)
        .values(
            digest=digest,
            mail_id=None if mail is None else mail.id,
            kind=report.kind,
            status=report.status,
            reply=report.reply,
            received_at=now,
        )
        .on_conflict_do_nothing(index_elements=[MailBounce.digest])
        .returning(MailBounce.id)
    ).scalar_one_or_none()
    if added is None:  # another process was faster
        known = _find_known(session, digest)
        assert known is not None
        return known
    if mail is not None:
        if report.kind is BounceKind.FAILED and not counted and _is_dead(report, mail.recipient):
            outbox.record_refusal(session, mail.recipient, now=now)
        if report.kind is BounceKind.COMPLAINT and complaints is not None:
            complaints.turn_off(session, mail)
    logger.info(
        "a report: %s %s, %s", report.kind.value, report.status,
        "of no message of ours" if mail is None else f"of mail {mail.id}",
    )  # fmt: skip
    of = None if mail is None else mail.id
    return Settled(report.kind, of, report.status, report.reply, is_new=True)


def _find_known(session: Session, digest: bytes) -> Settled | None:
    row = session.execute(
        select(MailBounce).where(MailBounce.digest == digest)
    ).scalar_one_or_none()
    if row is None:
        return None
    return Settled(row.kind, row.mail_id, row.status, row.reply, is_new=False)


def _find_mail(session: Session, report: Report, secret: str) -> Mail | None:
    """Return the message that a report answers, locked."""
    signed = [read_return_path(address, secret) for address in report.delivered_to]
    by_path = [one for one in signed if one is not None]
    if by_path:
        which = Mail.id == by_path[0]
    elif report.message_ids:
        # Compared with `is not null` too, so that both databases use the index.
        sent = Mail.ended_at.is_not(None)
        of = select(Mail.id).where(Mail.message_id.in_(report.message_ids), sent)
        which = Mail.id == of.order_by(Mail.id).limit(1).scalar_subquery()
    else:
        return None
    return session.execute(select(Mail).where(which).with_for_update()).scalar_one_or_none()


def _is_dead(report: Report, recipient: str) -> bool:
    """Return whether a report says that a message's address does not exist.

    One about other addresses is of a list, or of a mailbox to which the address leads.
    """
    about = not report.recipients or recipient.lower() in report.recipients
    return about and DEAD_ADDRESS.match(report.status) is not None


# --- For people and metrics ---


def find_bounces(session: Session, *, limit: int = 50) -> list[MailBounce]:
    """Return reports, newest first."""
    return list(
        session.execute(select(MailBounce).order_by(MailBounce.id.desc()).limit(limit)).scalars()
    )


def find_of(session: Session, mail_ids: Collection[int]) -> dict[int, MailBounce]:
    """Return the newest report on each of these messages that has one."""
    newest = (
        select(func.max(MailBounce.id))
        .where(MailBounce.mail_id.in_(mail_ids))
        .group_by(MailBounce.mail_id)
    )
    rows = session.execute(select(MailBounce).where(MailBounce.id.in_(newest))).scalars()
    return {row.mail_id: row for row in rows if row.mail_id is not None}


def count_bounces(session: Session) -> dict[tuple[str, str], int]:
    """Return how many reports there are by kind, and by whether they answer a message of ours."""
    answers = MailBounce.mail_id.is_not(None)
    kind = plain(MailBounce.kind)
    rows = session.execute(select(kind, answers, func.count()).group_by(kind, answers))
    return {(name, "yes" if ours else "no"): number for name, ours, number in rows}
