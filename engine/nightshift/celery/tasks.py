"""The bodies of the ledger's own jobs."""

from functools import partial

from nightshift.celery.task import job
from nightshift.jobs import Outcome, Run, actions, care
from nightshift.jobs.jobs import ActOnJobs, PruneJobs
from nightshift.jobs.run import repeat
from nightshift.runtime import Runtime
from nightshift.settings import Settings


@job(PruneJobs, own_transactions=True)
def prune_jobs(args: PruneJobs, run: Run) -> Outcome:
    """Delete jobs that ended longer ago than the settings keep them. A second run deletes none."""
    settings = run.runtime[Settings]
    before = run.now - settings.desk_keep_actions
    repeat(run.unit_of_work, partial(care.prune_actions, before=before))
    return care.prune_all(
        run.unit_of_work,
        succeeded=settings.jobs_keep_succeeded,
        failed=settings.jobs_keep_failed,
        now=run.now,
    )


@job(ActOnJobs, own_transactions=True)
def act_on_jobs(args: ActOnJobs, run: Run) -> Outcome:
    """Do what a person asked for. A second run goes on where the first one ended."""
    assert isinstance(run.runtime, Runtime)
    return actions.work_through(run, args.action_id, kinds=run.runtime.kinds)
