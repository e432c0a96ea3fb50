"""The arguments of the ledger's own jobs. Any module may import these."""

from datetime import timedelta

from nightshift.jobs.args import JobArgs


class PruneJobs(JobArgs, kind="jobs.prune", unique_by=(), time_limit=timedelta(minutes=10)):
    """Delete jobs that ended longer ago than the settings keep them."""


class ActOnJobs(
    JobArgs, kind="jobs.act", unique_by=("action_id",), time_limit=timedelta(minutes=5)
):
    """Do to all jobs that match a filter what a person asked for at the desk."""

    action_id: int
