"""The mail's jobs."""

from project.bootstrap import bootstrap
from project.task import job
from services.calendars import feeds
from services.database import Session
from services.jobs import Outcome, Run
from services.mail import accounts, delivery, outbox
from services.mail.jobs import DeliverMail, PruneMail, SendKey, SendWelcome, SweepMail


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
    feeds.ensure(session)
    return accounts.send_welcome(session, args.user_id, bootstrap().mail_rules, request_id=run.id, now=run.now)


@job(SendKey)
def send_key(session: Session, args: SendKey, run: Run) -> Outcome:
    """Make a key and queue the mail with it. A second run finds it queued, and makes no other key."""
    return accounts.send_key(session, args.user_id, args.purpose, bootstrap().mail_rules, request_id=run.id, now=run.now)
