"""Notices: what became of an event since its readers were told last, as one mail to each of them.

A notice compares an event with the newest row of `event_notice`, and writes the next one; the mails are made from the two rows, whatever
happens to the event meanwhile. Who the event names is invited, and gets the invitation instead of the notice: one mail, not two.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from sqlalchemy import delete, select

from services.database import Session
from services.jobs import Discard, Outcome, Run
from services.mail import outbox
from services.mail.compose import MailRules
from services.mail.facts import Content, content, facts, over_at
from services.mail.invitations import Method, attach
from services.mail.jobs import QueueNotices
from services.mail.models import EventNotice
from services.mail.recipients import Recipient, chunks, letter, recipients
from services.school.models import Event, EventState, EventUser, IgnoredEvent

# A chunk that is tried again reads its version and the one before.
VERSIONS_KEPT = timedelta(days=7)


class Told(Protocol):
    """What the calendars say of an event, by language, after its revision was brought up to date, or `raised` in any case."""

    def __call__(self, session: Session, event_id: UUID, *, raised: bool, now: datetime) -> dict[str, str]: ...


class Change(NamedTuple):
    """What a version tells: what the event says and said, None for nothing that anybody knows of, and who is a reader of which."""

    says: Content
    said: Content | None
    is_first: bool
    readers: frozenset[int]
    readers_before: frozenset[int]
    invited: frozenset[int]
    invited_before: frozenset[int]
    vevents: dict[str, str]

    @classmethod
    def between(cls, last: EventNotice | None, new: EventNotice) -> "Change":
        """Return what changed from one version to the next."""
        assert new.content is not None
        said = None if last is None else last.content
        # Whom an event affected of which nobody was told is not known. Most readers are the same.
        before = new.readers if last is None else last.readers
        invited_before = [] if last is None else last.invited
        return cls(
            says=new.content,
            said=said,
            is_first=last is not None and said is None,
            readers=frozenset(new.readers),
            readers_before=frozenset(before),
            invited=frozenset(new.invited),
            invited_before=frozenset(invited_before),
            vevents=new.vevents,
        )

    @property
    def concerned(self) -> list[int]:
        """Return the ids of those who may get a mail."""
        invited = self.invited ^ self.invited_before
        if self.says != self.said:
            invited |= self.invited | self.readers | self.readers_before
        return sorted(invited)


def tell(
    session: Session, run: Run, event_id: UUID, *, affected: Callable[[Session, UUID], set[int]], told: Told, rules: MailRules
) -> Outcome:
    """Write what the readers of an event are to be told, and start the jobs that queue it; nothing if nothing changed or it has passed."""
    # So that two do not write the same version. It keeps nobody from writing rows that refer to the event.
    lock = select(Event).where(Event.id == event_id).with_for_update(key_share=True).execution_options(populate_existing=True)
    event = session.execute(lock).scalar_one_or_none()
    if event is None or event.state != EventState.PUBLISHED or event.version_of_id is not None:
        return Discard("there is no such published event")
    newest = select(EventNotice).where(EventNotice.event_id == event_id).order_by(EventNotice.version.desc()).limit(1)
    last = session.execute(newest).scalar_one_or_none()
    linked = select(EventUser.user_id).where(EventUser.event_id == event_id)
    says, invited = content(session, event), set(session.execute(linked).scalars())
    if says["cancelled"] and last is not None and last.content is not None:
        # To what was cancelled before it was told that they are named, nobody was invited.
        invited &= set(last.invited)
    new = EventNotice(
        event_id=event_id,
        version=1 if last is None else last.version + 1,
        content=says,
        readers=sorted(affected(session, event_id)),
        invited=sorted(invited),
        vevents={},
        told_at=run.now,
    )
    change = Change.between(last, new)
    if (change.is_first and change.says["cancelled"]) or not change.concerned or _over_at(change, rules) <= run.now:
        return {"concerned": 0}
    if change.invited or change.invited_before:
        raised = change.said is not None and change.invited != change.invited_before
        new.vevents = told(session, event_id, raised=raised, now=run.now)
    session.add(new)
    old = (EventNotice.event_id == event_id, EventNotice.version < new.version - 1, EventNotice.told_at < run.now - VERSIONS_KEPT)
    session.execute(delete(EventNotice).where(*old))
    concerned = change.concerned
    run.spawn(session, [QueueNotices(event_id=event_id, version=new.version, user_ids=ids) for ids in chunks(concerned)])
    return {"concerned": len(concerned)}


def queue(session: Session, args: QueueNotices, rules: MailRules, *, now: datetime) -> Outcome:
    """Queue a version's mails to these users, to each as it concerns them and if they want it."""
    new = session.get(EventNotice, (args.event_id, args.version))
    if new is None:
        return Discard("the event is gone, or this version is long past")
    change = Change.between(session.get(EventNotice, (args.event_id, args.version - 1)), new)
    if (expires_at := _over_at(change, rules)) <= now:
        return Discard("the event has passed")
    about = f"{args.event_id}:{args.version}"
    ignoring = session.execute(select(IgnoredEvent.user_id).where(IgnoredEvent.event_id == args.event_id)).scalars()
    readers = recipients(session, set(args.user_ids).difference(ignoring))
    wanted = [_notice(to, change, rules, about=about, expires_at=expires_at, now=now) for to in readers]
    return {"queued": len(outbox.queue_many(session, [message for message in wanted if message is not None], now=now))}


def _over_at(change: Change, rules: MailRules) -> datetime:
    # Who thinks that it is later must hear that it was put forward.
    return max(over_at(says, rules.zone) for says in (change.says, change.said) if says is not None)


def _notice(to: Recipient, change: Change, rules: MailRules, **options: Any) -> outbox.Message | None:
    """Return the mail that tells one person of a change."""
    was, affects = to.id in change.readers_before, to.id in change.readers
    invited, invited_before = to.id in change.invited, to.id in change.invited_before
    cancelled = change.says["cancelled"]
    said = None if cancelled else change.said
    context = {
        "title": change.says["title"],
        "facts": facts(change.says, to.locale, rules.zone, said=said),
        "status": "still" if was and affects else "now" if affects else "no longer",
        "cancelled": cancelled,
        "updated": invited_before,
        **options,
    }
    if not (invited or invited_before):
        kind = "event_published" if change.is_first else "event_cancelled" if cancelled else "event_changed"
        return letter(kind, to, rules, **context)
    kind = "invitation" if invited and not cancelled else "invitation_cancelled"
    message = letter(kind, to, rules, **context)
    if message is not None and to.locale in change.vevents:
        method: Method = "REQUEST" if kind == "invitation" else "CANCEL"
        attach(message.content, change.vevents[to.locale], method, address=to.address, name=to.name, uninvited=not cancelled)
    return message
