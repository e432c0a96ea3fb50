"""The reminders' jobs: in this process, and by a real worker."""

from email import message_from_bytes, policy

import pytest
from nightshift.jobs import enqueue
from nightshift.testing import run_due

from services.mail import outbox
from services.reminders import reminders
from services.reminders.jobs import PruneReminders


def add(runtime, text):
    with runtime.unit_of_work() as session:
        now = runtime.now()
        return reminders.add(session, "anna@shop.example", text, due_at=now, now=now)


def test_mail_of_a_due_reminder_is_queued(job_app):
    add(job_app.runtime, "Order paper")

    rows = run_due(job_app)

    assert [(row.kind, row.state) for row in rows] == [("reminders.send", "succeeded")]
    with job_app.runtime.read_only() as session:
        [mail] = outbox.find_mails(session)
    assert rows[0].result == {"mail_id": mail.id}


def test_pruning_says_how_many_were_deleted(job_app):
    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        enqueue(session, PruneReminders(), now=runtime.now())

    [row] = run_due(job_app)

    assert row.result == {"deleted": 0}


@pytest.mark.worker
def test_worker_mails_a_reminder(installation):
    installation.worker()

    add(installation.runtime, "Order paper & ink")

    [file] = installation.until(lambda: list((installation.folder / "mail").glob("*.eml")))
    mail = message_from_bytes(file.read_bytes(), policy=policy.default)
    assert mail["Subject"] == "Reminder: Order paper & ink"
    assert mail.get_body(("html",)).get_content().count("Order paper &amp; ink") >= 1
