"""The bodies of the ledger's own jobs."""

from nightshift.celery.task import job
from nightshift.jobs import Outcome, Run, care
from nightshift.jobs.jobs import PruneJobs
from nightshift.settings import Settings


@job(PruneJobs, own_transactions=True)
def prune_jobs(args: PruneJobs, run: Run) -> Outcome:
    """Delete jobs that ended longer ago than the settings keep them. A second run deletes none."""
    settings = run.runtime[Settings]
    return care.prune_all(
        run.unit_of_work,
        succeeded=settings.jobs_keep_succeeded,
        failed=settings.jobs_keep_failed,
        now=run.now,
    )
