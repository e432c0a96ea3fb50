"""What the mail's jobs need from their process.

They find it as `run.runtime[Mailer]`, and so on.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from nightshift.jobs.run import UnitOfWork

from services.mail.bounces import Complaints, Settled, settle
from services.mail.delivery import Terms
from services.mail.mailbox import Mailbox, read_new
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


@dataclass(frozen=True, slots=True)
class BounceDesk:
    """Where other servers' reports arrive, and what settles them.

    `secret` signs the addresses to which they come, and proves who posts one.
    """

    secret: str
    mailbox: Mailbox | None
    complaints: Complaints | None

    def settle(self, unit_of_work: UnitOfWork, raw: bytes, *, now: datetime) -> Settled:
        """Settle one report in a transaction of its own."""
        with unit_of_work() as session:
            return settle(session, raw, secret=self.secret, complaints=self.complaints, now=now)

    def collect(self, unit_of_work: UnitOfWork, *, now: datetime) -> dict[str, int]:
        """Settle what has arrived in the mailbox, and return how many there are of each kind.

        Raises MailboxUnreadable.
        """
        tally = Counter[str]()

        def take(raw: bytes) -> None:
            settled = self.settle(unit_of_work, raw, now=now)
            tally[settled.kind if settled.mail_id else f"{settled.kind}, of no message"] += 1

        if self.mailbox is not None:
            read_new(self.mailbox, take)
        return dict(tally)
