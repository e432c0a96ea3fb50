"""The arguments of the jobs that import calendars. A leaf: any module may import it."""

from datetime import timedelta

from nightshift.jobs.args import Backoff, JobArgs


class ImportSources(JobArgs, kind="school.import_sources", unique_by=()):
    """Start a job for each source that is imported every night."""


class ImportSource(
    JobArgs,
    kind="school.import_source",
    unique_by=("source_id",),
    backoff=Backoff(first=timedelta(minutes=1), cap=timedelta(hours=1)),
    max_attempts=6,
    time_limit=timedelta(minutes=5),
):
    """Import what a calendar that is kept elsewhere has now."""

    source_id: int
