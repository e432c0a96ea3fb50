"""What beat runs, and when. Data only."""

from project.settings import Settings
from services.calendars.jobs import SyncCalendars
from services.jobs.jobs import PruneJobs
from services.jobs.schedule import Entry


def entries(settings: Settings) -> list[Entry]:
    """Return the recurring jobs of an installation."""
    zone = settings.school_timezone
    return [
        Entry("calendars.sync", SyncCalendars(), settings.sync_every, zone, missed="latest", overdue_at_start=True),
        Entry("jobs.prune", PruneJobs(), "17 3 * * *", zone, missed="latest"),
    ]
