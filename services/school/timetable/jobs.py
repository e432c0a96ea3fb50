"""The arguments of the timetable's jobs. A leaf: anyone may import it."""

from datetime import timedelta

from nightshift.jobs.args import Backoff, JobArgs


class SyncTimetable(
    JobArgs,
    kind="timetable.sync",
    queue="default",
    unique_by=("source",),
    # A source that is away is asked again, until the morning.
    backoff=Backoff(first=timedelta(minutes=2), cap=timedelta(minutes=30)),
    max_attempts=6,
    time_limit=timedelta(minutes=12),
):
    """Bring what a source of the timetable says into the school."""

    source: str
