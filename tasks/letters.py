"""The letters' jobs."""

from collections.abc import Collection
from functools import partial
from uuid import UUID

from nightshift.celery.task import job
from nightshift.database import Session
from nightshift.jobs import Outcome, Run

from services.calendars import agendas, audience, feeds, revisions
from services.calendars.models import FeedKind
from services.calendars.sync import Rules
from services.letters import accounts, digests, notices, reviews
from services.letters.jobs import (
    NoticeEvent,
    NoticeReview,
    QueueDigests,
    QueueNotices,
    SendDigests,
    SendKey,
    SendWelcome,
)
from services.letters.rules import LetterRules


@job(SendWelcome)
def send_welcome(session: Session, args: SendWelcome, run: Run) -> Outcome:
    """Queue a welcome with the address of the user's calendar. A second run queues no other."""
    feeds.add_missing(session, {FeedKind.USER: [args.user_id]})
    return accounts.queue_welcome(
        session, args.user_id, run.runtime[LetterRules], request_id=run.id, now=run.now
    )


@job(SendKey)
def send_key(session: Session, args: SendKey, run: Run) -> Outcome:
    """Make a key and queue the mail with it. A second run makes no other key and no other mail."""
    return accounts.queue_key(
        session,
        args.user_id,
        args.purpose,
        run.runtime[LetterRules],
        request_id=run.id,
        now=run.now,
    )


@job(NoticeEvent)
def notice_event(session: Session, args: NoticeEvent, run: Run) -> Outcome:
    """Write an event's next version, and start the jobs that queue its mails.

    A second run finds that nothing has changed.
    """
    rules = run.runtime[Rules]
    return notices.write_notice(
        session,
        run,
        args.event_id,
        affected=partial(audience.find_affected, zone=rules.zone),
        revise=partial(revisions.revise, domain=rules.domain, zone=rules.zone),
        rules=run.runtime[LetterRules],
    )


@job(QueueNotices)
def queue_notices(session: Session, args: QueueNotices, run: Run) -> Outcome:
    """Tell some readers of an event what is new to them. A second run finds all told."""

    def find_showing(session: Session, event_id: UUID, user_ids: Collection[int]) -> set[int]:
        window = run.runtime[Rules].window(run.now)
        return agendas.find_showing(session, window, event_id, user_ids)

    return notices.queue_notices(
        session, args, run.runtime[LetterRules], shown=find_showing, now=run.now
    )


@job(NoticeReview)
def notice_review(session: Session, args: NoticeReview, run: Run) -> Outcome:
    """Queue the mails about the present step of a review. A second run queues no others."""
    return reviews.queue_reviews(
        session, args, run.runtime[LetterRules], request_id=run.id, now=run.now
    )


@job(SendDigests)
def send_digests(session: Session, args: SendDigests, run: Run) -> Outcome:
    """Start the jobs that queue a week's digests. The jobs of a second run queue no others."""
    return digests.spawn_digests(session, run, run.runtime[LetterRules])


@job(QueueDigests)
def queue_digests(session: Session, args: QueueDigests, run: Run) -> Outcome:
    """Queue the digests of some users. A second run queues no others."""
    read_weeks = agendas.make_reader(run.runtime[Rules], lambda: run.now)
    return digests.queue_digests(session, args, read_weeks, run.runtime[LetterRules], now=run.now)
