"""What doctor and the metrics say of the mail."""

from datetime import timedelta

import pytest
from exposed import samples
from health import findings, troubles
from nightshift.observe.metrics import render_metrics

from project.mail.component import make_schedule
from services.mail.models import Mail, MailServer, MailState
from services.mail.runtime import Mailer, MailRetention
from tests.conftest import make_runtime, metric

KIND = "greeting"


def make_mail(state, at, **columns):
    values = {
        "kind": KIND,
        "dedupe_key": f"{KIND}:{state}",
        "message_id": "<1@mail.example>",
        "recipient": "anna@mail.example",
        "subject": "Hello",
        "state": state,
        "created_at": at,
        "due_at": at,
        "expires_at": at + timedelta(days=1),
    }
    return Mail(**{**values, **columns})


def add(app, *rows):
    with app.runtime.unit_of_work() as session:
        session.add_all(rows)


def test_mailbox_that_is_not_named_is_not_read(healthy):
    names = [entry.name for entry in make_schedule(healthy.runtime)]

    assert names == ["mail.sweep", "mail.prune"]


def read_metrics(app):
    return samples(render_metrics(app.runtime).decode())


def failing_since(app, **ago):
    since = app.runtime.now() - timedelta(**ago)
    return MailServer(
        name="mail.example:587", failures=3, failing_since=since, error="it refuses our password"
    )


def test_mail_that_was_just_queued_is_no_trouble(healthy):
    add(healthy, make_mail(MailState.QUEUED, healthy.runtime.now()))

    found = findings(healthy)["mail"]
    assert (found.status, found.detail) == ("ok", "none waits for a person")


def test_server_that_takes_no_mail_fails_and_says_why(healthy):
    server = failing_since(healthy, minutes=9)
    add(healthy, server)

    assert troubles(healthy) == {"mail": "fail"}
    found = findings(healthy)["mail"]
    assert found.detail.startswith("mail.example:587 takes no mail since ")
    assert found.detail.endswith(": it refuses our password")
    assert found.remedy != ""


def test_message_that_waits_for_a_person_is_a_warning(healthy):
    now = healthy.runtime.now()
    add(healthy, make_mail(MailState.UNKNOWN, now, ended_at=now))

    assert troubles(healthy) == {"mail": "warn"}
    assert (
        findings(healthy)["mail"].detail
        == "1 may have been sent, and wait for `celery -A project mail retry ID`"
    )


def test_message_that_has_been_due_for_long_is_a_warning(healthy):
    add(healthy, make_mail(MailState.QUEUED, healthy.runtime.now() - timedelta(minutes=9)))

    assert troubles(healthy) == {"mail": "warn"}
    assert findings(healthy)["mail"].detail.startswith("one is due since ")


def test_messages_are_counted_by_kind_and_state(job_app):
    now = job_app.runtime.now()
    add(job_app, make_mail(MailState.SENT, now, ended_at=now, repeats=2))

    found = read_metrics(job_app)

    counted = {
        state: found[metric("mails"), ("kind", KIND), ("state", state)] for state in MailState
    }
    assert counted == dict.fromkeys(MailState, 0) | {MailState.SENT: 1}
    assert found[metric("mail_repeats"),] == 2


def test_oldest_due_message_is_shown(job_app):
    assert read_metrics(job_app)[metric("oldest_due_mail_seconds"),] == 0

    add(job_app, make_mail(MailState.QUEUED, job_app.runtime.now() - timedelta(minutes=9)))

    assert read_metrics(job_app)[metric("oldest_due_mail_seconds"),] == pytest.approx(540, abs=60)


def test_server_that_fails_is_shown_as_long_as_it_does(job_app):
    shown = (metric("mail_server_failing_seconds"), ("server", "mail.example:587"))
    assert shown not in read_metrics(job_app)

    add(job_app, failing_since(job_app, minutes=9))

    assert read_metrics(job_app)[shown] == pytest.approx(540, abs=60)


def test_schedule_wakes_and_prunes(job_app):
    names = [entry.name for entry in job_app.composition.schedule(job_app.runtime)]

    assert {"mail.sweep", "mail.prune"} <= set(names)


def test_mailer_is_made_by_the_settings(tmp_path):
    runtime = make_runtime(
        mail_url=f"folder://{tmp_path}",
        mail_from="School <office@school.example>",
        mail_concurrency=3,
        mail_rate=60,
        mail_retry_after=timedelta(minutes=2),
    )

    terms = runtime[Mailer].terms

    assert (terms.sender, terms.concurrency, terms.rate) == ("office@school.example", 3, 60)
    assert terms.backoff.first == timedelta(minutes=2)
    assert (terms.away.first, terms.away.cap) == (timedelta(seconds=10), timedelta(minutes=10))


def test_retention_is_that_of_the_settings():
    runtime = make_runtime(mail_keep_sent=timedelta(days=3), mail_keep_failed=timedelta(days=5))

    assert runtime[MailRetention] == MailRetention(sent=timedelta(days=3), others=timedelta(days=5))
