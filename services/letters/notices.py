"""Notices: what has changed in an event since each of its readers was told, as one mail to each.

Once an event has settled, it is compared with the newest row of `event_notice`; where readers would
see a difference, the next version is written. What a reader is told is the difference between the
newest version and what this reader knows, which the outbox says: a mail counts when the server took
it. A mail that waits and is not true any more is withdrawn, and the reader is told what is so now
instead. A user whom the event names is invited, and gets the invitation instead of the notice.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol
from uuid import UUID

from nightshift.database import Session, batched
from nightshift.jobs import Discard, Outcome, Run, enqueue
from sqlalchemy import delete, select

from services.letters.facts import (
    Content,
    Fact,
    compute_end,
    look_different,
    look_different_in,
    make_facts,
    read_content,
)
from services.letters.invitations import attach_invitation
from services.letters.jobs import QueueNotices
from services.letters.models import EventNotice
from services.letters.recipients import READERS_PER_JOB, Recipient, find_recipients, make_letter
from services.letters.rules import LetterRules
from services.mail import outbox
from services.mail.models import MailState
from services.mail.outbox import Told
from services.school.models import Event, EventState, EventUser, IgnoredEvent

# Jobs that are retried read earlier versions, and so do people who ask what was told.
VERSIONS_KEPT = timedelta(days=7)

# A mail that is being sent cannot be withdrawn. Its reader is told what is new after this time.
WHILE_SENDING = timedelta(seconds=10)


class Revise(Protocol):
    """services.calendars.revisions.revise, for this installation."""

    def __call__(
        self, session: Session, event_id: UUID, *, raised: bool, now: datetime
    ) -> dict[str, str]:
        """Bring an event's revision up to date and return its VEVENTs by language.

        `raised`: raise the revision in any case.
        """


# Return which of these users' calendars show an event.
Shown = Callable[[Session, UUID, Collection[int]], set[int]]


def name_event(event_id: UUID) -> str:
    """Return what the outbox calls an event that a mail is about."""
    return f"event:{event_id}"


# --- An event's versions ---


def write_notice(
    session: Session,
    run: Run,
    event_id: UUID,
    *,
    affected: Callable[[Session, UUID], set[int]],
    revise: Revise,
    rules: LetterRules,
) -> Outcome:
    """Write an event's next version, and start the jobs that queue its mails.

    Nothing is written if readers would see no difference, or the event is over.
    """
    event = _lock_published(session, event_id)
    if event is None:
        return Discard("there is no such published event")
    last = read_newest(session, event_id, lock=True)
    if last is not None and last.before_id is not None and last.content is None:
        _read_what_was(session, last, last.before_id, affected)
    new = _make_version(session, event, last, readers=affected(session, event_id), now=run.now)
    assert new.content is not None
    is_first = last is not None and last.content is None
    versions = [new, *_read_versions(session, event_id).values()]
    ends = [compute_end(one.content, rules.zone) for one in versions if one.content is not None]
    if (is_first and new.content["cancelled"]) or max(ends) <= run.now:
        return {"concerned": 0}
    if any(version.invited for version in versions):
        # Also for those who were invited long ago, and whose cancellation still waits.
        raised = last is not None and last.version > 0 and last.invited != new.invited
        new.vevents = revise(session, event_id, raised=raised, now=run.now)
    concerned = _find_concerned(session, last, new, rules)
    if not concerned:
        return {"concerned": 0}
    session.add(new)
    _delete_old_versions(session, new)
    jobs = [
        QueueNotices(event_id=event_id, version=new.version, user_ids=ids)
        for ids in batched(sorted(concerned), READERS_PER_JOB)
    ]
    run.spawn(session, jobs)
    return {"concerned": len(concerned)}


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
    return event if event is not None and is_published(event) else None


def is_published(event: Event) -> bool:
    """Return whether readers may be told of an event: a former version is none."""
    return event.state == EventState.PUBLISHED and event.version_of_id is None


def read_newest(
    session: Session, event_id: UUID, *, lock: bool | None = None
) -> EventNotice | None:
    """Return an event's newest version.

    `lock`: True for a caller that writes the next one, False for one that no next one may overtake
    until it has committed.
    """
    newest = (
        select(EventNotice)
        .where(EventNotice.event_id == event_id)
        .order_by(EventNotice.version.desc())
        .limit(1)
    )
    found = session.execute(newest).scalar_one_or_none()
    if found is None or lock is None:
        return found
    while True:
        session.execute(
            select(EventNotice.version)
            .where(EventNotice.event_id == event_id, EventNotice.version == found.version)
            .with_for_update(read=not lock)
        )
        now_newest = session.execute(newest.execution_options(populate_existing=True)).scalar_one()
        if now_newest.version == found.version:
            return now_newest
        found = now_newest


def _read_versions(session: Session, event_id: UUID) -> dict[int, EventNotice]:
    kept = select(EventNotice).where(EventNotice.event_id == event_id)
    return {version.version: version for version in session.execute(kept).scalars()}


def _read_what_was(
    session: Session,
    first: EventNotice,
    before_id: UUID,
    affected: Callable[[Session, UUID], set[int]],
) -> None:
    """Read into version 0 what an event of another program was before our first change."""
    was = session.get(Event, before_id)
    if was is not None:
        first.content = read_content(session, was) | {"cancelled": bool(first.before_cancelled)}
        first.readers = sorted(affected(session, before_id))
        session.flush()


def _make_version(
    session: Session, event: Event, last: EventNotice | None, *, readers: set[int], now: datetime
) -> EventNotice:
    """Return the version that would follow `last`, without the VEVENTs. It is not written yet."""
    says, invited = read_content(session, event), read_invited(session, event.id)
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


def read_invited(session: Session, event_id: UUID) -> set[int]:
    """Return the ids of the users whom an event names."""
    linked = select(EventUser.user_id).where(EventUser.event_id == event_id)
    return set(session.execute(linked).scalars())


def _find_concerned(
    session: Session, last: EventNotice | None, new: EventNotice, rules: LetterRules
) -> set[int]:
    """Return the users who may have to be told something, for the version after `last`."""
    before = last or EventNotice(content=None, readers=[], invited=[], vevents={})
    assert new.content is not None
    concerned = set(new.invited).symmetric_difference(before.invited)
    seen = before.content is None or look_different(new.content, before.content, rules.zone)
    if not seen and not concerned and new.vevents == before.vevents:
        return set()
    told = outbox.find_about(session, name_event(new.event_id))
    if seen:
        concerned.update(new.readers, before.readers, new.invited, before.invited, told)
    else:
        waiting = (
            reader_id
            for reader_id, mails in told.items()
            if any(mail.waits or mail.state == MailState.SENDING for mail in mails)
        )
        concerned.update(waiting)
    return concerned


def _delete_old_versions(session: Session, new: EventNotice) -> None:
    """Delete versions that are old, and that no mail has told."""
    told = {
        mail.version
        for mails in outbox.find_about(session, name_event(new.event_id)).values()
        for mail in mails
    }
    old = (
        EventNotice.event_id == new.event_id,
        EventNotice.version > 0,
        EventNotice.version < new.version - 1,
        EventNotice.told_at < new.told_at - VERSIONS_KEPT,
    )
    versions = set(session.execute(select(EventNotice.version).where(*old)).scalars()) - told
    session.execute(
        delete(EventNotice).where(
            EventNotice.event_id == new.event_id, EventNotice.version.in_(versions)
        )
    )


# --- What one reader knows, and is told ---


@dataclass(frozen=True, slots=True)
class Known:
    """What a reader knows of an event: one of these versions; None among them means nothing.

    It is more than one version where a mail may have arrived that no server said it took.
    """

    versions: tuple[EventNotice | None, ...]

    @property
    def is_certain(self) -> bool:
        """Return whether it is known what the reader knows."""
        return len(self.versions) == 1

    @property
    def known(self) -> list[EventNotice]:
        """Return the versions without None."""
        return [version for version in self.versions if version is not None]

    @property
    def said(self) -> Content | None:
        """Return what the reader was told for certain."""
        return self.known[0].content if self.is_certain and self.known else None

    @property
    def takes_place(self) -> bool:
        """Return whether the reader may expect that the event takes place."""
        return any(not _says(version)["cancelled"] for version in self.known)

    def affects(self, reader_id: int) -> bool:
        """Return whether the reader may think that the event affects them."""
        return any(reader_id in version.readers for version in self.known)

    def invites(self, reader_id: int, *, cancelled: bool = False) -> bool:
        """Return whether the reader may have an invitation; with `cancelled`, also to what was."""
        return any(
            reader_id in version.invited and (cancelled or not _says(version)["cancelled"])
            for version in self.known
        )


def _says(version: EventNotice) -> Content:
    assert version.content is not None
    return version.content


def find_known(
    to: Recipient,
    mails: Sequence[Told],
    versions: Mapping[int, EventNotice],
    newest: int,
    rules: LetterRules,
    *,
    but: Told | None = None,
) -> Known:
    """Return what the mails to a reader, oldest first, say that the reader knows.

    A reader who was sent no mail, not even one that was withdrawn, wanted none: this reader knows
    from the calendar what the mails before `newest` would have told. `but`: as if this mail had not
    been queued.
    """
    first = versions.get(0)
    if first is not None and (first.content is None or to.id not in first.readers):
        first = None
    if not mails:
        return _find_shown(to, first, versions, newest, rules)
    may_know: list[EventNotice | None] = [first]
    for mail in mails:
        # What a version said is not known where an earlier release has deleted it.
        told = versions.get(mail.version)
        if told is None:
            told = _find_shown(to, first, versions, newest, rules).versions[0]
        if mail.state == MailState.SENT:
            may_know = [told]
        elif mail.may_have_arrived and mail is not but:
            may_know.append(told)
    one_each = {None if one is None else one.version: one for one in may_know}
    return Known(tuple(one_each.values()))


def _find_shown(
    to: Recipient,
    first: EventNotice | None,
    versions: Mapping[int, EventNotice],
    newest: int,
    rules: LetterRules,
) -> Known:
    known = Known((first,))
    for number in sorted(number for number in versions if 0 < number < newest):
        version, previous = versions[number], versions.get(number - 1)
        told = _choose_kind(known, version, previous, to, rules)
        known = Known((version,)) if told else known
    return known


class Notice(NamedTuple):
    """What one mail tells one reader."""

    kind: str
    title: str
    facts: tuple[Fact, ...]
    status: str
    cancelled: bool
    updated: bool
    vevent: str | None
    expires_at: datetime


def compare(
    known: Known,
    new: EventNotice,
    previous: EventNotice | None,
    to: Recipient,
    rules: LetterRules,
) -> Notice | None:
    """Return what a reader is to be told: the difference between what they know and `new`.

    Return None where that is nothing. `previous` is the version before `new`, None if it is not
    known.
    """
    says, said = _says(new), known.said
    kind = _choose_kind(known, new, previous, to, rules)
    if kind is None:
        return None
    was, affects = known.affects(to.id), to.id in new.readers
    status = "still" if was and affects else "now" if affects else "no longer"
    if kind == "event_changed" and previous is None and not known.known:
        status = ""
    if says["cancelled"] and said is not None:
        # That the event is cancelled is what the whole mail is about.
        said = said | {"cancelled": True}
    return Notice(
        kind,
        # The title by which the reader knows an event that does not take place.
        said["title"] if says["cancelled"] and said is not None else says["title"],
        tuple(make_facts(says, to.locale, rules.zone, said=said)),
        status,
        says["cancelled"],
        known.invites(to.id, cancelled=True),
        new.vevents.get(to.locale) if kind in ("invitation", "invitation_cancelled") else None,
        # The later of all times: readers who expect a later time must hear that it was brought
        # forward.
        max(compute_end(_says(version), rules.zone) for version in (new, *known.known)),
    )


def _choose_kind(
    known: Known,
    new: EventNotice,
    previous: EventNotice | None,
    to: Recipient,
    rules: LetterRules,
) -> str | None:
    says, said = _says(new), known.said
    affects, has_invitation = to.id in new.readers, known.invites(to.id)
    changed = said is None or look_different_in(to.locale, says, said, rules.zone)
    told = known.affects(to.id)
    if has_invitation and (says["cancelled"] or to.id not in new.invited):
        return "invitation_cancelled"
    if says["cancelled"]:
        unknown = previous is None and affects and not known.known
        return "event_cancelled" if unknown or (told and known.takes_place) else None
    if to.id in new.invited and (
        not has_invitation or (changed and _is_new_to_calendars(known, new, to))
    ):
        return "invitation"
    # A calendar that is asked again about what it has would ask its user again: so a user who has
    # the invitation is told like the others.
    if affects and not known.known:
        is_new = previous is not None and (previous.content is None or to.id in previous.readers)
        return "event_published" if is_new else "event_changed"
    if affects:
        return "event_changed" if changed or not told else None
    return "event_changed" if told and known.takes_place else None


def _is_new_to_calendars(known: Known, new: EventNotice, to: Recipient) -> bool:
    there = {version.vevents.get(to.locale) for version in known.known}
    return not known.is_certain or new.vevents.get(to.locale) not in there


# --- The mails ---


class Plan(NamedTuple):
    """What is done for one reader: mails that wait are withdrawn, and another is queued."""

    to: Recipient
    mails: Sequence[Told]
    withdrawn: frozenset[int]

    @property
    def remaining(self) -> list[Told]:
        """Return the mails as they are once those are withdrawn."""
        return [
            mail._replace(state=MailState.CANCELLED) if mail.id in self.withdrawn else mail
            for mail in self.mails
        ]


def queue_notices(
    session: Session, args: QueueNotices, rules: LetterRules, *, shown: Shown, now: datetime
) -> Outcome:
    """Tell each of these users what is new to them in the newest version of an event.

    Mails that wait and say something else are withdrawn. A second run finds all told.
    """
    new = read_newest(session, args.event_id, lock=False)
    if new is None or new.content is None:
        return Discard("the event is gone, or was never told")
    versions = _read_versions(session, args.event_id)
    about = name_event(args.event_id)
    told = outbox.find_about(session, about, args.user_ids)
    ignoring = set(
        session.execute(
            select(IgnoredEvent.user_id).where(IgnoredEvent.event_id == args.event_id)
        ).scalars()
    )
    busy: list[int] = []
    confirmed: set[int] = set()
    plans: list[Plan] = []
    for to in find_recipients(session, set(args.user_ids)):
        mails = told.get(to.id, [])
        plan = Plan(to, mails, frozenset(mail.id for mail in mails if mail.waits))
        if any(mail.state == MailState.SENDING for mail in mails):
            busy.append(to.id)
        elif to.id not in ignoring and _still_says(plan, new, versions, rules):
            confirmed |= plan.withdrawn
        else:
            plans.append(plan)
    outbox.confirm(session, confirmed, new.version)
    reason = f"overtaken: its reader is told version {new.version} of the event"
    all_waiting = {mail_id for plan in plans for mail_id in plan.withdrawn}
    withdrawn = outbox.withdraw(session, all_waiting, reason=reason, now=now)
    # One of them may have been claimed in this moment.
    busy += [plan.to.id for plan in plans if not plan.withdrawn <= withdrawn]
    notices = []
    for plan in plans:
        if plan.withdrawn <= withdrawn and plan.to.id not in ignoring:
            known = find_known(plan.to, plan.remaining, versions, new.version, rules)
            notice = compare(known, new, versions.get(new.version - 1), plan.to, rules)
            if notice is not None and notice.expires_at > now:
                notices.append((plan, notice))
    published = [plan.to.id for plan, notice in notices if notice.kind == "event_published"]
    showing = shown(session, args.event_id, published) if published else set()
    messages = [
        _make_message(plan, notice, new, rules, shown=plan.to.id in showing, now=now)
        for plan, notice in notices
    ]
    if busy:
        again = QueueNotices(event_id=args.event_id, version=new.version, user_ids=tuple(busy))
        enqueue(session, again, now=now, run_at=now + WHILE_SENDING)
    wanted = [message for message in messages if message is not None]
    outbox.queue_many(session, wanted, now=now)
    return {"queued": len(wanted), "withdrawn": len(withdrawn)}


def _still_says(
    plan: Plan, new: EventNotice, versions: Mapping[int, EventNotice], rules: LetterRules
) -> bool:
    """Return whether the one mail that waits tells its reader what is so now."""
    to, mails = plan.to, plan.mails
    waiting = [mail for mail in mails if mail.waits]
    if len(waiting) != 1 or outbox.normalise(to.address) != waiting[0].recipient.lower():
        return False
    (mail,) = waiting
    if mail.version == new.version:
        return True
    if mail.version not in versions:
        return False
    said, says = (
        compare(
            find_known(to, mails, versions, version.version, rules, but=mail),
            version,
            versions.get(version.version - 1),
            to,
            rules,
        )
        for version in (versions[mail.version], new)
    )
    return said is not None and said == says and said.kind == mail.kind


def _make_message(
    plan: Plan,
    notice: Notice,
    new: EventNotice,
    rules: LetterRules,
    *,
    shown: bool,
    now: datetime,
) -> outbox.Message | None:
    """Return the mail with a notice, or None for a reader who does not want it."""
    to = plan.to
    message = make_letter(
        notice.kind,
        to,
        rules,
        key=f"{new.event_id}:{new.version}",
        mails=plan.remaining,
        about=name_event(new.event_id),
        version=new.version,
        held=any(mail.state == MailState.HELD for mail in plan.mails),
        expires_at=notice.expires_at,
        now=now,
        title=notice.title,
        facts=notice.facts,
        status=notice.status,
        cancelled=notice.cancelled,
        updated=notice.updated,
        shown=shown,
    )
    if message is not None and notice.vevent is not None:
        attach_invitation(
            message.content,
            notice.vevent,
            "REQUEST" if notice.kind == "invitation" else "CANCEL",
            address=to.address,
            name=to.name,
            uninvited=not notice.cancelled,
        )
    return message
