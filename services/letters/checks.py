"""Look once more, right before a letter is sent, whether it is still true and wanted.

Minutes or days may have passed since the letter was queued. A letter is withdrawn when its reader
is gone or does not want it any more, and when it is about something that has ended. It waits while
an event changes: then the next notice withdraws it, or confirms it.
"""

from datetime import date, timedelta
from functools import partial
from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import Session, plain, read_clock
from nightshift.jobs.args import JobArgs
from sqlalchemy import Row, bindparam, func, select

from services.calendars.models import EventRevision
from services.letters.digests import Agendas, read_weeks
from services.letters.facts import look_different, read_content
from services.letters.jobs import (
    SETTLED,
    NoticeEvent,
    NoticeReview,
    QueueDigests,
    QueueNotices,
    SendWelcome,
)
from services.letters.kinds import LETTERS
from services.letters.notices import is_published, name_event, read_invited, read_newest
from services.letters.reviews import STEP_OF, digest_step, find_step, is_asked
from services.letters.rules import LetterRules
from services.letters.unsubscribe import FLAGS
from services.mail.models import Mail, MailState
from services.mail.outbox import Claimed, Halt, MailCheck, normalise
from services.school.models import Event, IgnoredEvent, User

# While an event changes, its letters wait this long before they are looked at again.
WHILE_CHANGING = timedelta(minutes=1)

# What the next job says of them, they know sooner.
WHILE_PLANNED = timedelta(seconds=10)

COUNTED = (MailState.QUEUED, MailState.HELD, MailState.SENDING, MailState.SENT)

NOTICES = (
    "event_published",
    "event_changed",
    "event_cancelled",
    "invitation",
    "invitation_cancelled",
)


# Mails about one event follow each other. It is looked at again after this time.
LOOKED_AT_FOR = timedelta(seconds=1)

_later = (
    select(func.max(Mail.id))
    .where(
        Mail.about == bindparam("about"),
        Mail.about.is_not(None),
        Mail.reader_id == bindparam("reader"),
        Mail.id > bindparam("mail"),
        Mail.state.in_(COUNTED),
    )
    .scalar_subquery()
)
# Built once: it runs for each letter.
READER = select(
    User.email,
    plain(User.role).label("role"),
    *(getattr(User, flag) for flag in FLAGS),
    _later.label("later"),
).where(User.id == bindparam("reader"))


class Look(NamedTuple):
    """What the mails about one event depend on, apart from their readers."""

    at: float
    halt: Halt | None
    version: int = 0
    ignoring: frozenset[int] = frozenset()
    named: frozenset[int] = frozenset()
    invited: frozenset[int] = frozenset()
    changing: bool = False
    cancelled: bool = False
    revised: bool = False


def make_check(rules: LetterRules, agendas: Agendas) -> MailCheck:
    """Return the check of a school. `agendas` returns what calendars hold now."""
    return MailCheck(frozenset(LETTERS), partial(Examiner, rules, agendas))


class Examiner:
    """The check for the mails of one delivery: it looks at an event once a second."""

    def __init__(self, rules: LetterRules, agendas: Agendas) -> None:
        self._rules, self._agendas = rules, agendas
        self._looks: dict[UUID, Look] = {}

    def __call__(self, session: Session, mail: Claimed) -> Halt | None:
        """Return why a letter must not be sent now, or None."""
        mail = _understand(mail)
        if mail.reader_id is None:
            return None
        known = {"reader": mail.reader_id, "about": mail.about, "mail": mail.id}
        reader = session.connection().execute(READER, known).one_or_none()
        if reader is None:
            return Halt("its reader was deleted")
        subject, _, key = (mail.about or "").partition(":")
        halt = _examine_reader(mail, reader)
        if halt is None and subject == "event":
            return self._examine_notice(session, mail, UUID(key), mail.reader_id)
        if halt is None and subject == "review":
            return _examine_review(session, mail, UUID(key), reader.role)
        if halt is None and subject == "digest":
            return self._examine_digest(session, mail, date.fromisoformat(key), mail.reader_id)
        return halt

    def _examine_notice(
        self, session: Session, mail: Claimed, event_id: UUID, reader_id: int
    ) -> Halt | None:
        look = self._looks.get(event_id)
        if look is None or monotonic() - look.at > LOOKED_AT_FOR.total_seconds():
            self._looks = {event_id: (look := _look(session, event_id, self._rules.zone))}
        if look.halt is not None:
            return look.halt
        if reader_id in look.ignoring:
            return Halt("its reader ignores the event")
        if look.version != mail.version:
            again = QueueNotices(event_id=event_id, version=look.version, user_ids=(reader_id,))
            reason = f"its reader is about to be told version {look.version} of the event"
            return Halt(reason, wait=WHILE_PLANNED, job=again)
        renamed = not look.cancelled and (reader_id in look.named) != (reader_id in look.invited)
        revised = look.revised and mail.kind.startswith("invitation")
        if look.changing or renamed or revised:
            job = NoticeEvent(event_id=event_id)
            return Halt("its event is changing", wait=WHILE_CHANGING, job=job)
        return None

    def _examine_digest(
        self, session: Session, mail: Claimed, week: date, reader_id: int
    ) -> Halt | None:
        # Reading a week costs as much as the letter. Until a change has settled, no notice of it
        # has gone out, which the digest would contradict.
        if read_clock(session) - mail.created_at < SETTLED:
            return None
        found = read_weeks(session, week, (reader_id,), self._agendas, self._rules)
        if [now.version for now in found] == [mail.version]:
            return None
        return Halt("the week has changed since", job=_find_job(mail))


def _examine_reader(mail: Claimed, reader: Row[Any]) -> Halt | None:
    wanted_by = LETTERS[mail.kind].wanted_by
    # Most are written alike: to normalise an address takes longer than all else here.
    moved = reader.email != mail.recipient and normalise(reader.email) != mail.recipient.lower()
    if moved:
        return Halt("its reader has another address now", job=_find_job(mail))
    if wanted_by is not None and not getattr(reader, wanted_by):
        return Halt("its reader does not want such mail any more")
    if reader.later is not None:
        return Halt(f"overtaken: mail {reader.later} says what is so now")
    return None


def _look(session: Session, event_id: UUID, zone: ZoneInfo) -> Look:
    at = monotonic()
    event, newest = session.get(Event, event_id), read_newest(session, event_id)
    if event is None or newest is None or newest.content is None:
        return Look(at, Halt("its event was deleted"))
    if not is_published(event):
        return Look(at, Halt("its event is not published any more"))
    says = read_content(session, event)
    ignoring = select(IgnoredEvent.user_id).where(IgnoredEvent.event_id == event_id)
    sequence = session.scalar(
        select(EventRevision.sequence).where(EventRevision.event_id == event_id)
    )
    line = f"\r\nSEQUENCE:{sequence}\r\n"
    return Look(
        at,
        None,
        version=newest.version,
        ignoring=frozenset(session.execute(ignoring).scalars()),
        named=frozenset(read_invited(session, event_id)),
        invited=frozenset(newest.invited),
        changing=look_different(says, newest.content, zone),
        cancelled=says["cancelled"],
        revised=not all(line in vevent for vevent in newest.vevents.values()),
    )


def _understand(mail: Claimed) -> Claimed:
    """Return a mail with what it is about, also one that a process of the release before queued."""
    if mail.about is not None or mail.kind not in NOTICES:
        return mail
    _, event_id, version, reader_id = mail.dedupe_key.split(":")
    return mail._replace(
        about=name_event(UUID(event_id)), version=int(version), reader_id=int(reader_id)
    )


def _find_job(mail: Claimed) -> JobArgs | None:
    """Return the job that queues a mail for its reader's present address.

    None for a key: it does not work with another address.
    """
    subject, _, key = (mail.about or "").partition(":")
    only = (mail.reader_id or 0,)
    if subject == "event":
        return QueueNotices(event_id=UUID(key), version=mail.version or 0, user_ids=only)
    if subject == "review":
        return NoticeReview(event_id=UUID(key), step=STEP_OF[mail.kind], user_ids=only)
    if subject == "digest":
        return QueueDigests(week=date.fromisoformat(key), user_ids=only)
    return SendWelcome(user_id=only[0]) if mail.kind == "welcome" else None


# --- Reviews ---


def _examine_review(session: Session, mail: Claimed, event_id: UUID, role: str) -> Halt | None:
    event = session.get(Event, event_id)
    step = None if event is None else find_step(event)
    if event is None or step is None or mail.kind != f"review_{step}":
        return Halt("the review has moved on")
    if not is_asked(mail.reader_id, role, event, step):
        return Halt("its reader has no part in the review any more")
    if digest_step(session, event, step) != mail.version:
        job = NoticeReview(event_id=event_id, step=step)
        return Halt("the event has changed since", job=job)
    return None
