"""`celery -A project mail …`, on an installation of the test's own."""

import json
from contextlib import closing
from datetime import timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update

from project.bootstrap import Bootstrap
from project.cli.mail import mail as command
from project.testing import job_boot, run_due
from services.mail import outbox
from services.mail.models import Mail, MailState
from tests.conftest import make_settings
from tests.services.mail.test_outbox import content, message
from tests.smtp import serving

__all__ = ["job_boot"]


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def put(boot, number=1, **changes):
    with boot.unit_of_work() as session:
        return outbox.queue(session, message(number, expires_at=boot.now() + timedelta(hours=1), **changes), now=boot.now())


def state(boot, mail_id):
    with boot.read_only() as session:
        return session.execute(select(Mail.state).where(Mail.id == mail_id)).scalar_one()


def set_state(boot, mail_id, state):
    with boot.unit_of_work() as session:
        session.execute(update(Mail).where(Mail.id == mail_id).values(state=state))


def test_list_shows_no_bodies(job_boot):
    put(job_boot, 1, content=content(text="the body"))
    put(job_boot, 2, kind="digest")
    listed = json.loads(run("list", "--json").stdout)
    assert [(row["id"], row["kind"], row["recipient"]) for row in listed] == [
        (2, "digest", "person2@school.example"),
        (1, "notice", "person1@school.example"),
    ]
    assert "the body" not in run("list").stdout
    assert [row["id"] for row in json.loads(run("list", "--json", "--kind", "notice", "--state", "queued").stdout)] == [1]


def test_show_keeps_what_is_sensitive(job_boot):
    plain, secret = (
        put(job_boot, 1, content=content(text="the body, https://school.example/f/s3cr3t.ics")),
        put(job_boot, 2, content=content(text="k3y"), sensitive=True),
    )
    assert json.loads(run("show", plain, "--json").stdout)["body"] == "the body, https://school.example/f/….ics\n"
    assert "the body" in run("show", plain).stdout
    assert json.loads(run("show", secret, "--json").stdout)["body"] == "(sensitive: not shown)"
    assert "k3y" not in run("show", secret).stdout
    assert run("show", 4711).exit_code == 1


def test_hold_release_retry(job_boot):
    mail_id = put(job_boot)
    assert (run("hold", mail_id).exit_code, state(job_boot, mail_id)) == (0, MailState.HELD)
    assert (run("release", mail_id).exit_code, state(job_boot, mail_id)) == (0, MailState.QUEUED)
    assert run("retry", mail_id).exit_code == 1
    set_state(job_boot, mail_id, MailState.FAILED)
    assert (run("retry", 4711, mail_id).exit_code, state(job_boot, mail_id)) == (1, MailState.QUEUED)


def test_suppress_and_remove(job_boot):
    mail_id = put(job_boot)
    assert (run("suppress", "person1@school.example").stdout, state(job_boot, mail_id)) == ("suppressed\n", MailState.SUPPRESSED)
    assert run("suppress", "person1@school.example", "--remove").stdout == "removed\n"
    assert run("suppress", "person1@school.example", "--remove").stdout == "it was not on the list\n"


def test_queued_message_lands_in_the_folder(job_boot, tmp_path):
    mail_id = put(job_boot)
    # Its job is debounced, and this one is not.
    with job_boot.unit_of_work() as session:
        outbox.enqueue(session, outbox.DeliverMail(lane=1), now=job_boot.now())
    run_due(job_boot)
    assert state(job_boot, mail_id) == MailState.SENT
    assert [path.suffix for path in (tmp_path / "mail").iterdir()] == [".eml"]


@pytest.fixture
def with_server(job_boot):
    def to(server):
        job_boot.__dict__["mailer"] = Bootstrap(make_settings(mail_url=f"smtp://127.0.0.1:{server.port}?tls=none&timeout=1")).mailer
        return closing(job_boot.mailer)

    return to


def test_test_says_each_step(with_server):
    with serving() as server, with_server(server):
        ran = run("test", "anna@school.example")
        assert ran.exit_code == 0
        steps = [line.partition("  ")[0] for line in ran.stdout.splitlines()]
        assert steps == ["transport", "resolve", "connect", "EHLO", "MAIL FROM", "RCPT TO", "DATA", "message", "sent"]
        assert server.kept[0][1] == "anna@school.example"


def test_test_fails_as_the_server_does(with_server):
    with serving(["5xx"]) as server, with_server(server):
        ran = run("test", "gone@school.example")
        assert (ran.exit_code, ran.stdout.splitlines()[-1]) == (1, "refused    RCPT TO: 550 5.1.1 … nobody of that name")
    assert run("test", "nobody").exit_code == 1
