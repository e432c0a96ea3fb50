"""An installation in which every probe finds what it looks for, and rows that spoil it."""

from datetime import datetime
from uuid import uuid4

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from job_rows import beat
from nightshift.celery.app import App
from nightshift.jobs import schedule
from nightshift.jobs.models import Job, JobState
from nightshift.observe.probes import Finding, examine

# The configuration of a project that has the engine's migrations alone.
ALEMBIC = """
[alembic]
script_location = .
path_separator = newline
version_locations = nightshift:migrations/versions
"""

# What these find is decided by the machine that runs the tests, not by the installation.
OF_THE_MACHINE = {"PID 1"}


def make_job(kind: str, state: JobState, at: datetime, **columns: object) -> Job:
    """Return a job whose every time is `at`."""
    times = {"created_at": at, "run_at": at, "started_at": at, "finished_at": at}
    values = {
        "id": uuid4(),
        "kind": kind,
        "queue": "default",
        "priority": 5,
        "state": state,
        "args": {},
        "max_attempts": 1,
        "time_limit": 60,
        **times,
        **columns,
    }
    return Job(**values)


def make_healthy(app: App) -> App:
    """Return the app after making its database healthy.

    It is at the revisions that `alembic.ini` in the current folder leads to, every recurring job
    has succeeded, beat has registered them, and a worker serves every queue.
    """
    runtime, entries = app.runtime, app.composition.schedule(app.runtime)
    with runtime.unit_of_work() as session:
        script = ScriptDirectory.from_config(Config("alembic.ini"))
        MigrationContext.configure(session.connection()).stamp(script, "heads")
        queues = ",".join(app.composition.queues)
        beat(session, name="one", queues=queues, pid=1)
        for entry in entries:
            session.add(make_job(entry.job.policy.kind, JobState.SUCCEEDED, runtime.now()))
        session.flush()
        schedule.register_entries(session, entries, now=runtime.now())
    return app


def findings(app: App) -> dict[str, Finding]:
    """Return what the probes find, by their names."""
    return {one.probe: one for one in examine(app.runtime)}


def troubles(app: App) -> dict[str, str]:
    """Return the status of every probe that is not content, but for those of the machine."""
    return {
        name: one.status
        for name, one in findings(app).items()
        if one.status != "ok" and name not in OF_THE_MACHINE
    }
