"""Messages for the outbox, as tests need them, and their rows."""

from datetime import timedelta
from email.message import EmailMessage

from nightshift.database import Session
from sqlalchemy import select

from services.mail import outbox
from services.mail.models import Mail
from tests.conftest import NOW

# What people are called, or say that they are called.
NAMES = [
    '<script>alert("1")</script>',
    "Anna & Söhne <b>bold</b>",
    "%(name)s {{ 7 * 7 }} {% raw %}",
    "عَائِشَة بنت محمد",
    "👩🏽‍🎓 Zoë ✨",
    "x" * 200 + " " + "y" * 200,
    "Robert'); DROP TABLE mail;--",
]

# What looks as RFC 2047 writes other letters in a header.
ENCODED = [
    "=?utf-8?q?x=0D=0ABcc=3A_all=40school.example?=",
    "=?utf-8?b?eA0KDQo8cD5hbm90aGVyIGJvZHk8L3A+?=",
    "a=?UTF-8*en?Q?=00?=b",
    "=?=?x?q?=FF?=",
]


def make_content(
    subject: str = "Hello",
    sender: str = "School <noreply@school.example>",
    text: str = "Hello\n",
) -> EmailMessage:
    """Return a mail as a caller of the outbox writes it."""
    content = EmailMessage()
    content["From"], content["Subject"] = sender, subject
    content.set_content(text)
    return content


def make_message(number: int = 1, **changes: object) -> outbox.Message:
    """Return the message `number`, to a person of the same number."""
    given: dict[str, object] = {
        "kind": "notice",
        "dedupe_key": f"notice:{number}",
        "recipient": f"person{number}@school.example",
        "content": make_content(),
        # The database's clock says what is late.
        "expires_at": NOW + timedelta(days=3650),
    }
    return outbox.Message(**given | changes)


def put(session: Session, number: int = 1, **changes: object) -> int:
    """Queue the message `number` and return its id."""
    return outbox.queue(session, make_message(number, **changes), now=NOW)


def read_row(session: Session, mail_id: int) -> Mail:
    """Return a message's row as the database has it now."""
    query = select(Mail).where(Mail.id == mail_id).execution_options(populate_existing=True)
    return session.execute(query).scalar_one()
