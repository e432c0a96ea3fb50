"""Migrations: several histories in one database, each a branch of Alembic with tables of its own.

The engine's history is in `versions/` beside this file; a project's are in its own `migrations/`.
All share one version table, and `alembic upgrade heads` brings all of them up to date.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, func, select

from nightshift.database import Base
from nightshift.migrations.branches import Branches
from nightshift.migrations.sqlite import LosslessSQLite
from nightshift.runtime import Runtime

# Any number that no other program uses for an advisory lock in this database.
LOCK_KEY = 5_601_370_018_426
# A migration that waits for a table makes every later query of that table wait behind it.
LOCK_TIMEOUT = "10s"
SECONDS_BETWEEN_TRIES = 0.2

logger = logging.getLogger(__name__)


def run_migrations(
    runtime: Runtime, table_branches: Mapping[str, str], *, metadata: MetaData = Base.metadata
) -> None:
    """Do what the `alembic` command was called for; a project's `migrations/env.py` calls this.

    `metadata` has the tables as they should be.
    `table_branches` names, by table, the branch that holds it. The whole upgrade is one
    transaction, and a second upgrade waits until it has ended. On Postgres a statement may take any
    time, but waits for a lock no longer than LOCK_TIMEOUT. On SQLite foreign keys are off; when a
    revision leaves references to missing rows, the upgrade is undone. Each revision that ran is
    printed, and where the database is then, unless `alembic --quiet` runs it.

    Raises CommandError for `--sql`, because migrations ask the database what it holds, and behind a
    pooler, which would give their settings and their lock to other programs.
    """
    if context.is_offline_mode():
        raise CommandError("--sql is not supported: migrations ask the database what it holds")
    if runtime.settings.database_pooler != "none":
        raise CommandError(
            "migrations need a connection of their own: for this command, let DATABASE_URL lead to"
            " Postgres itself and set DATABASE_POOLER=none"
        )
    branches = Branches(context.script, metadata, table_branches)
    with runtime.engine.execution_options(sqlite_begin="IMMEDIATE").connect() as connection:
        try:
            _prepare(connection)
            context.configure(
                connection=connection,
                target_metadata=metadata,
                include_name=branches.include_name,
                process_revision_directives=branches.direct,
                # Alembic passes keyword arguments; its type says that they are positional.
                on_version_apply=_check,  # type: ignore[arg-type]
                user_module_prefix="database.",
                # On Postgres too: a revision that is generated there must also run on SQLite.
                render_as_batch=True,
            )
            with context.begin_transaction():
                _run()
            _print_heads()
        finally:
            # This connection has the lock and other settings, so it must not return to the pool.
            connection.invalidate()


def _run() -> None:
    try:
        context.run_migrations()
    except CommandError as error:
        if str(error) != "Target database is not up to date.":
            raise
        raise CommandError(
            "the database does not have all migrations yet: first run `alembic upgrade heads`"
        ) from error


def _prepare(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        # On the driver's connection, outside a transaction: within one, SQLite ignores it.
        connection.connection.cursor().execute("PRAGMA foreign_keys = OFF")
        return
    # A migration of a large table takes its time: neither side gives it up.
    driver: Any = connection.connection.driver_connection
    driver.silence = None
    connection.exec_driver_sql("SET statement_timeout = 0")
    connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    # Polled: CREATE INDEX CONCURRENTLY waits for the end of every transaction, and so for one that
    # waits for a lock here. Committed: Alembic does not commit a transaction that it did not begin.
    waiting = False
    while not connection.scalar(select(func.pg_try_advisory_lock(LOCK_KEY))):
        connection.commit()
        if not waiting:
            logger.warning("another migration of this database is running: waiting for its end")
        waiting = True
        time.sleep(SECONDS_BETWEEN_TRIES)
    connection.commit()


def _print_heads() -> None:
    try:
        context.get_revision_argument()
    except KeyError:
        return  # The command moves nothing: `alembic check`, `current`, `revision`.
    at = ", ".join(sorted(context.get_context().get_current_heads())) or "no revision"
    _say(f"the database is at {at}")


def _say(line: str) -> None:
    if not getattr(context.config.cmd_opts, "quiet", False):
        context.config.print_stdout(line)


def _check(*, ctx: Any, step: Any, **_: Any) -> None:
    if not step.is_stamp:
        done = "ran" if step.is_upgrade else "undid"
        [revision] = context.script.get_revisions(step.up_revision_id)
        _say(f"{done} {revision.revision}: {revision.doc}")
    if isinstance(ctx.impl, LosslessSQLite):
        ctx.impl.check(step.up_revision_id)
