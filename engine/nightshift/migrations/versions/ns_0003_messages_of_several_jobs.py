"""Keep which message a job was sent in, and let the table bear many short jobs.

The column may be missing in what the release before writes.
"""

import sqlalchemy as sa
from alembic import op

revision = "ns_0003"
down_revision = "ns_0002"
branch_labels = None
depends_on = None


STARTED = "started_at is not null"

# A job's row is written four times in its life, and three of them leave a dead one. By default
# Postgres waits until a fifth of a table is dead.
AUTOVACUUM = {
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_insert_scale_factor": "0.02",
    "autovacuum_analyze_scale_factor": "0.02",
}


def upgrade() -> None:
    op.add_column("job", sa.Column("message_id", sa.Uuid(), nullable=True))
    op.drop_index("ix_job_kind_started", "job")
    op.create_index(
        "ix_job_kind_started",
        "job",
        ["kind", "started_at"],
        postgresql_where=sa.text(STARTED),
        sqlite_where=sa.text(STARTED),
    )
    if op.get_context().dialect.name == "postgresql":
        settings = ", ".join(f"{name} = {value}" for name, value in AUTOVACUUM.items())
        op.execute(f"ALTER TABLE job SET ({settings})")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE job RESET ({', '.join(AUTOVACUUM)})")
    op.drop_index("ix_job_kind_started", "job")
    op.create_index("ix_job_kind_started", "job", ["kind", "started_at"])
    op.drop_column("job", "message_id")
