"""Invitations that a mail program understands: iTIP (RFC 5546) in a mail (RFC 6047).

An invitation holds the same VEVENT as the feeds.
"""

from email.headerregistry import Address
from email.message import EmailMessage
from typing import Literal

from email_validator import EmailNotValidError, validate_email
from icalendar import Parameters
from icalendar.parser import Contentline

Method = Literal["REQUEST", "CANCEL"]

BEGIN, END = "BEGIN:VEVENT\r\n", "END:VEVENT\r\n"
CANCELLED = "\r\nSTATUS:CANCELLED\r\n"
HEAD = (
    "BEGIN:VCALENDAR\r\n"
    "VERSION:2.0\r\n"
    "PRODID:-//Nightshift//Nightshift//EN\r\n"
    "CALSCALE:GREGORIAN\r\n"
)


def attach_invitation(
    mail: EmailMessage,
    vevent: str,
    method: Method,
    *,
    address: str,
    name: str,
    uninvited: bool = False,
) -> None:
    """Add to a mail the invitation of one person, or its cancellation.

    The mail program finds it as a part of its own, and people find it as a file. `uninvited`: the
    event takes place, without this person. Nothing is added for a malformed address: it gets no
    mail.
    """
    try:
        valid = validate_email(address, check_deliverability=False)
    except EmailNotValidError:
        return
    sender: Address = mail["From"].addresses[0]
    # As the outbox writes it into To: a mail program finds its user among the attendees by address.
    recipient = f"{valid.local_part}@{valid.ascii_domain}"
    calendar = make_itip(
        vevent,
        method,
        organizer=(sender.display_name, sender.addr_spec),
        attendee=(name, recipient),
        uninvited=uninvited,
    )
    # As bytes: in a text, `email` would change how lines end.
    mail.add_alternative(
        calendar, maintype="text", subtype="calendar", params={"method": method, "charset": "utf-8"}
    )
    mail.add_attachment(calendar, maintype="application", subtype="ics", filename="invite.ics")


def make_itip(
    vevent: str,
    method: Method,
    *,
    organizer: tuple[str, str],
    attendee: tuple[str, str],
    uninvited: bool = False,
) -> bytes:
    """Return a calendar that invites one person to an event, or cancels that.

    Its event has the properties of the feeds' event, and the people. A repeated event is several
    VEVENTs, after its zone.
    """
    if uninvited and method == "CANCEL":
        # RFC 5546 §3.2.5: there is no status where the event itself is not cancelled.
        vevent = vevent.replace("\r\nSTATUS:CONFIRMED\r\n", "\r\n")
    asked = {"PARTSTAT": "NEEDS-ACTION", "RSVP": "TRUE"} if method == "REQUEST" else {}
    people = _make_line("ORGANIZER", organizer) + _make_line(
        "ATTENDEE", attendee, CUTYPE="INDIVIDUAL", ROLE="REQ-PARTICIPANT", **asked
    )
    zone, *events = vevent.split(BEGIN)
    events = events[:1] if method == "CANCEL" else _leave_out_cancelled(events)
    told = "".join(f"{BEGIN}{event.removesuffix(END)}{people}{END}" for event in events)
    return f"{HEAD}METHOD:{method}\r\n{zone}{told}END:VCALENDAR\r\n".encode()


def _leave_out_cancelled(events: list[str]) -> list[str]:
    """Return the VEVENTs of a request: a date that is cancelled becomes an EXDATE.

    A request must not hold a cancelled event (RFC 5546 §3.2.2).
    """
    first, *dates = events
    left_out = "".join(
        line.replace("RECURRENCE-ID", "EXDATE", 1) + "\r\n"
        for event in dates
        if CANCELLED in event
        for line in event.split("\r\n")
        if line.startswith("RECURRENCE-ID")
    )
    kept = [event for event in dates if CANCELLED not in event]
    return [f"{first.removesuffix(END)}{left_out}{END}", *kept]


def _make_line(name: str, person: tuple[str, str], **parameters: str) -> str:
    common_name, address = person
    # A parameter must not hold a double quote or a control character (RFC 5545 §3.1).
    common_name = "".join(
        letter for letter in common_name if letter.isprintable() and letter != '"'
    )
    given = Parameters({**parameters, **({"CN": common_name} if common_name else {})})
    line: bytes = Contentline.from_parts(name, given, f"mailto:{address}").to_ical()
    return line.decode() + "\r\n"
