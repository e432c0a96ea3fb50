"""The calendars' jobs."""

from project.bootstrap import bootstrap
from project.task import job
from services.calendars import changes, sync
from services.calendars.jobs import BuildFeeds, FinishSync, RefreshFeeds, SyncCalendars
from services.database import Session
from services.jobs import Outcome, Run


@job(SyncCalendars, own_transactions=True)
def sync_calendars(args: SyncCalendars, run: Run) -> None:
    """Bring every feed up to date. A second run finds most of it done and starts chunks for the rest only."""
    sync.plan(run, bootstrap().feed_store, bootstrap().rules)


@job(BuildFeeds)
def build_feeds(session: Session, args: BuildFeeds, run: Run) -> Outcome:
    """Build a chunk's feeds. A second run writes only those that the first did not record."""
    return sync.build_chunk(session, args, run, bootstrap().feed_store, bootstrap().rules)


@job(FinishSync)
def finish_sync(session: Session, args: FinishSync, run: Run) -> Outcome:
    """Remove orphans and write the run's record. A second run writes the same record again."""
    return sync.finish(session, args, run, bootstrap().feed_store, bootstrap().rules)


@job(RefreshFeeds, own_transactions=True)
def refresh_feeds(args: RefreshFeeds, run: Run) -> None:
    """Refresh what the change log leads to. A second run reads the same rows, or none, and writes only what is still out of date."""
    changes.refresh(run, bootstrap().feed_store, bootstrap().rules)
