"""The school's settings."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from zoneinfo import ZoneInfo

from nightshift.settings import ComponentSettings
from pydantic import Field, field_validator


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
    school_source_networks: str = Field(
        "",
        description="networks of your own in which a source of events or lessons may be, as"
        " 10.1.0.0/16,192.168.7.20/32; empty: sources are on the public internet only",
    )

    @property
    def source_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Return the networks of one's own in which a source may be."""
        return tuple(map(ip_network, filter(None, self.school_source_networks.split(","))))

    @field_validator("school_source_networks")
    @classmethod
    def _only_networks(cls, value: str) -> str:
        members = [member.strip() for member in value.split(",")]
        for member in filter(None, members):
            try:
                ip_network(member)
            except ValueError as error:
                raise ValueError(f"{error}; write networks as 10.1.0.0/16") from error
        return ",".join(members)
