"""The reminders' settings."""

from datetime import timedelta

from nightshift.settings import ComponentSettings, Duration
from pydantic import Field


class ReminderSettings(ComponentSettings):
    """How long reminders are kept."""

    reminders_keep: Duration = Field(
        timedelta(days=30), description="how long mailed reminders are kept"
    )
