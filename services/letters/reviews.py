"""Mails about the review of an event: its request to the reviewers, its end to the author.

A mail is about the step that the event is at when the mail is queued. Of several steps that no
reader was told of, the last is told.
"""

import json
from datetime import datetime
from typing import Literal
from uuid import UUID

from nightshift.database import Session
from nightshift.jobs import Discard, Outcome
from sqlalchemy import select

from services.letters.facts import Content, make_facts, number_of, read_content, read_people
from services.letters.jobs import NoticeReview
from services.letters.recipients import find_recipients, make_letter
from services.letters.rules import LetterRules
from services.mail import outbox
from services.school.models import Event, EventState, Role, User

Step = Literal["requested", "accepted", "refused"]

STEPS: dict[EventState, Step] = {
    EventState.REVIEW: "requested",
    EventState.PUBLISHED: "accepted",
    EventState.REFUSED: "refused",
}
STEP_OF: dict[str, Step] = {f"review_{step}": step for step in STEPS.values()}


def name_review(event_id: UUID) -> str:
    """Return what the outbox calls the review of an event."""
    return f"review:{event_id}"


def find_step(event: Event) -> Step | None:
    """Return the step of its review that an event is at.

    None for one that was deleted or cancelled, and for a former version.
    """
    is_past = event.state == EventState.PUBLISHED and event.version_of_id is not None
    gone = event.deleted_at is not None or event.cancelled_at is not None
    return None if is_past or gone else STEPS.get(event.state)


def is_asked(user_id: int | None, role: str, event: Event, step: Step) -> bool:
    """Return whether a user is told of a step: administrators of a request, else the author."""
    return role == Role.ADMIN if step == "requested" else user_id == event.author_id


def digest_step(session: Session, event: Event, step: Step) -> int:
    """Return a number that another step, content or reason changes."""
    said = json.dumps([step, _read(session, event, step), event.refusal], sort_keys=True)
    return number_of(said.encode())


def _read(session: Session, event: Event, step: Step) -> Content:
    says = read_content(session, event)
    # Those who review are shown whom an event names, others are not.
    return says | {"people": read_people(session, event)} if step == "requested" else says


def queue_reviews(
    session: Session, args: NoticeReview, rules: LetterRules, *, request_id: UUID, now: datetime
) -> Outcome:
    """Queue the mails about the present step of a review, and withdraw those about earlier ones."""
    event = session.get(Event, args.event_id)
    step = None if event is None else find_step(event)
    if event is None or step is None:
        return Discard("the event has moved on")
    asked = select(User.id).where(
        User.role == Role.ADMIN if step == "requested" else User.id == event.author_id
    )
    user_ids = set(session.execute(asked).scalars())
    user_ids &= set(args.user_ids or user_ids)
    published = None if event.version_of_id is None else session.get(Event, event.version_of_id)
    author = None if event.author_id is None else session.get(User, event.author_id)
    says = _read(session, event, step)
    said = None if published is None else _read(session, published, step)
    about, key = name_review(event.id), str(request_id)
    told = outbox.find_about(session, about)
    earlier = [
        mail.id
        for reader_id, mails in told.items()
        for mail in mails
        if mail.waits and key not in mail.dedupe_key and reader_id in (args.user_ids or told)
    ]
    reason = "overtaken: a later step of the review is told"
    outbox.withdraw(session, earlier, reason=reason, now=now)
    messages = [
        make_letter(
            f"review_{step}",
            to,
            rules,
            key=key,
            mails=told.get(to.id, ()),
            about=about,
            version=digest_step(session, event, step),
            now=now,
            title=event.title,
            facts=make_facts(says, to.locale, rules.zone, said=said),
            author=author and f"{author.first_name} {author.last_name}",
            reason=event.refusal,
            event_id=str(event.id),
        )
        for to in find_recipients(session, user_ids)
    ]
    wanted = [message for message in messages if message is not None]
    return {"queued": len(outbox.queue_many(session, wanted, now=now))}
