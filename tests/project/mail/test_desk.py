"""The outbox at the desk."""

from datetime import timedelta
from email.message import EmailMessage

import pytest
from nightshift.jobs.models import Action
from sqlalchemy import select, update

from services.mail import outbox
from services.mail.models import Mail, MailState, Suppression
from tests.project.desk import open_desk


@pytest.fixture
def desk(job_app, monkeypatch):
    return open_desk(job_app, monkeypatch)


@pytest.fixture
def queue(job_app):
    """Return what queues a message, perhaps in another state, and returns its id."""

    def queue(name="anna", **values):
        content = EmailMessage()
        content["From"], content["Subject"] = "school@school.example", f"Hello {name}"
        content.set_content("the body of the mail")
        now = job_app.runtime.now()
        sensitive = values.pop("sensitive", False)
        with job_app.runtime.unit_of_work() as session:
            mail_id = outbox.queue(
                session,
                outbox.Message(
                    kind="greeting", dedupe_key=name, recipient=f"{name}@home.example",
                    content=content, expires_at=now + timedelta(days=1), sensitive=sensitive,
                ),
                now=now,
            )  # fmt: skip
            if values:
                session.execute(update(Mail).where(Mail.id == mail_id).values(values))
        return mail_id

    return queue


def read(app, mail_id):
    with app.runtime.read_only() as session:
        return session.execute(select(Mail.state).where(Mail.id == mail_id)).scalar_one()


def test_message_is_shown_without_its_body_and_its_address(desk, queue):
    queue()

    page = desk.get("/mail").text

    assert "Hello anna" in page
    assert "a…@home.example" in page
    assert "anna@home.example" not in page
    assert "the body" not in page


def test_sensitive_message_shows_neither_address_nor_subject(desk, queue):
    queue(sensitive=True)

    page = desk.get("/mail").text

    assert "home.example" not in page
    assert "Hello" not in page
    assert "sensitive: not shown" in page


@pytest.mark.parametrize(
    ("before", "verb", "after"),
    [
        (MailState.QUEUED, "hold", MailState.HELD),
        (MailState.HELD, "release", MailState.QUEUED),
        (MailState.FAILED, "retry", MailState.QUEUED),
        (MailState.QUEUED, "suppress", MailState.SUPPRESSED),
    ],
)
def test_each_act_is_done_and_kept(job_app, desk, queue, *, before, verb, after):
    mail_id = queue(state=before)
    assert f'action="/mail/{mail_id}/{verb}"' in desk.get("/mail").text

    assert desk.post(f"/mail/{mail_id}/{verb}", back="/mail").status_code == 303

    assert read(job_app, mail_id) == after
    with job_app.runtime.read_only() as session:
        [action] = session.scalars(select(Action))
        assert (action.by, action.verb, action.subject) == ("ada", verb, f"mail {mail_id}")
        listed = session.scalars(select(Suppression.address)).all()
    assert listed == (["anna@home.example"] if verb == "suppress" else [])


def test_act_that_comes_too_late_says_why(job_app, desk, queue):
    mail_id = queue(state=MailState.SENT)

    desk.post(f"/mail/{mail_id}/hold")

    assert read(job_app, mail_id) == MailState.SENT
    assert desk.said() == f"mail {mail_id} is sent, not queued"


def test_list_filters_by_state_and_goes_on_by_id(desk, queue, monkeypatch):
    monkeypatch.setattr("project.mail.desk.PAGE", 2)
    for name in ("anna", "bert", "carl"):
        queue(name)
    queue("dora", state=MailState.FAILED)

    page = desk.get("/mail?state=queued").text
    assert ("Hello carl" in page, "Hello anna" in page, "Hello dora" in page) == (
        True,
        False,
        False,
    )
    assert "before=" in page
    assert "Hello dora" in desk.get("/mail?state=failed").text
    assert desk.get("/mail?state=lost").status_code == 400


def test_tile_counts_by_state(desk, queue):
    queue(state=MailState.FAILED)

    assert '<a href="/mail?state=failed">1</a>' in desk.get("/").text
