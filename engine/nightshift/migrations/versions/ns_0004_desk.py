"""Keep what people do at the desk, and which recurring jobs they paused; and find jobs for them.

The indexes hold no job that succeeds, and the tables are new: the release before needs neither.
"""

import sqlalchemy as sa
from alembic import op

from nightshift import database

revision = "ns_0004"
down_revision = "ns_0003"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_job_unsuccessful": ("finished_at", "state in ('failed', 'discarded', 'cancelled')"),
    "ix_job_set_aside": ("run_at", "state in ('waiting', 'held')"),
}


def upgrade() -> None:
    for name, (column, where) in INDEXES.items():
        op.create_index(
            name,
            "job",
            [column],
            postgresql_where=sa.text(where),
            sqlite_where=sa.text(where),
        )
    op.create_table(
        "paused_entry",
        sa.Column("entry", sa.String(length=100), nullable=False),
        sa.Column("paused_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_paused_entry")),
    )
    op.create_table(
        "desk_action",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("by", sa.String(length=50), nullable=False),
        sa.Column("verb", sa.String(length=30), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("query", sa.Text(), nullable=True),
        sa.Column("expected", sa.Integer(), nullable=True),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("skipped", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("cursor", sa.String(length=100), nullable=True),
        sa.Column("ended_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_desk_action")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_desk_action_at", "desk_action", ["at"])


def downgrade() -> None:
    op.drop_table("desk_action")
    op.drop_table("paused_entry")
    for name in INDEXES:
        op.drop_index(name, "job")
