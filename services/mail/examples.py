"""An example of every kind of mail: for `mail preview`, and for the golden files."""

from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

from services.mail.compose import MailRules, compose
from services.school.models import Locale

CALENDAR = "https://calendar.school.example/f/ZXhhbXBsZS1leGFtcGxlLWV4YW1w.ics"
KEY = "ZXhhbXBsZS1leGFtcGxlLWV4YW1wbGUtZXhhbXBsZS0"

EXAMPLES: dict[str, dict[str, Any]] = {
    "welcome": {"name": "Anna Müller", "calendar_url": CALENDAR},
    "verify_address": {
        "name": "Anna Müller",
        "key_url": f"https://calendar.school.example/u/verify?key={KEY}",
        "expires_at": datetime(2026, 12, 1, 7, 15, tzinfo=UTC),
    },
    "reset_password": {
        "name": "Anna Müller",
        "key_url": f"https://calendar.school.example/u/reset?key={KEY}",
        "expires_at": datetime(2026, 12, 1, 7, 15, tzinfo=UTC),
    },
}


def example(kind: str, locale: Locale, rules: MailRules) -> EmailMessage:
    """Return a kind's mail with example data, as the outbox would send it."""
    mail = compose(kind, locale, rules, **EXAMPLES[kind])
    mail["To"], mail["Date"] = "Anna Müller <anna.mueller@school.example>", datetime(2026, 11, 30, 7, 15, tzinfo=UTC)
    mail["Message-ID"], mail["Auto-Submitted"] = f"<{kind}.{locale}@school.example>", "auto-generated"
    return mail
