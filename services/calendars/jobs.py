"""The arguments of the calendars' jobs. A leaf: anyone may import it."""

from datetime import timedelta
from uuid import UUID

from nightshift.jobs.args import Backoff, JobArgs

QUICK = Backoff(first=timedelta(seconds=2), cap=timedelta(minutes=1))


class SyncCalendars(
    JobArgs,
    kind="calendars.sync",
    queue="calendars",
    unique_by=(),
    backoff=QUICK,
    # A killed run is retried; each attempt may have failed by the machine's fault, not the run's.
    max_attempts=10,
    time_limit=timedelta(minutes=10),
):
    """Bring every feed up to date.

    There is one run at a time. It ends when its last chunk has ended and its record is written.
    """


class BuildFeeds(
    JobArgs, kind="calendars.build_feeds", queue="calendars", backoff=QUICK, max_attempts=10
):
    """Build those of these feeds that are out of date."""

    run_id: UUID
    feed_ids: tuple[int, ...]


class FinishSync(
    JobArgs, kind="calendars.finish_sync", queue="calendars", backoff=QUICK, max_attempts=10
):
    """Remove orphaned feeds and write the run's record."""

    run_id: UUID


class RefreshFeeds(
    JobArgs,
    kind="calendars.refresh",
    # Not behind the chunks of a sync: nothing overtakes a message in the broker's queue, but a
    # worker takes from its queues in turn.
    queue="default",
    priority=3,
    unique_by=(),
    backoff=QUICK,
    max_attempts=10,
    # After a school was loaded it takes as long as the plan of a sync.
    time_limit=timedelta(minutes=10),
):
    """Refresh the feeds that the change log leads to.

    There is one at a time, also while it waits for a retry. What changes meanwhile stays in the
    log, where the keeper sees that another refresh is needed.
    """
