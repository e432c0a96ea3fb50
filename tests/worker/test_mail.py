"""Mail by real workers to a real server that misbehaves, and what of it is to be seen where."""

import json
import random
from datetime import timedelta
from email.message import EmailMessage

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select, text

from project.cli.mail import mail as command
from project.doctor import examine
from project.metrics import exposition
from services.jobs import enqueue
from services.mail import outbox
from services.mail.jobs import SweepMail
from services.mail.models import ENDED, Mail, MailServer, MailState
from tests.faults.conftest import kill_something
from tests.faults.servers import free_port
from tests.smtp import ServerProcess
from tests.worker.conftest import any_installation

QUICK = {"heartbeat_interval": "PT1S", "worker_silent_after": "PT5S", "relay_interval": "PT0.2S", "mail_retry_after": "PT1S"}
EVERYTHING = {"4xx": 0.05, "5xx": 0.02, "432": 0.005, "data 4xx": 0.03, "data 5xx": 0.01, "drop": 0.02, "hang": 0.002}
EVERYTHING |= {"data drop": 0.02, "data hang": 0.002, "kept, then drop": 0.02, "kept, then hang": 0.002}


def message(number, *, resend=True, sensitive=False, expires_in=timedelta(hours=1), now, key=""):
    content = EmailMessage()
    content["From"], content["Subject"] = "School <noreply@school.example>", f"Number {number}"
    content.set_content(f"What is said to number {number}. {key}\n")
    return outbox.Message(
        kind="notice" if resend else "reset",
        dedupe_key=f"probe:{number}",
        recipient=f"recipient{number}@school.example",
        content=content,
        resend=resend,
        sensitive=sensitive,
        expires_at=now + expires_in,
    )


def put(installation, number, **changes):
    now = installation.boot.now()
    messages = [message(index, resend=index % 4 > 0, now=now, **changes) for index in range(number)]
    with installation.boot.unit_of_work() as session:
        return outbox.queue_many(session, messages, now=now)


def open_mails(installation):
    with installation.boot.read_only() as session:
        return session.execute(select(func.count()).where(Mail.state.not_in(ENDED))).scalar_one()


def account(installation, server):
    """Compare what the outbox says with what the server has, message by message, and return the table's figures."""
    with installation.boot.read_only() as session:
        rows = session.execute(select(Mail.message_id, Mail.state, Mail.repeats, Mail.resend)).all()
    received = server.received()
    assert set(received) <= {row.message_id for row in rows}
    for row in rows:
        times = received[row.message_id]
        assert row.state in ENDED, row
        assert times <= 1 + row.repeats, row
        assert row.resend or row.repeats == 0, row
        if row.state == MailState.SENT:
            assert times >= 1, row
        if row.state == MailState.FAILED and row.repeats == 0:
            assert times == 0, row
    figures = {state.value: sum(row.state == state for row in rows) for state in ENDED}
    figures["received"] = sum(received.values())
    figures["received twice"] = sum(times > 1 for times in received.values())
    figures["sent again from unknown"] = sum(row.repeats for row in rows)
    return figures


def weather(installation, server, messages, kills):
    """Send to a server that misbehaves while workers are killed, and return the figures."""
    worker = installation.worker()
    put(installation, messages)
    killed = {"child": 0, "worker": 0}
    for _ in range(kills):
        # Some time into the work, wherever it is then.
        left = open_mails(installation)
        goal = left - random.uniform(0.5, 1.5) * messages / (kills + 1)
        installation.until(lambda goal=goal: open_mails(installation) <= max(goal, 0), seconds=600)
        what, worker = kill_something(installation, worker)
        killed[what] += 1
    installation.until(lambda: open_mails(installation) == 0, seconds=1200)
    return {"killed": killed, **account(installation, server)}


def settings(server, **more):
    return {**QUICK, "mail_url": f"smtp://127.0.0.1:{server.port}?tls=none&timeout=1", **more}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_every_message_is_accounted_for(tmp_path, kind):
    server = ServerProcess(free_port(), tmp_path / "journal", EVERYTHING)
    try:
        with any_installation(kind, tmp_path, **settings(server)) as installation:
            print(weather(installation, server, 300, 3))
    finally:
        server.stop()


@pytest.mark.parametrize("kind", ["servers"])
def test_server_that_is_away_loses_nothing(tmp_path, kind):
    """An hour, compressed: a retry after 0.1 s instead of a minute."""
    server = ServerProcess(free_port(), tmp_path / "journal")
    server.stop()
    try:
        with any_installation(kind, tmp_path, **settings(server, mail_retry_after="PT0.1S")) as installation:
            boot = installation.boot
            installation.worker()
            put(installation, 120)
            with boot.unit_of_work() as session:
                late = outbox.queue(session, message(999, now=boot.now(), expires_in=timedelta(seconds=3)), now=boot.now())

            def failures():
                with boot.read_only() as session:
                    return session.execute(select(MailServer.failures)).scalar() or 0

            installation.until(lambda: failures() >= 8)
            assert {one["check"]: one["status"] for one in examine(boot.settings)}["mail"] == "fail"
            seconds = [
                line
                for line in exposition(boot).decode().splitlines()
                if line.startswith("nightshift_mail_server_failing_seconds{")
            ]
            assert float(seconds[0].rpartition(" ")[2]) > 0

            def state(mail_id):
                with boot.read_only() as session:
                    return session.execute(select(Mail.state).where(Mail.id == mail_id)).scalar_one()

            # Its deadline passes while the server is away.
            installation.until(lambda: state(late) == MailState.FAILED)
            with boot.read_only() as session:
                jobs = session.execute(text("select count(*) from job where kind = 'mail.deliver'")).scalar_one()
                assert session.execute(select(func.max(Mail.attempt))).scalar_one() == 0
            # One lane asked, once for each pause: nobody else ran in vain.
            assert jobs <= 2 * failures() + 10
            server.start()
            installation.until(lambda: open_mails(installation) == 0)
            figures = account(installation, server)
            assert (figures["sent"], figures["failed"], figures["received"], failures()) == (120, 1, 120, 0)
            assert {one["check"]: one["status"] for one in examine(boot.settings)}["mail"] == "ok"
    finally:
        server.stop()


@pytest.mark.timeout(300)
def test_nothing_personal_is_to_be_seen(tmp_path):
    """Logs, arguments and results of jobs name no address, no body, no key."""
    key = "k3y-that-nobody-may-see"
    server = ServerProcess(free_port(), tmp_path / "journal", EVERYTHING)
    try:
        with any_installation("servers", tmp_path, **settings(server), log_level="DEBUG") as installation:
            installation.worker("--loglevel=DEBUG")
            put(installation, 100, sensitive=True, key=key)
            # One in a hundred is put off four times in a row, now and then, and waits twice as long each time.
            installation.until(lambda: open_mails(installation) == 0, seconds=200)
            with installation.boot.unit_of_work() as session:
                enqueue(session, SweepMail(), now=installation.boot.now())
            installation.until(lambda: installation.open_jobs() == 0)
            with installation.boot.read_only() as session:
                rows = [
                    str(tuple(row))
                    for table in ("job", "job_log", "mail_server")
                    for row in session.execute(text(f"select * from {table}"))
                ]
                bodies = session.execute(select(Mail.state, Mail.resend).where(Mail.body.is_not(None))).all()
                replies = session.execute(select(Mail.reply)).scalars().all()
            logs = "\n".join(path.read_text(errors="replace") for path in tmp_path.glob("*.log"))
            assert "mail.deliver" in "".join(rows)
            assert "mail 1: " in logs
            seen = "\n".join(
                [
                    logs,
                    *rows,
                    *map(str, replies),
                    exposition(installation.boot).decode(),
                    json.dumps(examine(installation.boot.settings)),
                ]
            )
            assert [word for word in ("recipient", "@school.example", "What is said", key) if word in seen] == []
            # What nobody knows waits for a person, who may send it again.
            assert {state for state, _ in bodies} <= {MailState.UNKNOWN}
            listed, shown = (CliRunner().invoke(command, arguments) for arguments in (["list"], ["show", "1"]))
            assert (listed.exit_code, shown.exit_code) == (0, 0)
            assert key not in listed.stdout + shown.stdout
    finally:
        server.stop()
