"""The outbox on the development server's pages."""

import time
from datetime import timedelta
from email.message import EmailMessage

import pytest
from nightshift.testing import run_due

from services.mail import outbox
from services.mail.models import Mail
from tests.project.pages import get

HTML = "<p>Hello <a href='https://shop.example/'>Anna & co</a></p>"


@pytest.fixture
def runtime(job_app):
    return job_app.runtime


@pytest.fixture
def queue(runtime):
    """Return a function that queues a message and returns its id."""

    def call(subject="Hello", *, sensitive=False):
        content = EmailMessage()
        content["From"], content["Subject"] = "Shop <shop@shop.example>", subject
        content.set_content("Hello in plain text")
        content.add_alternative(HTML, subtype="html")
        now = runtime.now()
        message = outbox.Message(
            kind="greeting",
            dedupe_key=f"greeting:{subject}",
            recipient="anna@shop.example",
            content=content,
            expires_at=now + timedelta(days=1),
            sensitive=sensitive,
        )
        with runtime.unit_of_work() as session:
            return outbox.queue(session, message, now=now)

    return call


@pytest.fixture
def deliver(job_app, runtime):
    """Return a function that waits until a message is sent: its job is due after the debounce."""

    def call(mail_id):
        for _ in range(1000):
            run_due(job_app)
            with runtime.read_only() as session:
                if session.get_one(Mail, mail_id).ended_at is not None:
                    return
            time.sleep(0.1)
        pytest.fail("the mail was not sent")

    return call


def test_first_page_lists_the_newest_mails_first(runtime, queue):
    first, second = queue("one"), queue("<two>")

    text = get(runtime, "/").text

    there = text.index(f'<a href="/mails/{second}">&lt;two&gt;</a>')
    assert there < text.index(f'<a href="/mails/{first}">one</a>')


def test_mail_is_shown_in_a_sandbox_and_as_text(runtime, queue):
    text = get(runtime, f"/mails/{queue()}").text

    frame = '<iframe title="The mail" sandbox="allow-top-navigation-by-user-activation" srcdoc="'
    escaped = "&lt;p&gt;Hello &lt;a href=&#39;https://shop.example/&#39;&gt;Anna &amp; co&lt;/a&gt;"
    assert text.count(frame) == 1
    assert escaped in text
    assert '<pre class="card">Hello in plain text\r\n</pre>' in text


def test_sensitive_mail_that_was_sent_is_read_from_its_file(runtime, queue, deliver):
    mail_id = queue(sensitive=True)
    deliver(mail_id)

    assert "Hello in plain text" in get(runtime, f"/mails/{mail_id}").text


def test_mail_whose_text_was_erased_is_said_to_be_so(runtime, queue, deliver, tmp_path):
    mail_id = queue(sensitive=True)
    deliver(mail_id)
    [file] = (tmp_path / "mail").glob("*.eml")
    file.unlink()

    assert "Its text was erased" in get(runtime, f"/mails/{mail_id}").text


@pytest.mark.parametrize("mail_id", [1, 2**31, 10**30])
def test_unknown_mail_is_not_found(runtime, mail_id):
    assert get(runtime, f"/mails/{mail_id}").status_code == 404
