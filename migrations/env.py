"""Alembic's entry: the database of the settings, and every model."""

from alembic import context

import services.calendars.models
import services.jobs.models
import services.mail.models
import services.school.models  # noqa: F401 - imported so that their tables are known
from project.bootstrap import bootstrap
from services.database import Base

with bootstrap().engine.execution_options(sqlite_begin="IMMEDIATE").connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        user_module_prefix="database.",
        # SQLite changes a table by copying it.
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()
