"""Mails about the review of an event: to the reviewers that it is requested, to its author how it ended."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from services.database import Session
from services.jobs import Discard, Outcome
from services.mail import outbox
from services.mail.compose import MailRules
from services.mail.facts import content, facts
from services.mail.jobs import NoticeReview
from services.mail.recipients import letter, recipients
from services.school.models import Event, EventState, Role, User

STATES = {"requested": EventState.REVIEW, "accepted": EventState.PUBLISHED, "refused": EventState.REFUSED}


def queue(session: Session, args: NoticeReview, rules: MailRules, *, request_id: UUID, now: datetime) -> Outcome:
    """Queue the mails about one step of a review, to administrators or to the author."""
    event = session.get(Event, args.event_id)
    if event is None or event.state != STATES[args.step] or event.deleted_at is not None:
        return Discard("the event has moved on")
    asked = select(User.id).where(User.role == Role.ADMIN if args.step == "requested" else User.id == event.author_id)
    published = None if event.version_of_id is None else session.get(Event, event.version_of_id)
    author = None if event.author_id is None else session.get(User, event.author_id)
    says, said = content(session, event), None if published is None else content(session, published)
    messages = [
        letter(
            f"review_{args.step}",
            to,
            rules,
            about=str(request_id),
            now=now,
            title=event.title,
            facts=facts(says, to.locale, rules.zone, said=said),
            author=author and f"{author.first_name} {author.last_name}",
            reason=event.refusal,
            event_id=str(event.id),
        )
        for to in recipients(session, session.execute(asked).scalars().all())
    ]
    return {"queued": len(outbox.queue_many(session, [message for message in messages if message is not None], now=now))}
