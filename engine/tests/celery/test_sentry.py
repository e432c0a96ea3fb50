"""What is sent to Sentry: to a server in this process that takes it."""

import gzip
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from nightshift.celery import sentry
from nightshift.celery.logs import job_context, setup
from nightshift.errors import InvalidInput
from nightshift.settings import Settings

sdk = pytest.importorskip("sentry_sdk")


@pytest.fixture
def received():
    """Yield a server's port, and what it was sent."""
    bodies = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(gzip.decompress(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, bodies
    sdk.get_client().close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_error_is_sent_without_what_may_be_private(received, monkeypatch):
    port, bodies = received
    logger = logging.getLogger("nightshift.test_sentry")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    setup("json", "INFO")
    sentry.start(Settings(_env_file=None, sentry_dsn=f"http://a-public-key@127.0.0.1:{port}/1"))
    hidden = "@".join(["anna", "school.example"])
    with job_context("mail.send", "a-job"):
        logger.info("nothing to see: %s", hidden)
        try:
            {}[hidden]
        except KeyError:
            logger.exception("job failed for %s", hidden)
    sdk.flush(5)

    said = b"".join(bodies).decode()
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
