"""`celery -A project mail …`, on an installation of the test's own."""

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from nightshift.jobs import enqueue
from nightshift.testing import run_due
from sqlalchemy import select, update

from project.mail.cli import mail as command
from services.mail import outbox
from services.mail.jobs import DeliverMail
from services.mail.models import Mail, MailState
from tests.conftest import make_runtime
from tests.messages import make_content, make_message
from tests.smtp import serving

TOKEN = "ZXhhbXBsZS1leGFtcGxlLWV4YW1w"


@pytest.fixture
def run(job_app):
    """Return a function that runs a command on the test's installation."""

    def call(*words):
        context = SimpleNamespace(app=job_app)
        return CliRunner().invoke(command, [str(word) for word in words], obj=context)

    return call


@pytest.fixture
def put(job_app):
    """Return a function that queues a message and returns its id."""

    def queue(number=1, **changes):
        runtime = job_app.runtime
        changes["expires_at"] = runtime.now() + timedelta(hours=1)
        with runtime.unit_of_work() as session:
            return outbox.queue(session, make_message(number, **changes), now=runtime.now())

    return queue


def read_state(app, mail_id):
    with app.runtime.read_only() as session:
        return session.execute(select(Mail.state).where(Mail.id == mail_id)).scalar_one()


def set_state(app, mail_id, state):
    with app.runtime.unit_of_work() as session:
        session.execute(update(Mail).where(Mail.id == mail_id).values(state=state))


def test_list_shows_no_bodies(run, put):
    put(1, content=make_content(text="the body"))
    put(2, kind="digest")
    listed = json.loads(run("list", "--json").stdout)
    assert [(row["id"], row["kind"], row["recipient"]) for row in listed] == [
        (2, "digest", "person2@school.example"),
        (1, "notice", "person1@school.example"),
    ]
    assert "the body" not in run("list").stdout
    assert [
        row["id"]
        for row in json.loads(run("list", "--json", "--kind", "notice", "--state", "queued").stdout)
    ] == [1]


def test_show_keeps_what_is_sensitive(run, put):
    plain, secret = (
        put(1, content=make_content(text=f"the body, https://school.example/f/{TOKEN}.ics")),
        put(2, content=make_content(text="k3y"), sensitive=True),
    )
    assert (
        json.loads(run("show", plain, "--json").stdout)["body"]
        == "the body, https://school.example/f/….ics\n"
    )
    assert "the body" in run("show", plain).stdout
    assert json.loads(run("show", secret, "--json").stdout)["body"] == "(sensitive: not shown)"
    assert "k3y" not in run("show", secret).stdout
    assert run("show", 4711).exit_code == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://school.example/f/{TOKEN}.ics", "https://school.example/f/….ics"),
        (
            f"https://school.example/u/unsubscribe?t=WzEsMCwxNzk1.{TOKEN}",
            "https://school.example/u/unsubscribe?t=…",
        ),
        (f"https://school.example?key={TOKEN}", "https://school.example?key=…"),
        (f"https://school.example/u/verify?key={TOKEN}", "https://school.example/u/verify?key=…"),
        (
            f"https://school.example/u/reset?key={TOKEN}, until noon.",
            "https://school.example/u/reset?key=…, until noon.",
        ),
    ],
)
def test_show_masks_the_secrets_in_links(run, put, text, shown):
    mail_id = put(content=make_content(text=text))
    assert json.loads(run("show", mail_id, "--json").stdout)["body"] == f"{shown}\n"


@pytest.mark.parametrize(
    "text",
    [
        "Eltern/Erziehungsberechtigtenversammlung, x=Donaudampfschifffahrtsgesellschaft",
        "a=b, 1/2, 08:15–09:00, anna.mueller@school.example",
        "https://school.example/events/9b2f64c1?page=2",
        "https://a-very-long-name-of-a-school.example.org/timetable/2026-12-01",
    ],
)
def test_show_leaves_ordinary_text_alone(run, put, text):
    mail_id = put(content=make_content(text=text))
    assert json.loads(run("show", mail_id, "--json").stdout)["body"] == f"{text}\n"


def test_hold_release_retry(job_app, run, put):
    mail_id = put()
    assert (run("hold", mail_id).exit_code, read_state(job_app, mail_id)) == (0, MailState.HELD)
    assert (run("release", mail_id).exit_code, read_state(job_app, mail_id)) == (
        0,
        MailState.QUEUED,
    )
    assert run("retry", mail_id).exit_code == 1
    set_state(job_app, mail_id, MailState.FAILED)
    assert (run("retry", 4711, mail_id).exit_code, read_state(job_app, mail_id)) == (
        1,
        MailState.QUEUED,
    )


def test_suppress_and_remove(job_app, run, put):
    mail_id = put()
    assert (run("suppress", "person1@school.example").stdout, read_state(job_app, mail_id)) == (
        "suppressed\n",
        MailState.SUPPRESSED,
    )
    assert run("suppress", "person1@school.example", "--remove").stdout == "removed\n"
    assert (
        run("suppress", "person1@school.example", "--remove").stdout == "it was not on the list\n"
    )


def test_queued_message_lands_in_the_folder(job_app, put, tmp_path):
    mail_id = put()
    # Its job is debounced, and this one is not.
    with job_app.runtime.unit_of_work() as session:
        enqueue(session, DeliverMail(lane=1), now=job_app.runtime.now())
    run_due(job_app)
    assert read_state(job_app, mail_id) == MailState.SENT
    assert [path.suffix for path in (tmp_path / "mail").iterdir()] == [".eml"]


@pytest.fixture
def run_test(tmp_path):
    """Return a function that runs `mail test` with mail that goes to a server."""

    def call(server, address):
        runtime = make_runtime(
            database_url=f"sqlite:///{tmp_path}/none.db",
            mail_url=f"smtp://127.0.0.1:{server.port}?tls=none&timeout=60",
        )
        context = SimpleNamespace(app=SimpleNamespace(runtime=runtime))
        return CliRunner().invoke(command, ["test", address], obj=context)

    return call


def test_test_says_each_step(run_test):
    with serving() as server:
        ran = run_test(server, "anna@school.example")
        assert ran.exit_code == 0
        steps = [line.partition("  ")[0] for line in ran.stdout.splitlines()]
        assert steps == [
            "transport",
            "resolve",
            "connect",
            "EHLO",
            "MAIL FROM",
            "RCPT TO",
            "DATA",
            "message",
            "sent",
        ]
        assert server.kept[0][1] == "anna@school.example"


def test_test_fails_as_the_server_does(run_test):
    with serving(["5xx"]) as server:
        ran = run_test(server, "gone@school.example")
        assert (ran.exit_code, ran.stdout.splitlines()[-1]) == (
            1,
            "refused    RCPT TO: 550 5.1.1 … nobody of that name",
        )
        assert run_test(server, "nobody").exit_code == 2
