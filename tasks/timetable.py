"""The timetable's jobs."""

from nightshift.celery.task import job
from nightshift.jobs import Outcome, Run

from services.school.timetable import sync
from services.school.timetable.jobs import SyncTimetable
from services.school.timetable.sync import Sources


@job(SyncTimetable, own_transactions=True)
def sync_timetable(args: SyncTimetable, run: Run) -> Outcome:
    """Bring a source's timetable into the school. A second run finds it as it is."""
    return sync.run_job(run, run.runtime[Sources], args.source)
