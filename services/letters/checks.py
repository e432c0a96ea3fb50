"""Look once more, right before a letter is sent, whether it is still true and wanted.

Minutes or days may have passed since the letter was queued. A letter is withdrawn when its reader
is gone or does not want it any more, and when it is about something that has ended. It waits while
an event changes: then the next notice withdraws it, or confirms it.
"""

from datetime import date, timedelta
from functools import partial
from uuid import UUID
from zoneinfo import ZoneInfo

from nightshift.database import Session
from nightshift.jobs.args import JobArgs
from sqlalchemy import exists, func, select

from services.calendars.models import EventRevision
from services.letters.facts import look_different, read_content
from services.letters.jobs import (
    NoticeEvent,
    NoticeReview,
    QueueDigests,
    QueueNotices,
    SendWelcome,
)
from services.letters.kinds import LETTERS, Kind
from services.letters.notices import is_published, name_event, read_newest
from services.letters.reviews import STEP_OF, digest_step, find_step, is_asked
from services.mail.models import Mail, MailState
from services.mail.outbox import Check, Claimed, Halt, normalise
from services.school.models import Event, EventUser, IgnoredEvent, User

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


def make_check(zone: ZoneInfo) -> Check:
    """Return the check of a school in this zone."""
    return partial(_examine, zone)


def _examine(zone: ZoneInfo, session: Session, mail: Claimed) -> Halt | None:
    how = LETTERS.get(mail.kind)
    mail = _understand(mail)
    if how is None or mail.reader_id is None:
        return None
    user = session.get(User, mail.reader_id)
    if user is None:
        return Halt("its reader was deleted")
    halt = _examine_reader(session, mail, user, how)
    subject, _, key = (mail.about or "").partition(":")
    if halt is None and subject == "event":
        return _examine_notice(zone, session, mail, UUID(key))
    if halt is None and subject == "review":
        return _examine_review(session, mail, UUID(key), user)
    return halt


def _examine_reader(session: Session, mail: Claimed, user: User, how: Kind) -> Halt | None:
    if normalise(user.email) != mail.recipient.lower():
        return Halt("its reader has another address now", job=_find_job(mail))
    if how.wanted_by is not None and not getattr(user, how.wanted_by):
        return Halt("its reader does not want such mail any more")
    later = _find_later(session, mail)
    return None if later is None else Halt(f"overtaken: mail {later} says what is so now")


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


# --- Notices ---


def _examine_notice(zone: ZoneInfo, session: Session, mail: Claimed, event_id: UUID) -> Halt | None:
    event, newest = session.get(Event, event_id), read_newest(session, event_id)
    if event is None or newest is None:
        return Halt("its event was deleted")
    if not is_published(event):
        return Halt("its event is not published any more")
    if session.get(IgnoredEvent, (mail.reader_id, event_id)) is not None:
        return Halt("its reader ignores the event")
    assert mail.reader_id is not None
    if newest.version != mail.version:
        again = QueueNotices(event_id=event_id, version=newest.version, user_ids=(mail.reader_id,))
        return Halt(
            f"its reader is about to be told version {newest.version} of the event",
            wait=WHILE_PLANNED,
            job=again,
        )
    says = read_content(session, event)
    assert newest.content is not None
    named = exists().where(EventUser.event_id == event_id, EventUser.user_id == mail.reader_id)
    renamed = not says["cancelled"] and (
        session.execute(select(named)).scalar_one() != (mail.reader_id in newest.invited)
    )
    changed = renamed or look_different(says, newest.content, zone)
    if changed or _is_revised(session, mail, event_id, newest.vevents):
        return Halt(
            "its event is changing", wait=WHILE_CHANGING, job=NoticeEvent(event_id=event_id)
        )
    return None


def _find_later(session: Session, mail: Claimed) -> int | None:
    """Return a later mail about the same to the same reader, which was not withdrawn."""
    later = select(func.max(Mail.id)).where(
        Mail.about == mail.about,
        Mail.about.is_not(None),
        Mail.reader_id == mail.reader_id,
        Mail.id > mail.id,
        Mail.state.in_(COUNTED),
    )
    return session.execute(later).scalar()


def _is_revised(session: Session, mail: Claimed, event_id: UUID, vevents: dict[str, str]) -> bool:
    """Return whether the feeds have a later SEQUENCE than an invitation."""
    if not mail.kind.startswith("invitation") or not vevents:
        return False
    sequence = session.scalar(
        select(EventRevision.sequence).where(EventRevision.event_id == event_id)
    )
    line = f"\r\nSEQUENCE:{sequence}\r\n"
    return not all(line in vevent for vevent in vevents.values())


# --- Reviews ---


def _examine_review(session: Session, mail: Claimed, event_id: UUID, user: User) -> Halt | None:
    event = session.get(Event, event_id)
    step = None if event is None else find_step(event)
    if event is None or step is None or mail.kind != f"review_{step}":
        return Halt("the review has moved on")
    if not is_asked(user, event, step):
        return Halt("its reader has no part in the review any more")
    if digest_step(session, event, step) != mail.version:
        job = NoticeReview(event_id=event_id, step=step)
        return Halt("the event has changed since", job=job)
    return None
