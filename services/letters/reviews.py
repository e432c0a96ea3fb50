"""Mails about the review of an event: its request to the reviewers, its end to the author."""

from datetime import datetime
from uuid import UUID

from nightshift.database import Session
from nightshift.jobs import Discard, Outcome
from sqlalchemy import select

from services.letters.facts import make_facts, read_content
from services.letters.jobs import NoticeReview
from services.letters.recipients import find_recipients, make_letter
from services.letters.rules import LetterRules
from services.mail import outbox
from services.school.models import Event, EventState, Role, User

STATES = {
    "requested": EventState.REVIEW,
    "accepted": EventState.PUBLISHED,
    "refused": EventState.REFUSED,
}


def queue_reviews(
    session: Session, args: NoticeReview, rules: LetterRules, *, request_id: UUID, now: datetime
) -> Outcome:
    """Queue the mails about one step of a review, to administrators or to the author."""
    event = session.get(Event, args.event_id)
    if event is None or event.state != STATES[args.step] or event.deleted_at is not None:
        return Discard("the event has moved on")
    asked = select(User.id).where(
        User.role == Role.ADMIN if args.step == "requested" else User.id == event.author_id
    )
    published = None if event.version_of_id is None else session.get(Event, event.version_of_id)
    author = None if event.author_id is None else session.get(User, event.author_id)
    says = read_content(session, event)
    said = None if published is None else read_content(session, published)
    messages = [
        make_letter(
            f"review_{args.step}",
            to,
            rules,
            about=str(request_id),
            now=now,
            title=event.title,
            facts=make_facts(says, to.locale, rules.zone, said=said),
            author=author and f"{author.first_name} {author.last_name}",
            reason=event.refusal,
            event_id=str(event.id),
        )
        for to in find_recipients(session, session.execute(asked).scalars().all())
    ]
    wanted = [message for message in messages if message is not None]
    return {"queued": len(outbox.queue_many(session, wanted, now=now))}
