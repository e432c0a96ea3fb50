"""Many messages to a server that misbehaves, and the account of them: outbox against server."""

import random
from datetime import timedelta
from email.message import EmailMessage
from typing import Any

from fault_processes import kill_something
from installations import Installation
from sqlalchemy import func, select

from services.mail import outbox
from services.mail.models import ENDED, Mail, MailState
from tests.smtp import ServerProcess

EVERYTHING = {
    "4xx": 0.05,
    "5xx": 0.02,
    "432": 0.005,
    "data 4xx": 0.03,
    "data 5xx": 0.01,
    "drop": 0.02,
    "hang": 0.002,
    "data drop": 0.02,
    "data hang": 0.002,
    "kept, then drop": 0.02,
    "kept, then hang": 0.002,
}


def mail_settings(server: ServerProcess, *, timeout: int = 1, **more: str) -> dict[str, str]:
    """Return settings for mail to a server, with short pauses.

    `timeout` is in seconds: a server that hangs now and then is left soon.
    """
    url = f"smtp://127.0.0.1:{server.port}?tls=none&timeout={timeout}"
    return {"mail_url": url, "mail_retry_after": "PT1S", **more}


def make_numbered(
    installation: Installation,
    number: int,
    *,
    resend: bool = True,
    sensitive: bool = False,
    expires_in: timedelta = timedelta(hours=1),
    key: str = "",
) -> outbox.Message:
    """Return a message that says its number."""
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
        expires_at=installation.runtime.now() + expires_in,
    )


def put_many(installation: Installation, number: int, **changes: Any) -> list[int]:
    """Queue so many messages; every fourth is not to be sent twice."""
    messages = [
        make_numbered(installation, index, resend=index % 4 > 0, **changes)
        for index in range(number)
    ]
    with installation.runtime.unit_of_work() as session:
        return outbox.queue_many(session, messages, now=installation.runtime.now())


def count_open(installation: Installation) -> int:
    """Return how many messages have not ended."""
    with installation.runtime.read_only() as session:
        query = select(func.count()).where(Mail.state.not_in(ENDED))
        return session.execute(query).scalar_one()


def account(installation: Installation, server: ServerProcess) -> dict[str, int]:
    """Compare the outbox with what the server has, message by message, and return the figures."""
    with installation.runtime.read_only() as session:
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


def send_while_killing(
    installation: Installation, server: ServerProcess, messages: int, kills: int
) -> dict[str, Any]:
    """Send to a server that misbehaves while workers are killed, and return the figures."""
    worker = installation.worker()
    put_many(installation, messages)
    killed = {"child": 0, "worker": 0}
    for _ in range(kills):
        # Some time into the work, wherever it is then.
        left = count_open(installation)
        goal = left - random.uniform(0.5, 1.5) * messages / (kills + 1)
        installation.until(lambda goal=goal: count_open(installation) <= max(goal, 0), seconds=600)
        what, worker = kill_something(installation, worker)
        killed[what] += 1
    installation.until(lambda: count_open(installation) == 0, seconds=1200)
    return {"killed": killed, **account(installation, server)}
