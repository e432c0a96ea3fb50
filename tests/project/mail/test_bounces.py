"""Undelivered mail from end to end: out to a server, and back by mailbox, post or command."""

import time
from types import SimpleNamespace

import anyio
import httpx
import pytest
from click.testing import CliRunner
from exposed import samples
from nightshift.jobs import enqueue
from nightshift.jobs.models import Job
from nightshift.observe.metrics import render_metrics
from nightshift.testing import run_due
from nightshift.web.server import make_app
from sqlalchemy import select

from project.mail.cli import mail as command
from services.mail import bounces, outbox
from services.mail.bounces import LARGEST
from services.mail.jobs import ReadBounces
from services.mail.models import Suppression
from tests import imap, reports
from tests.conftest import metric
from tests.messages import make_message
from tests.reports import Sent
from tests.smtp import serving

SECRET = "n2Vx8qLr0ZtKcY5uWb7d"


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def mailbox():
    with imap.serving() as box:
        yield box


@pytest.fixture
def job_environment(job_environment, server, mailbox):
    return job_environment | {
        "MAIL_URL": f"smtp://127.0.0.1:{server.port}?tls=none",
        "BOUNCE_ADDRESS": "bounces@school.example",
        "BOUNCE_SECRET": SECRET,
        "BOUNCE_MAILBOX": mailbox.url,
        "BOUNCE_MAILBOX_PASSWORD": imap.PASSWORD,
    }


@pytest.fixture
def sent(job_app, server):
    """Return a message as the server took it."""
    runtime = job_app.runtime
    with runtime.unit_of_work() as session:
        expires = runtime.now().replace(year=2199)
        outbox.queue(session, make_message(expires_at=expires), now=runtime.now())
    for _ in range(1000):
        run_due(job_app)
        if server.kept:
            break
        time.sleep(0.1)
    [(message_id, recipient, _content)] = server.kept
    return Sent(message_id, recipient, *server.return_paths)


def read_refusals(app):
    with app.runtime.read_only() as session:
        return session.execute(select(Suppression.address, Suppression.refusals)).all()


def run(app, *words, **options):
    return CliRunner().invoke(command, words, obj=SimpleNamespace(app=app), **options)


def post(app, content, secret=SECRET):
    async def ask():
        transport = httpx.ASGITransport(make_app(app.runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            headers = {"authorization": f"Bearer {secret}"}
            return await client.post("/mail/bounces", content=content, headers=headers)

    return anyio.run(ask)


def test_each_message_has_a_return_path_of_its_own(sent):
    assert bounces.read_return_path(sent.return_path, SECRET) == 1
    assert sent.return_path.startswith("bounces+1.")


def test_reports_in_the_mailbox_are_settled_by_a_job(job_app, sent, mailbox):
    lost = Sent("<rewritten@mx.example>", sent.recipient, sent.return_path)
    mailbox.messages = [reports.postfix(lost), reports.vacation(Sent("<x@y>", "a@b.example"))]

    for expected in ({"failed": 1, "other, of no message": 1}, {}):
        with job_app.runtime.unit_of_work() as session:
            job_id = enqueue(session, ReadBounces(), now=job_app.runtime.now())
        run_due(job_app)
        with job_app.runtime.read_only() as session:
            assert session.get_one(Job, job_id).result == expected

    assert read_refusals(job_app) == [(sent.recipient, 1)]
    values = samples(render_metrics(job_app.runtime).decode())
    assert values[metric("mail_bounces"), ("kind", "failed"), ("ours", "yes")] == 1


def test_mailbox_is_read_every_few_minutes_when_there_is_one(job_app):
    names = [entry.name for entry in job_app.composition.schedule(job_app.runtime)]

    assert "mail.bounces" in names


def test_report_that_is_posted_is_settled(job_app, sent):
    answers = [post(job_app, reports.gmail(sent)) for _ in range(2)]

    assert [one.json() for one in answers] == [{"kind": "failed", "mail": 1}] * 2
    assert read_refusals(job_app) == [(sent.recipient, 1)]


@pytest.mark.parametrize(
    ("content", "secret", "status"),
    [
        (b"x", "another", 404),
        (b"x", "", 404),
        (b"", SECRET, 400),
        (b"x" * (LARGEST + 1), SECRET, 413),
    ],
)
def test_other_posts_are_refused(job_app, content, secret, status):
    assert post(job_app, content, secret).status_code == status
    with job_app.runtime.read_only() as session:
        assert bounces.find_bounces(session) == []


def test_report_is_settled_by_a_command_and_listed(job_app, sent):
    raw = reports.exim(sent)
    said = [run(job_app, "settle", "-", input=raw).stdout for _ in range(2)]
    run(job_app, "settle", "-", input=b"Subject: hello\r\n\r\n")

    assert said == ["failed 5.1.1, of mail 1\n", "failed 5.1.1, of mail 1; it was settled before\n"]
    listed = run(job_app, "bounces").stdout
    assert "550 5.1.1 User unknown" in listed
    assert "hello" in listed
    assert sent.recipient not in listed
    assert "failed 5.1.1" in run(job_app, "list").stdout
    assert "came_back    failed 5.1.1" in run(job_app, "show", "1").stdout
