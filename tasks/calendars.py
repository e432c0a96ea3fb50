"""The calendars' jobs."""

from nightshift.celery.task import job
from nightshift.database import Session
from nightshift.jobs import Outcome, Run

from services.calendars import changes, sync
from services.calendars.jobs import BuildFeeds, FinishSync, RefreshFeeds, SyncCalendars
from services.calendars.store import FeedStore
from services.calendars.sync import Rules


@job(SyncCalendars, own_transactions=True)
def sync_calendars(args: SyncCalendars, run: Run) -> None:
    """Bring every feed up to date. A second run starts jobs only for feeds that are still to do."""
    sync.plan(run, run.runtime[FeedStore], run.runtime[Rules])


@job(BuildFeeds)
def build_feeds(session: Session, args: BuildFeeds, run: Run) -> Outcome:
    """Build some feeds. A second run writes only those that the first did not record."""
    return sync.build_chunk(session, args, run, run.runtime[FeedStore], run.runtime[Rules])


@job(FinishSync)
def finish_sync(session: Session, args: FinishSync, run: Run) -> Outcome:
    """Delete the files of feeds that are gone, and record the sync.

    A second run writes the same record again.
    """
    return sync.finish(session, args, run, run.runtime[FeedStore], run.runtime[Rules])


@job(RefreshFeeds, own_transactions=True)
def refresh_feeds(args: RefreshFeeds, run: Run) -> None:
    """Refresh the feeds that the change log leads to.

    A second run reads the same rows, or none, and writes only feeds that are still out of date.
    """
    changes.refresh(run, run.runtime[FeedStore], run.runtime[Rules])
