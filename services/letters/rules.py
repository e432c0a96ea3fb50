"""The settings that the school's letters are made by."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from services.mail.compose import Frame

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class LetterRules:
    """The school's settings that letters are made by.

    `sender` is NAME <ADDRESS>. `public_url` is where people reach the web server. `link_secret`
    signs the links that turn a kind of mail off.
    """

    sender: str
    school_name: str
    public_url: str
    zone: ZoneInfo
    link_secret: str = field(default="", repr=False)

    @property
    def frame(self) -> Frame:
        """Return what all letters have in common."""
        return Frame(self.sender, self.school_name, self.zone, TEMPLATES)

    def calendar_url(self, token: str) -> str:
        """Return the address of a calendar."""
        return f"{self.public_url}/f/{token}.ics"

    def page_url(self, token: str) -> str:
        """Return the address of the page about a calendar."""
        return f"{self.public_url}/f/{token}"

    def webcal_url(self, token: str) -> str:
        """Return the address of a calendar that opens in a calendar program."""
        return urlsplit(self.calendar_url(token))._replace(scheme="webcal").geturl()
