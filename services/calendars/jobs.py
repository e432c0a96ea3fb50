"""The arguments of the calendars' jobs. A leaf: anyone may import it."""

from datetime import timedelta
from uuid import UUID

from services.jobs.args import Backoff, JobArgs

QUICK = Backoff(first=timedelta(seconds=2), cap=timedelta(minutes=1))


class SyncCalendars(
    JobArgs,
    kind="calendars.sync",
    queue="calendars",
    unique_by=(),
    backoff=QUICK,
    # A killed run is picked up again; each try may be the machine's fault and not the run's.
    max_attempts=10,
    time_limit=timedelta(minutes=10),
):
    """Bring every feed up to date. There is one run at a time: it lasts until its last chunk and its record are done."""


class BuildFeeds(JobArgs, kind="calendars.build_feeds", queue="calendars", backoff=QUICK, max_attempts=10):
    """Build those of these feeds that are out of date."""

    run_id: UUID
    feed_ids: tuple[int, ...]


class FinishSync(JobArgs, kind="calendars.finish_sync", queue="calendars", backoff=QUICK, max_attempts=10):
    """Remove orphaned feeds and write the run's record."""

    run_id: UUID


class RefreshFeeds(
    JobArgs,
    kind="calendars.refresh",
    # Not behind the chunks of a sync: what is in the broker's queue cannot be overtaken, but queues are served in turn.
    queue="default",
    priority=3,
    unique_by=(),
    backoff=QUICK,
    max_attempts=10,
    # After a school was loaded it is as long as a sync's plan.
    time_limit=timedelta(minutes=10),
):
    """Refresh the feeds that the change log leads to.

    There is one at a time, also while it waits to be tried again: what changes meanwhile stays in the log, where the next one is seen
    to be needed.
    """
