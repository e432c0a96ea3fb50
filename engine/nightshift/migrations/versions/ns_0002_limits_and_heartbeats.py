"""Keep what decides about limits, heartbeats and schedules in the rows themselves.

Every new column may be missing in what the release before writes.
"""

import sqlalchemy as sa
from alembic import op

from nightshift import database

revision = "ns_0002"
down_revision = "ns_0001"
branch_labels = None
depends_on = None

UNSENT = "state = 'queued' and sent_at is null"


def upgrade() -> None:
    op.add_column(
        "job", sa.Column("limited", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.drop_index("ix_job_unsent", "job")
    op.create_index(
        "ix_job_unsent",
        "job",
        ["queue", "limited", "priority", "run_at"],
        postgresql_where=sa.text(UNSENT),
        sqlite_where=sa.text(UNSENT),
    )
    op.create_index(
        "ix_job_limited",
        "job",
        ["kind", "priority", "run_at"],
        postgresql_where=sa.text(f"{UNSENT} and limited"),
        sqlite_where=sa.text(f"{UNSENT} and limited"),
    )
    op.add_column(
        "worker", sa.Column("steady_since", database.UtcDateTime(timezone=True), nullable=True)
    )
    op.add_column(
        "worker", sa.Column("hung_at", database.UtcDateTime(timezone=True), nullable=True)
    )
    op.add_column(
        "schedule", sa.Column("seen_at", database.UtcDateTime(timezone=True), nullable=True)
    )
    op.create_table(
        "job_start",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=100), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "at", name=op.f("pk_job_start")),
    )
    op.create_index("ix_job_start_kind_at", "job_start", ["kind", "at"])


def downgrade() -> None:
    op.drop_table("job_start")
    op.drop_column("schedule", "seen_at")
    op.drop_column("worker", "hung_at")
    op.drop_column("worker", "steady_since")
    op.drop_index("ix_job_limited", "job")
    op.drop_index("ix_job_unsent", "job")
    op.create_index(
        "ix_job_unsent",
        "job",
        ["queue", "priority", "run_at"],
        postgresql_where=sa.text(UNSENT),
        sqlite_where=sa.text(UNSENT),
    )
    op.drop_column("job", "limited")
