"""10,000 messages through the outbox and two processes.

Beside it: a bare smtplib loop over one connection to the same server.
"""

import smtplib
import tempfile
import time
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from benchmarks.servers import free_port, installation, make_runtime, worker
from services.mail import outbox
from services.mail.models import Mail, MailState
from tests.smtp import ServerProcess

MESSAGES = 10_000


def run() -> dict[str, Any]:
    """Measure and return the figures."""

    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(free_port(), Path(folder) / "journal")
        try:
            with installation(
                MAIL_URL=f"smtp://127.0.0.1:{server.port}?tls=none", MAIL_CONCURRENCY="2"
            ):
                rates: dict[str, list[float]] = {"bare": [], "ours": []}
                # In turn, twice: the machine's mood changes within a run.
                for number in range(2):
                    rates["bare"].append(bare(server.port))
                    rates["ours"].append(ours(number))
            assert sum(server.received().values()) == 4 * MESSAGES
        finally:
            server.stop()
    return {
        "bare smtplib loop, messages/s": max(rates["bare"]),
        "ours, messages/s": max(rates["ours"]),
        "ours / bare smtplib (≥ 0.5)": max(rates["ours"]) / max(rates["bare"]),
    }


def content() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["Subject"] = (
        "School <noreply@school.example>",
        "An event that concerns you has changed",
    )
    message.set_content("The excursion of 27Ga begins at 08:15 instead of 08:00.\n" * 10)
    message.add_alternative(
        "<p>The excursion of 27Ga begins at <b>08:15</b> instead of 08:00.</p>\n" * 10,
        subtype="html",
    )
    return message


def bare(port: int) -> float:
    """Send by a loop, and return the messages a second."""
    body = content().as_bytes().replace(b"\n", b"\r\n")
    began = time.perf_counter()
    with smtplib.SMTP("127.0.0.1", port) as smtp:
        for number in range(MESSAGES):
            smtp.sendmail("noreply@school.example", f"person{number}@school.example", body)
    return MESSAGES / (time.perf_counter() - began)


def ours(run: int) -> float:
    """Queue messages and start a worker of two processes.

    Return the messages a second between the first and the last one.
    """
    runtime = make_runtime()
    now, text = runtime.now(), content()
    messages = [
        outbox.Message(
            kind="bench",
            dedupe_key=f"bench:{run}:{number}",
            recipient=f"person{number}@school.example",
            content=text,
            expires_at=now + timedelta(hours=1),
        )
        for number in range(MESSAGES)
    ]

    def remaining() -> int:
        with runtime.read_only() as session:
            return session.execute(
                select(func.count()).where(Mail.state != MailState.SENT)
            ).scalar_one()

    with worker():
        with runtime.unit_of_work() as session:
            outbox.queue_many(session, messages, now=now)
        while remaining() == MESSAGES:
            time.sleep(0.01)
        first, began = remaining(), time.perf_counter()
        while remaining():
            time.sleep(0.25)
        return first / (time.perf_counter() - began)
