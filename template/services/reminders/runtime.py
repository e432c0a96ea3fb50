"""What the reminders need of their process: project/reminders/component.py makes it."""

from dataclasses import dataclass
from datetime import timedelta

from services.mail.compose import Frame


@dataclass(frozen=True, slots=True)
class ReminderRules:
    """What all mails of reminders have in common, and how long mailed reminders are kept."""

    frame: Frame
    keep: timedelta
