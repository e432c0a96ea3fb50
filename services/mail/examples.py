"""Example data of every kind of mail: for `mail preview`, and for the golden files."""

from datetime import UTC, datetime
from typing import Any

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
