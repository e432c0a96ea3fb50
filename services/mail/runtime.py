"""What the mail's jobs need from their process.

They find it as `run.runtime[Mailer]` and `run.runtime[MailRetention]`.
"""

from dataclasses import dataclass
from datetime import timedelta

from services.mail.delivery import Terms
from services.mail.outbox import MailCheck
from services.mail.transport import Transport


@dataclass(frozen=True, slots=True)
class Mailer:
    """Where mail is sent, how, and what is checked before. A process keeps one connection."""

    transport: Transport
    terms: Terms
    check: MailCheck | None = None

    def close(self) -> None:
        """Close the connection to the mail server, if there is one."""
        self.transport.close()


@dataclass(frozen=True, slots=True)
class MailRetention:
    """How long messages stay in the outbox after their end."""

    sent: timedelta
    others: timedelta
