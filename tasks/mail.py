"""The mail's jobs."""

from nightshift.celery.task import job
from nightshift.database import Session
from nightshift.jobs import Outcome, Run

from services.mail import delivery, outbox
from services.mail.jobs import DeliverMail, PruneMail, ReadBounces, SweepMail
from services.mail.runtime import BounceDesk, Mailer, MailRetention


@job(DeliverMail, own_transactions=True)
def deliver_mail(args: DeliverMail, run: Run) -> None:
    """Send what is due. A second run sends what the first did not claim.

    A message that the first claimed and did not record may have been sent.
    """
    mailer = run.runtime[Mailer]
    delivery.deliver(run, args.lane, mailer.transport, mailer.terms, mailer.check)


@job(SweepMail)
def sweep_mail(session: Session, args: SweepMail, run: Run) -> None:
    """Release messages of dead senders, end those past their deadline, and start the delivery.

    A second run finds nothing left to release.
    """
    delivery.release_orphans(session, run.runtime[Mailer].terms)
    outbox.enqueue_delivery(session, now=run.now)


@job(PruneMail, own_transactions=True)
def prune_mail(args: PruneMail, run: Run) -> Outcome:
    """Delete messages whose time in the outbox is over. A second run deletes none."""
    keep = run.runtime[MailRetention]
    return outbox.prune(run.unit_of_work, keep_sent=keep.sent, keep_others=keep.others)


@job(ReadBounces, own_transactions=True)
def read_bounces(args: ReadBounces, run: Run) -> Outcome:
    """Settle the reports that have arrived. A second run finds those that the first did not read.

    A report that the first settled, and did not mark as read, counts once.
    """
    return run.runtime[BounceDesk].collect(run.unit_of_work, now=run.now)
