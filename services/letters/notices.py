"""Notices: what has changed in an event since the last notice, as one mail to each reader.

A notice compares an event with the newest row of `event_notice`, and writes the next row. The mails
are made from these two rows, so later changes of the event do not alter them. A user whom the event
names is invited, and gets the invitation instead of the notice.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from nightshift.database import Session, batched
from nightshift.jobs import Discard, Outcome, Run
from sqlalchemy import delete, select

from services.letters.facts import Content, compute_end, make_facts, read_content
from services.letters.invitations import Method, attach_invitation
from services.letters.jobs import QueueNotices
from services.letters.models import EventNotice
from services.letters.recipients import READERS_PER_JOB, Recipient, find_recipients, make_letter
from services.letters.rules import LetterRules
from services.mail import outbox
from services.school.models import Event, EventState, EventUser, IgnoredEvent

# A job that is retried reads its version and the one before.
VERSIONS_KEPT = timedelta(days=7)


class Revise(Protocol):
    """services.calendars.revisions.revise, for this installation."""

    def __call__(
        self, session: Session, event_id: UUID, *, raised: bool, now: datetime
    ) -> dict[str, str]:
        """Bring an event's revision up to date and return its VEVENTs by language.

        `raised`: raise the revision in any case.
        """


class Change(NamedTuple):
    """The difference between two versions: contents, readers, and invited users.

    `said` is the earlier content, None if it is unknown or there is none.
    """

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
        # Whom the event affected before the first notice is unknown. Most readers are the same.
        before = last or EventNotice(content=None, readers=new.readers, invited=[])
        return cls(
            says=new.content,
            said=before.content,
            is_first=last is not None and last.content is None,
            readers=frozenset(new.readers),
            readers_before=frozenset(before.readers),
            invited=frozenset(new.invited),
            invited_before=frozenset(before.invited),
            vevents=new.vevents,
        )

    @property
    def concerned(self) -> list[int]:
        """Return the ids of the users who may get a mail."""
        invited = self.invited ^ self.invited_before
        if self.says != self.said:
            invited |= self.invited | self.readers | self.readers_before
        return sorted(invited)


def write_notice(
    session: Session,
    run: Run,
    event_id: UUID,
    *,
    affected: Callable[[Session, UUID], set[int]],
    revise: Revise,
    rules: LetterRules,
) -> Outcome:
    """Write an event's next notice, and start the jobs that queue its mails.

    Nothing is written if nothing has changed or the event is over.
    """
    event = _lock_published(session, event_id)
    if event is None:
        return Discard("there is no such published event")
    last = _read_newest(session, event_id)
    new = _make_version(session, event, last, readers=affected(session, event_id), now=run.now)
    change = Change.between(last, new)
    never_told = change.is_first and change.says["cancelled"]
    if never_told or not change.concerned or _compute_end(change, rules) <= run.now:
        return {"concerned": 0}
    if change.invited or change.invited_before:
        raised = change.said is not None and change.invited != change.invited_before
        new.vevents = revise(session, event_id, raised=raised, now=run.now)
    session.add(new)
    _delete_old_versions(session, new)
    jobs = [
        QueueNotices(event_id=event_id, version=new.version, user_ids=ids)
        for ids in batched(change.concerned, READERS_PER_JOB)
    ]
    run.spawn(session, jobs)
    return {"concerned": len(change.concerned)}


def _lock_published(session: Session, event_id: UUID) -> Event | None:
    # Locked, so that two jobs do not write the same version. Other transactions may still write
    # rows that refer to the event.
    lock = (
        select(Event)
        .where(Event.id == event_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    event = session.execute(lock).scalar_one_or_none()
    if event is None or event.state != EventState.PUBLISHED or event.version_of_id is not None:
        return None
    return event


def _read_newest(session: Session, event_id: UUID) -> EventNotice | None:
    newest = (
        select(EventNotice)
        .where(EventNotice.event_id == event_id)
        .order_by(EventNotice.version.desc())
        .limit(1)
    )
    return session.execute(newest).scalar_one_or_none()


def _make_version(
    session: Session, event: Event, last: EventNotice | None, *, readers: set[int], now: datetime
) -> EventNotice:
    """Return the version that would follow `last`, without the VEVENTs. It is not written yet."""
    linked = select(EventUser.user_id).where(EventUser.event_id == event.id)
    says, invited = read_content(session, event), set(session.execute(linked).scalars())
    if says["cancelled"] and last is not None and last.content is not None:
        # A user who was added after the last notice was never invited, so there is nothing to
        # cancel.
        invited &= set(last.invited)
    return EventNotice(
        event_id=event.id,
        version=1 if last is None else last.version + 1,
        content=says,
        readers=sorted(readers),
        invited=sorted(invited),
        vevents={},
        told_at=now,
    )


def _delete_old_versions(session: Session, new: EventNotice) -> None:
    old = (
        EventNotice.event_id == new.event_id,
        EventNotice.version < new.version - 1,
        EventNotice.told_at < new.told_at - VERSIONS_KEPT,
    )
    session.execute(delete(EventNotice).where(*old))


def queue_notices(
    session: Session, args: QueueNotices, rules: LetterRules, *, now: datetime
) -> Outcome:
    """Queue a version's mails to those of these users whom it concerns and who want them."""
    new = session.get(EventNotice, (args.event_id, args.version))
    if new is None:
        return Discard("the event is gone, or this version is long past")
    change = Change.between(session.get(EventNotice, (args.event_id, args.version - 1)), new)
    if (expires_at := _compute_end(change, rules)) <= now:
        return Discard("the event has passed")
    about = f"{args.event_id}:{args.version}"
    ignoring = session.execute(
        select(IgnoredEvent.user_id).where(IgnoredEvent.event_id == args.event_id)
    ).scalars()
    readers = find_recipients(session, set(args.user_ids).difference(ignoring))
    mails = [
        _make_notice(to, change, rules, about=about, expires_at=expires_at, now=now)
        for to in readers
    ]
    wanted = [message for message in mails if message is not None]
    return {"queued": len(outbox.queue_many(session, wanted, now=now))}


def _compute_end(change: Change, rules: LetterRules) -> datetime:
    # The later of both times: readers who expect a later time must hear that it was brought
    # forward.
    return max(
        compute_end(says, rules.zone) for says in (change.says, change.said) if says is not None
    )


def _make_notice(
    to: Recipient, change: Change, rules: LetterRules, **options: Any
) -> outbox.Message | None:
    """Return the mail that tells one reader of a change, or None for one who does not want it."""
    was, affects = to.id in change.readers_before, to.id in change.readers
    invited, invited_before = to.id in change.invited, to.id in change.invited_before
    cancelled = change.says["cancelled"]
    said = None if cancelled else change.said
    context = {
        "title": change.says["title"],
        "facts": make_facts(change.says, to.locale, rules.zone, said=said),
        "status": "still" if was and affects else "now" if affects else "no longer",
        "cancelled": cancelled,
        "updated": invited_before,
        **options,
    }
    if not (invited or invited_before):
        kind = (
            "event_published"
            if change.is_first
            else "event_cancelled"
            if cancelled
            else "event_changed"
        )
        return make_letter(kind, to, rules, **context)
    kind = "invitation" if invited and not cancelled else "invitation_cancelled"
    message = make_letter(kind, to, rules, **context)
    if message is not None and to.locale in change.vevents:
        method: Method = "REQUEST" if kind == "invitation" else "CANCEL"
        attach_invitation(
            message.content,
            change.vevents[to.locale],
            method,
            address=to.address,
            name=to.name,
            uninvited=not cancelled,
        )
    return message
