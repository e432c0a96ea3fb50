"""Invitations that a mail program understands: iTIP (RFC 5546) in a mail (RFC 6047), around the VEVENT that the feeds have."""

from email.headerregistry import Address
from email.message import EmailMessage
from typing import Literal

from email_validator import EmailNotValidError, validate_email
from icalendar import Parameters
from icalendar.parser import Contentline

Method = Literal["REQUEST", "CANCEL"]


def attach(mail: EmailMessage, vevent: str, method: Method, *, address: str, name: str, uninvited: bool = False) -> None:
    """Add an invitation of one person to a mail, or its cancellation: for the program as a part of its own, for people as a file.

    `uninvited` says that a cancelled one takes place without this person. A malformed address, which gets no mail, is left without one.
    """
    try:
        valid = validate_email(address, check_deliverability=False)
    except EmailNotValidError:
        return
    sender: Address = mail["From"].addresses[0]
    # As the outbox writes it into To: a program looks for itself among the attendees by its address.
    recipient = f"{valid.local_part}@{valid.ascii_domain}"
    calendar = itip(
        vevent, method, organizer=(sender.display_name, sender.addr_spec), attendee=(name, recipient), uninvited=uninvited
    )
    # As bytes: as text, the mail would decide how lines end.
    mail.add_alternative(calendar, maintype="text", subtype="calendar", params={"method": method, "charset": "utf-8"})
    mail.add_attachment(calendar, maintype="application", subtype="ics", filename="invite.ics")


def itip(vevent: str, method: Method, *, organizer: tuple[str, str], attendee: tuple[str, str], uninvited: bool = False) -> bytes:
    """Return a calendar that invites one person to an event, or takes that back, with just the properties that the feeds have."""
    if uninvited and method == "CANCEL":
        # RFC 5546 §3.2.5: where the event itself is not cancelled, it says nothing of a status.
        vevent = vevent.replace("\r\nSTATUS:CONFIRMED\r\n", "\r\n")
    asked = {"PARTSTAT": "NEEDS-ACTION", "RSVP": "TRUE"} if method == "REQUEST" else {}
    people = _line("ORGANIZER", organizer) + _line("ATTENDEE", attendee, CUTYPE="INDIVIDUAL", ROLE="REQ-PARTICIPANT", **asked)
    head = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Nightshift//Nightshift//EN\r\nCALSCALE:GREGORIAN\r\n"
    end = "END:VEVENT\r\n"
    return f"{head}METHOD:{method}\r\n{vevent.removesuffix(end)}{people}{end}END:VCALENDAR\r\n".encode()


def _line(name: str, person: tuple[str, str], **parameters: str) -> str:
    common_name, address = person
    # No parameter may hold a double quote or a control (RFC 5545 §3.1).
    common_name = "".join(letter for letter in common_name if letter.isprintable() and letter != '"')
    given = Parameters({**parameters, **({"CN": common_name} if common_name else {})})
    line: bytes = Contentline.from_parts(name, given, f"mailto:{address}").to_ical()
    return line.decode() + "\r\n"
