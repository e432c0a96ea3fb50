"""An example of every kind of letter, for `letters preview` and the golden files."""

from datetime import UTC, date, datetime, time
from email.message import EmailMessage
from typing import Any

from services.letters.digests import group_by_day
from services.letters.facts import Content, make_facts
from services.letters.invitations import attach_invitation
from services.letters.recipients import Recipient, make_letter
from services.letters.rules import LetterRules
from services.letters.unsubscribe import FLAGS
from services.mail.compose import compose
from services.school.models import Event
from services.translation import Locale

TOKEN = "ZXhhbXBsZS1leGFtcGxlLWV4YW1w"  # noqa: S105 - it says "example"
CALENDAR = f"https://calendar.school.example/f/{TOKEN}.ics"
KEY = "ZXhhbXBsZS1leGFtcGxlLWV4YW1wbGUtZXhhbXBsZS0"

AT = datetime(2026, 11, 30, 7, 15, tzinfo=UTC)
EVENT_ID = "9b2f64c1-3c0a-4d0e-9f43-7a51c1d5e2b8"
BEFORE: Content = {
    "title": "Exkursion ins Technorama",
    "description": "Treffpunkt: Gleis 3.\nLunch mitnehmen.",
    "location": "Winterthur",
    "starts": "2026-12-08T07:00:00+00:00",
    "ends": "2026-12-08T15:30:00+00:00",
    "audience": "students",
    "addressed": True,
    "named": ["27Ga", "28W"],
    "teaching_affected": "yes",
    "cancelled": False,
}
TRIP = BEFORE | {
    "location": "",
    "starts": "2026-12-10T07:00:00+00:00",
    "ends": "2026-12-11T15:30:00+00:00",
}
# The events of next week: title, place, days after Monday, hours, cancelled.
WEEK = (
    ("Sporttag", "Turnhalle", 0, None, False),
    ("Exkursion ins Technorama", "Winterthur", 1, (7, 15), True),
    ("Notenkonvent", "Zimmer 204", 1, (16, 17), False),
    ("Konzert im Münster", "", 3, (18, 20), False),
)
VEVENT = f"""BEGIN:VEVENT
DTSTAMP:20261130T070000Z
LAST-MODIFIED:20261130T070000Z
SEQUENCE:2
UID:{EVENT_ID}@school.example
DTSTART:20261210T070000Z
DTEND:20261211T153000Z
SUMMARY:Exkursion ins Technorama
DESCRIPTION:Treffpunkt: Gleis 3.\\nLunch mitnehmen.
STATUS:CONFIRMED
TRANSP:OPAQUE
END:VEVENT
""".replace("\n", "\r\n")

EXAMPLES: dict[str, dict[str, Any]] = {
    "welcome": {
        "name": "Anna Müller",
        "calendar_url": CALENDAR,
        "page_url": CALENDAR.removesuffix(".ics"),
        "webcal_url": CALENDAR.replace("https:", "webcal:"),
    },
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
    "event_published": {"says": TRIP, "shown": True},
    "event_changed": {"says": TRIP, "said": BEFORE, "status": "still"},
    "event_cancelled": {"says": TRIP},
    "review_requested": {
        "says": TRIP | {"people": ["Anna Müller", "Jérôme Çelik"]},
        "said": BEFORE | {"people": ["Anna Müller"]},
        "author": "Jérôme Çelik",
        "event_id": EVENT_ID,
    },
    "review_accepted": {"says": TRIP},
    "review_refused": {
        "says": TRIP,
        "reason": "An diesem Tag ist der Car vergeben.\nGeht es eine Woche später?",
    },
    "digest": {"first": date(2026, 12, 7), "last": date(2026, 12, 13)},
    "invitation": {"says": TRIP, "said": BEFORE, "updated": True, "method": "REQUEST"},
    "invitation_cancelled": {
        "says": TRIP,
        "cancelled": False,
        "status": "still",
        "method": "CANCEL",
    },
}


def make_example(kind: str, locale: Locale, rules: LetterRules) -> EmailMessage:
    """Return a letter of a kind with example data, as the outbox would send it."""
    context = dict(EXAMPLES[kind])
    mail = (
        _make_event_letter(kind, context, locale, rules)
        if kind == "digest" or "says" in context
        else compose(kind, locale, rules.frame, **context)
    )
    mail["To"], mail["Date"] = "Anna Müller <anna.mueller@school.example>", AT
    mail["Message-ID"] = f"<{kind}.{locale}@school.example>"
    mail["Auto-Submitted"] = "auto-generated"
    return mail


def _make_event_letter(
    kind: str, context: dict[str, Any], locale: Locale, rules: LetterRules
) -> EmailMessage:
    anna = Recipient(
        1, "anna.mueller@school.example", "Anna Müller", locale, frozenset(FLAGS), TOKEN
    )
    says, said, method = (context.pop(name, None) for name in ("says", "said", "method"))
    if says is None:
        context["days"] = group_by_day(anna, map(_make_event, WEEK), context["first"], rules)
    else:
        context |= {
            "title": says["title"],
            "facts": make_facts(says, locale, rules.zone, said=said),
        }
    message = make_letter(
        kind, anna, rules, key="", about="event:1", now=AT, expires_at=AT, **context
    )
    assert message is not None
    if method is not None:
        attach_invitation(
            message.content, VEVENT, method, address=anna.address, name=anna.name, uninvited=True
        )
    return message.content


def _make_event(told: tuple[str, str, int, tuple[int, int] | None, bool]) -> Event:
    title, location, weekday, hours, cancelled = told
    day = date(2026, 12, 7 + weekday)
    event = Event(
        title=title,
        location=location,
        starts_on=day,
        ends_on=day,
        cancelled_at=AT if cancelled else None,
    )
    if hours is not None:
        event.starts_at, event.ends_at = (
            datetime.combine(day, time(hour, 15), UTC) for hour in hours
        )
    return event
