"""The arguments of the reminders' jobs. A leaf: any module may import it."""

from nightshift.jobs import JobArgs


class SendReminder(JobArgs, kind="reminders.send", queue="reminders", unique_by=("reminder_id",)):
    """Mail one reminder."""

    reminder_id: int


class PruneReminders(JobArgs, kind="reminders.prune", queue="reminders", unique_by=()):
    """Delete reminders that were mailed long ago."""
