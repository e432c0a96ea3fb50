"""What beat runs, and when. Data only."""

from datetime import timedelta

from project.settings import Settings
from services.calendars.jobs import SyncCalendars
from services.jobs.jobs import PruneJobs
from services.jobs.schedule import Entry
from services.mail.jobs import PruneMail, SendDigests, SweepMail


def entries(settings: Settings) -> list[Entry]:
    """Return the recurring jobs of an installation."""
    zone = settings.school_timezone
    return [
        Entry("calendars.sync", SyncCalendars(), settings.sync_every, zone, missed="latest", overdue_at_start=True),
        Entry("mail.digest", SendDigests(), "0 6 * * mon", zone, missed="latest"),
        # A safety net: every message and every lane wakes the next by itself.
        Entry("mail.sweep", SweepMail(), timedelta(minutes=5), zone, missed="latest"),
        Entry("jobs.prune", PruneJobs(), "17 3 * * *", zone, missed="latest"),
        Entry("mail.prune", PruneMail(), "27 3 * * *", zone, missed="latest"),
    ]
