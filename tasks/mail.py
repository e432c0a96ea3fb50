"""The mail's jobs."""

from collections.abc import Collection, Iterable
from datetime import date
from functools import partial

from project.bootstrap import bootstrap
from project.task import job
from services.calendars import agendas, audience, feeds, revisions
from services.calendars.models import FeedKind
from services.calendars.window import Window
from services.database import Session
from services.jobs import Outcome, Run
from services.mail import accounts, delivery, digests, notices, outbox, reviews
from services.mail.jobs import (
    DeliverMail,
    NoticeEvent,
    NoticeReview,
    PruneMail,
    QueueDigests,
    QueueNotices,
    SendDigests,
    SendKey,
    SendWelcome,
    SweepMail,
)


@job(DeliverMail, own_transactions=True)
def deliver_mail(args: DeliverMail, run: Run) -> None:
    """Send what is due. A second run sends what the first did not claim; what it claimed and did not record may have been sent."""
    delivery.deliver(run, args.lane, bootstrap().mailer, bootstrap().mail_terms)


@job(SweepMail)
def sweep_mail(session: Session, args: SweepMail, run: Run) -> None:
    """See to messages whose sender died or whose deadline passed, and wake the delivery. A second run finds none."""
    delivery.clear_up(session, bootstrap().mail_terms)
    outbox.wake(session, now=run.now)


@job(PruneMail, own_transactions=True)
def prune_mail(args: PruneMail, run: Run) -> Outcome:
    """Delete messages that ended longer ago than they are kept. A second run finds none, and deletes none."""
    settings = bootstrap().settings
    return outbox.prune(run.unit_of_work, keep_sent=settings.mail_keep_sent, keep_others=settings.mail_keep_failed)


@job(SendWelcome)
def send_welcome(session: Session, args: SendWelcome, run: Run) -> Outcome:
    """Queue a welcome with the address of the user's calendar. A second run finds it queued."""
    feeds.ensure(session, {FeedKind.USER: [args.user_id]})
    return accounts.send_welcome(session, args.user_id, bootstrap().mail_rules, request_id=run.id, now=run.now)


@job(SendKey)
def send_key(session: Session, args: SendKey, run: Run) -> Outcome:
    """Make a key and queue the mail with it. A second run finds it queued, and makes no other key."""
    return accounts.send_key(session, args.user_id, args.purpose, bootstrap().mail_rules, request_id=run.id, now=run.now)


@job(NoticeEvent)
def notice_event(session: Session, args: NoticeEvent, run: Run) -> Outcome:
    """Write what readers are to be told of an event, and start the jobs that queue it. A second run finds nothing new."""
    rules = bootstrap().rules
    affected = partial(audience.affected, zone=rules.zone)
    told = partial(revisions.told, domain=rules.domain, zone=rules.zone)
    return notices.tell(session, run, args.event_id, affected=affected, told=told, rules=bootstrap().mail_rules)


@job(QueueNotices)
def queue_notices(session: Session, args: QueueNotices, run: Run) -> Outcome:
    """Queue one version's mails to some readers. A second run finds them queued."""
    return notices.queue(session, args, bootstrap().mail_rules, now=run.now)


@job(NoticeReview)
def notice_review(session: Session, args: NoticeReview, run: Run) -> Outcome:
    """Queue the mails about one step of a review. A second run finds them queued."""
    return reviews.queue(session, args, bootstrap().mail_rules, request_id=run.id, now=run.now)


@job(SendDigests)
def send_digests(session: Session, args: SendDigests, run: Run) -> Outcome:
    """Start the jobs that queue next week's digests. What those of a second run are to queue is queued."""
    return digests.plan(session, run, bootstrap().mail_rules)


@job(QueueDigests)
def queue_digests(session: Session, args: QueueDigests, run: Run) -> Outcome:
    """Queue the digests of some users. A second run finds them queued."""
    rules = bootstrap().rules

    def held(session: Session, first: date, last: date, user_ids: Collection[int]) -> Iterable[digests.Agenda]:
        return agendas.agendas(session, Window(first, last, run.now, rules.zone), user_ids, school_name=rules.school_name)

    return digests.queue(session, args, held, bootstrap().mail_rules, now=run.now)
