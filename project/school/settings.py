"""The school's settings."""

from zoneinfo import ZoneInfo

from nightshift.settings import ComponentSettings
from pydantic import Field


class SchoolSettings(ComponentSettings):
    """The school's name, domain and clock."""

    school_name: str = Field(
        "Kantonsschule Seefeld", description="the school's name in calendars and mails"
    )
    school_domain: str = Field(
        "nightshift.example",
        description="makes event UIDs unique; never change it once calendars are subscribed to",
    )
    school_timezone: ZoneInfo = Field(
        ZoneInfo("Europe/Zurich"), description="the IANA zone of the school's wall clocks"
    )
