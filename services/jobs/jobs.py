"""The arguments of the ledger's own jobs. A leaf: anyone may import it."""

from datetime import timedelta

from services.jobs.args import JobArgs


class PruneJobs(JobArgs, kind="jobs.prune", unique_by=(), time_limit=timedelta(minutes=10)):
    """Delete jobs that ended long ago."""
