"""Print what a backup and an upgrade have to know of an installation: `python -m project.facts`.

One JSON object: `project`, `version` and `engine` (releases), `known` (the revisions of the code),
and `after_restore` (the commands that make again what is not in the database). With `--database`
also `at`, the database's revisions, and `workers`, how many live.
"""

import json
import sys
from importlib.metadata import version
from typing import Any

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from nightshift.cli.output import refusals
from nightshift.database import ago
from nightshift.jobs.models import Worker
from nightshift.runtime import Runtime
from sqlalchemy import func, inspect, select

from project.celery import app
from project.settings import NAME


def read_facts(*, database: bool) -> dict[str, Any]:
    """Return the facts that the module's docstring names."""
    script = ScriptDirectory.from_config(Config("alembic.ini"))
    facts: dict[str, Any] = {
        "project": app.runtime.settings.project_name,
        "version": version(NAME),
        "engine": version("celery-nightshift"),
        "known": sorted(one.revision for one in script.walk_revisions()),
        "after_restore": app.composition.after_restore,
    }
    return facts | (_read_database(app.runtime) if database else {})


def _read_database(runtime: Runtime) -> dict[str, Any]:
    with runtime.read_only() as session:
        connection = session.connection()
        at = MigrationContext.configure(connection).get_current_heads()
        # These columns only: the database may be of an older release than the code.
        young = Worker.heartbeat_at > ago(runtime.settings.worker_silent_after)
        living = select(func.count(Worker.id)).where(Worker.stopped_at.is_(None), young)
        there = inspect(connection).has_table(Worker.__tablename__)
        workers = session.execute(living).scalar_one() if there else 0
    return {"at": sorted(at), "workers": workers}


if __name__ == "__main__":
    with refusals():
        print(json.dumps(read_facts(database="--database" in sys.argv)))  # noqa: T201
