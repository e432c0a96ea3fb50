"""The ledger's own jobs."""

from project.bootstrap import bootstrap
from project.task import job
from services.jobs import Outcome, Run, care
from services.jobs.jobs import PruneJobs


@job(PruneJobs, own_transactions=True)
def prune_jobs(args: PruneJobs, run: Run) -> Outcome:
    """Delete jobs that ended longer ago than they are kept. A second run finds none, and deletes none."""
    settings = bootstrap().settings
    keep = care.retention(succeeded=settings.jobs_keep_succeeded, failed=settings.jobs_keep_failed)
    return care.prune_all(run.unit_of_work, keep, now=run.now)
