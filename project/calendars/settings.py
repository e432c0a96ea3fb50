"""The calendars' settings."""

from datetime import timedelta
from pathlib import Path

from nightshift.settings import ComponentSettings, Days, Duration
from pydantic import Field, field_validator


class CalendarSettings(ComponentSettings):
    """Where the feeds are kept, what they hold, and how often they are brought up to date."""

    feed_store: Path = Field(
        Path("var/feeds"), description="the folder that the calendar files are kept in"
    )
    feed_days_past: Days = Field(
        31, ge=0, description="how many days an event stays in a feed after its end"
    )
    feed_days_ahead: Days = Field(
        465, ge=1, description="how many days before its start an event enters a feed"
    )
    sync_every: Duration = Field(
        timedelta(hours=6), description="how often all feeds are brought up to date"
    )

    @field_validator("feed_store")
    @classmethod
    def _require_a_folder(cls, path: Path) -> Path:
        try:
            is_file = path.exists() and not path.is_dir()
        except OSError as error:
            raise ValueError(f"{error.strerror}; name a folder") from error
        if is_file:
            raise ValueError(f"{path} is a file; name a folder")
        return path
