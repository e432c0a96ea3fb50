"""What is sent to Sentry: to a server in this process that takes it."""

import gzip
import json
import logging

import pytest
from nightshift.celery import sentry
from nightshift.celery.logs import job_context, setup
from nightshift.errors import InvalidInput
from nightshift.settings import Settings
from receiving import receiving

sdk = pytest.importorskip("sentry_sdk")


@pytest.fixture
def received():
    with receiving() as received:
        yield received
        sdk.get_client().close()


def test_error_is_sent_without_what_may_be_private(received, monkeypatch):
    logger = logging.getLogger("nightshift.test_sentry")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    setup("json", "INFO")
    sentry.start(
        Settings(_env_file=None, sentry_dsn=f"http://a-public-key@127.0.0.1:{received.port}/1")
    )
    # Not as it stands: an event shows the lines of code around an error.
    name = "anna"
    hidden = f"{name}@school.example"
    with job_context("mail.send", "a-job"):
        logger.info("nothing to see: %s", hidden)
        try:
            {}[hidden]
        except KeyError:
            logger.exception("job failed for %s", hidden)
    sdk.flush(60)

    said = b"".join(map(gzip.decompress, received.bodies)).decode()
    [event] = [json.loads(line) for line in said.splitlines() if '"logentry"' in line]
    assert [one["type"] for one in event["exception"]["values"]] == ["KeyError"]
    assert event["logentry"] == {"message": "job failed for %s"}
    assert event["extra"] == {"task": "mail.send", "job": "a-job"}
    assert hidden not in said


def test_without_an_address_nothing_is_started(monkeypatch):
    monkeypatch.setattr(sdk, "init", None)

    sentry.start(Settings(_env_file=None))


def test_address_that_is_none_is_refused():
    with pytest.raises(InvalidInput, match="SENTRY_DSN: "):
        sentry.start(Settings(_env_file=None, sentry_dsn="nonsense-nonsense"))
