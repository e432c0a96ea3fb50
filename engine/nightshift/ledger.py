"""The engine's own component, which every project lists first."""

from collections.abc import Sequence
from datetime import UTC

from nightshift.celery import checks as broker_checks
from nightshift.component import Component
from nightshift.jobs.jobs import ActOnJobs, PruneJobs
from nightshift.jobs.schedule import Entry
from nightshift.observe import checks
from nightshift.runtime import Runtime
from nightshift.settings import Settings


def _schedule(_runtime: Runtime) -> Sequence[Entry]:
    return [Entry("jobs.prune", PruneJobs(), "17 3 * * *", UTC, missed="latest")]


ledger = Component(
    name="ledger",
    models=("nightshift.jobs.models",),
    migrations="nightshift",
    kinds=(PruneJobs, ActOnJobs),
    tasks=("nightshift.celery.tasks",),
    settings=Settings,
    schedule=_schedule,
    probes=(*checks.PROBES, *broker_checks.PROBES),
    needs={"desk": ("desk_users", "desk_secret")},
    commands={
        "jobs": "nightshift.cli.jobs:jobs",
        "schedule": "nightshift.cli.schedule:schedule",
        "doctor": "nightshift.cli.doctor:doctor",
        "desk": "nightshift.cli.desk:desk",
        "metrics": "nightshift.cli.metrics:metrics",
        "new": "nightshift.cli.new:new",
    },
)
