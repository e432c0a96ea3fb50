"""What the reminders contribute: a table, two kinds of job, a setting, a probe and commands."""

from collections.abc import Sequence
from datetime import UTC, timedelta
from email.utils import parseaddr
from zoneinfo import ZoneInfo

from nightshift.component import Answer, Component, Probe, Status
from nightshift.database import Session
from nightshift.jobs.schedule import Entry
from nightshift.runtime import Runtime

from project.mail.settings import MailSettings
from project.reminders.settings import ReminderSettings
from services.mail.compose import Frame
from services.reminders import reminders as service
from services.reminders.jobs import PruneReminders, SendReminder
from services.reminders.runtime import ReminderRules

# A worker mails a due reminder within seconds; one that still waits after this is late.
LATE = timedelta(minutes=5)


def make_rules(runtime: Runtime) -> ReminderRules:
    """Return what the reminders need of the settings."""
    sender = runtime[MailSettings].mail_from
    frame = Frame(sender, parseaddr(sender)[0], ZoneInfo("UTC"), service.TEMPLATES)
    return ReminderRules(frame, runtime[ReminderSettings].reminders_keep)


def make_schedule(_runtime: Runtime) -> Sequence[Entry]:
    """Return the reminders' recurring job: each night, at 03:37 UTC."""
    return [Entry("reminders.prune", PruneReminders(), "37 3 * * *", UTC, missed="latest")]


def check_reminders(runtime: Runtime, session: Session) -> Answer:
    """Warn of reminders that should have been mailed long ago."""
    overdue = service.count_overdue(session, before=runtime.now() - LATE)
    return Status.WARN if overdue else Status.OK, f"{overdue} overdue"


reminders = Component(
    name="reminders",
    models=("services.reminders.models",),
    kinds=(SendReminder, PruneReminders),
    tasks=("tasks.reminders",),
    settings=ReminderSettings,
    schedule=make_schedule,
    provides={ReminderRules: make_rules},
    probes=(
        Probe(
            "reminders",
            check_reminders,
            "`celery -A project jobs list --kind reminders.send` shows their jobs",
        ),
    ),
    commands={"reminders": "project.reminders.cli:reminders"},
)
