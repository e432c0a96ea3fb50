"""The reminders' jobs."""

from nightshift.celery.task import job
from nightshift.database import Session
from nightshift.jobs import Outcome, Run

from services.reminders import reminders
from services.reminders.jobs import PruneReminders, SendReminder
from services.reminders.runtime import ReminderRules


@job(SendReminder)
def send_reminder(session: Session, args: SendReminder, run: Run) -> Outcome:
    """Queue the mail of one reminder. A second run finds it queued and queues nothing."""
    frame = run.runtime[ReminderRules].frame
    return reminders.queue_mail(session, args.reminder_id, frame, now=run.now)


@job(PruneReminders)
def prune_reminders(session: Session, args: PruneReminders, run: Run) -> Outcome:
    """Delete reminders that were mailed long ago. A second run deletes none."""
    before = run.now - run.runtime[ReminderRules].keep
    return {"deleted": reminders.prune(session, before=before)}
