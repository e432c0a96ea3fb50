"""Reminders, from their request to their mail."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from email_validator import EmailNotValidError, validate_email
from nightshift.database import Session
from nightshift.errors import InvalidInput
from nightshift.jobs import Discard, Outcome, enqueue
from sqlalchemy import delete, func, select

from services.mail import outbox
from services.mail.compose import Frame, compose
from services.reminders.jobs import SendReminder
from services.reminders.models import Reminder
from services.translation import Locale

TEMPLATES = Path(__file__).parent / "templates"

# A reminder that could not be mailed within this time is not mailed any more.
EXPIRES_AFTER = timedelta(days=2)

BATCH = 10_000


def add(session: Session, address: str, text: str, *, due_at: datetime, now: datetime) -> int:
    """Add a reminder and, in the same transaction, the job that mails it when it is due.

    Return its id. Raises InvalidInput for an address that is malformed, and for an unusable text.
    """
    try:
        validate_email(address, check_deliverability=False)
    except EmailNotValidError as error:
        raise InvalidInput(f"{address!r} is not a mail address: {error}") from error
    if not text.strip() or not text.isprintable():
        raise InvalidInput(f"the text {text!r} must be one line that is not empty")
    reminder = Reminder(address=address, text=text, due_at=due_at)
    session.add(reminder)
    session.flush()
    enqueue(session, SendReminder(reminder_id=reminder.id), now=now, run_at=due_at)
    return reminder.id


def queue_mail(session: Session, reminder_id: int, frame: Frame, *, now: datetime) -> Outcome:
    """Queue the mail of a reminder, and mark the reminder as mailed."""
    reminder = session.get(Reminder, reminder_id)
    if reminder is None:
        return Discard("the reminder is gone")
    message = outbox.Message(
        kind="reminder",
        dedupe_key=f"reminder:{reminder.id}",
        recipient=reminder.address,
        content=compose("reminder", Locale.ENGLISH, frame, text=reminder.text),
        expires_at=now + EXPIRES_AFTER,
    )
    mail_id = outbox.queue(session, message, now=now)
    reminder.mailed_at = now
    return {"mail_id": mail_id}


def prune(session: Session, *, before: datetime) -> int:
    """Delete reminders that were mailed before an instant, and return how many.

    One call deletes a limited number, so that its transaction is short; the next run goes on.
    """
    old = select(Reminder.id).where(Reminder.mailed_at < before).limit(BATCH)
    deleted = session.execute(delete(Reminder).where(Reminder.id.in_(old)).returning(Reminder.id))
    return len(deleted.all())


def find_reminders(session: Session, *, limit: int) -> Sequence[Reminder]:
    """Return at most `limit` reminders, the latest due one first."""
    latest_first = (Reminder.due_at.desc(), Reminder.id.desc())
    return session.scalars(select(Reminder).order_by(*latest_first).limit(limit)).all()


def count_overdue(session: Session, *, before: datetime) -> int:
    """Count the reminders that were due before an instant and are not mailed."""
    overdue = (Reminder.mailed_at.is_(None), Reminder.due_at < before)
    return session.scalars(select(func.count()).select_from(Reminder).where(*overdue)).one()
