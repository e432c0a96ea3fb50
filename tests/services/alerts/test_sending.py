"""How an alert is sent: by mail through the outbox, and to a real webhook."""

import json
from email import message_from_bytes
from email.policy import default

import pytest
from nightshift.errors import TransientError
from receiving import receiving
from servers import free_port
from sqlalchemy import select

from services.alerts import sending
from services.alerts.jobs import SendAlert
from services.alerts.sending import AlertTerms
from services.mail.models import Mail
from tests.conftest import NOW

ALERT = SendAlert(after="the first", failing=("beat",), lines=("beat fails: gone",), until=NOW)


def terms(**to):
    return AlertTerms("shop", "Shop <noreply@shop.example>", **to)


def test_mail_is_queued_once(session):
    for _ in range(2):
        sending.queue_mail(session, ALERT, terms(address="ops@shop.example"), now=NOW)

    row = session.execute(select(Mail)).scalar_one()
    mail = message_from_bytes(row.body, policy=default)
    assert (mail["To"], mail["Subject"]) == ("ops@shop.example", "shop: beat fails")
    assert mail.get_content().splitlines()[0] == "beat fails: gone"


@pytest.fixture
def hook():
    with receiving() as received:
        yield received


def test_webhook_gets_json(hook):
    sending.post(ALERT, terms(webhook=f"{hook.url}/secret"))

    assert list(map(json.loads, hook.bodies)) == [
        {
            "project": "shop",
            "text": "shop: beat fails: gone\n\n`celery -A project doctor` says what to do.",
            "lines": ["beat fails: gone"],
            "failing": ["beat"],
            "after": "the first",
        }
    ]


@pytest.mark.parametrize("code", [302, 404, 500])
def test_webhook_that_does_not_take_it_is_tried_again_and_not_named(hook, code):
    hook.codes.append(code)
    with pytest.raises(TransientError) as refused:
        sending.post(ALERT, terms(webhook=f"{hook.url}/secret"))

    assert str(refused.value) == f"the webhook answers {code}"
    assert len(hook.bodies) == 1


def test_webhook_that_is_away_is_tried_again_and_not_named():
    with pytest.raises(TransientError) as refused:
        sending.post(ALERT, terms(webhook=f"http://127.0.0.1:{free_port()}/secret"))

    assert str(refused.value) == "the webhook does not answer: URLError"
