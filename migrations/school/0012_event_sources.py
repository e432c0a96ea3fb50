"""calendars that are kept elsewhere, the events that came from them, and the record of each run"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_source",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("nightly", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("last_modified", sa.Text(), nullable=True),
        sa.Column("state", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_source")),
        sa.UniqueConstraint("name", name=op.f("uq_event_source_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "event_source_entry",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("said", sa.LargeBinary(), nullable=False),
        sa.Column("written", sa.LargeBinary(), nullable=False),
        sa.Column("gone_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["event.id"],
            name=op.f("fk_event_source_entry_event_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["event_source.id"],
            name=op.f("fk_event_source_entry_source_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_event_source_entry")),
    )
    op.create_index(op.f("ix_event_source_entry_source_id"), "event_source_entry", ["source_id"])
    op.create_table(
        "event_source_run",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("ended_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["event_source.id"],
            name=op.f("fk_event_source_run_source_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_source_run")),
    )
    op.create_index(
        "ix_event_source_run_source_id_ended_at", "event_source_run", ["source_id", "ended_at"]
    )


def downgrade() -> None:
    op.drop_table("event_source_run")
    op.drop_table("event_source_entry")
    op.drop_table("event_source")
