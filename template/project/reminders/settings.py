"""The reminders' settings."""

from datetime import timedelta

from nightshift.settings import ComponentSettings
from pydantic import Field


class ReminderSettings(ComponentSettings):
    """How long reminders are kept."""

    reminders_keep: timedelta = Field(
        timedelta(days=30), gt=timedelta(), description="how long mailed reminders are kept"
    )
