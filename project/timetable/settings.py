"""The timetable's settings."""

import re
from datetime import UTC
from importlib.util import find_spec
from typing import Self

from nightshift.jobs.schedule import Entry
from nightshift.settings import ComponentSettings
from pydantic import Field, SecretStr, field_validator, model_validator

from services.school.timetable.jobs import SyncTimetable

WEBUNTIS = "webuntis://"
NAMED = re.compile(r"([a-z][a-z0-9-]{0,29})=(\S+)")


class TimetableSettings(ComponentSettings):
    """Where the timetable comes from, and when it is brought in."""

    # Whoever runs the other system has made it.
    foreign_secrets = frozenset({"timetable_password"})

    timetable_sources: str = Field(
        "",
        description="where lessons come from, as NAME=PLACE with spaces between: a folder, a file,"
        " an https:// address, or webuntis://SERVER/SCHOOL",
    )
    timetable_user: str = Field("", description="who logs in to WebUntis")
    timetable_password: SecretStr = Field(SecretStr(""), description="the password for that")
    timetable_at: str = Field(
        "0 3 * * *", description="when the timetable is brought in, as a cron expression"
    )

    @property
    def places(self) -> dict[str, str]:
        """Return the places of the sources by their names."""
        return dict(one.split("=", 1) for one in self.timetable_sources.split())

    @field_validator("timetable_sources")
    @classmethod
    def _only_named_places(cls, value: str) -> str:
        names = []
        for member in value.split():
            if not (found := NAMED.fullmatch(member)):
                raise ValueError(
                    f"{member!r}: write NAME=PLACE, as main=/srv/timetable; a name has small"
                    " letters, digits and hyphens"
                )
            name, place = found.groups()
            if name in names:
                raise ValueError(f"the name {name!r} stands there twice; rename one of the two")
            scheme = place.partition("://")[0]
            if "://" in place and scheme not in ("https", "http", "webcal", "webuntis"):
                raise ValueError(
                    f"{name}: {scheme}:// is not read; name a folder, a file, an https:// address,"
                    " or webuntis://SERVER/SCHOOL"
                )
            if scheme == "webuntis" and not re.fullmatch(r"webuntis://[^/\s]+/[^/\s]+", place):
                raise ValueError(f"{name}: write webuntis://SERVER/SCHOOL")
            names.append(name)
        return value

    @field_validator("timetable_at")
    @classmethod
    def _only_cron(cls, value: str) -> str:
        # It raises ValueError.
        Entry("timetable.sync", SyncTimetable(source=""), value, UTC)
        return value

    @model_validator(mode="after")
    def _require_what_webuntis_needs(self) -> Self:
        if any(place.startswith(WEBUNTIS) for place in self.places.values()):
            if find_spec("webuntis") is None:
                raise ValueError(
                    "TIMETABLE_SOURCES: WebUntis needs the package webuntis: install the extra"
                    " `webuntis`"
                )
            if not self.timetable_user:
                raise ValueError("TIMETABLE_USER: WebUntis needs it, and TIMETABLE_PASSWORD")
        return self
