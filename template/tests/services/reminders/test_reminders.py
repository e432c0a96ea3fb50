"""Reminders on both databases, in a transaction that is rolled back."""

from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest
from nightshift.errors import InvalidInput
from nightshift.jobs import Discard
from nightshift.testing import assert_enqueued

from services.mail import outbox
from services.mail.compose import Frame
from services.reminders import reminders
from services.reminders.jobs import SendReminder
from services.reminders.models import Reminder
from tests.conftest import NOW

FRAME = Frame("Shop <noreply@shop.example>", "Shop", ZoneInfo("UTC"), reminders.TEMPLATES)
DAY = timedelta(days=1)


def add(session, text="Order paper", **changes):
    due = {"due_at": NOW + DAY, "now": NOW} | changes
    return reminders.add(session, "anna@shop.example", text, **due)


def test_reminder_is_added_with_the_job_that_mails_it(session):
    reminder_id = add(session)

    assert session.get_one(Reminder, reminder_id).mailed_at is None
    assert_enqueued(session, SendReminder, reminder_id=reminder_id)


@pytest.mark.parametrize(
    ("address", "text"),
    [("anna", "Order paper"), ("anna@shop.example", " "), ("anna@shop.example", "two\nlines")],
)
def test_unusable_request_is_refused(session, address, text):
    with pytest.raises(InvalidInput):
        reminders.add(session, address, text, due_at=NOW, now=NOW)


def test_mail_is_queued_once_and_noted(session):
    reminder_id = add(session)

    first = reminders.queue_mail(session, reminder_id, FRAME, now=NOW)

    assert reminders.queue_mail(session, reminder_id, FRAME, now=NOW) == first
    [mail] = outbox.find_mails(session, kind="reminder")
    assert first == {"mail_id": mail.id}
    assert (mail.recipient, mail.subject) == ("anna@shop.example", "Reminder: Order paper")
    assert session.get_one(Reminder, reminder_id).mailed_at == NOW


def test_reminder_that_is_gone_is_discarded(session):
    assert reminders.queue_mail(session, 7, FRAME, now=NOW) == Discard("the reminder is gone")


def test_only_what_was_mailed_before_is_pruned(session):
    old, new, _ = add(session, "old"), add(session, "new"), add(session, "not mailed")
    reminders.queue_mail(session, old, FRAME, now=NOW - DAY)
    reminders.queue_mail(session, new, FRAME, now=NOW)

    assert reminders.prune(session, before=NOW) == 1
    assert [one.text for one in reminders.find_reminders(session, limit=9)] == ["not mailed", "new"]


def test_only_what_is_due_and_not_mailed_is_overdue(session):
    add(session, "later")
    add(session, "overdue", due_at=NOW - DAY)
    mailed = add(session, "mailed", due_at=NOW - DAY)
    reminders.queue_mail(session, mailed, FRAME, now=NOW)

    assert reminders.count_overdue(session, before=NOW) == 1
