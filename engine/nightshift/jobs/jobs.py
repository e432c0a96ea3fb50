"""The arguments of the ledger's own jobs. Any module may import these."""

from datetime import timedelta

from nightshift.jobs.args import JobArgs


class PruneJobs(JobArgs, kind="jobs.prune", unique_by=(), time_limit=timedelta(minutes=10)):
    """Delete jobs that ended longer ago than the settings keep them."""
