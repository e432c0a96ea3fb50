"""event notices"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_notice",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("content", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("readers", sa.JSON(), nullable=False),
        sa.Column("invited", sa.JSON(), nullable=False),
        sa.Column("vevents", sa.JSON(), nullable=False),
        sa.Column("told_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["event.id"], name=op.f("fk_event_notice_event_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", "version", name=op.f("pk_event_notice")),
    )


def downgrade() -> None:
    op.drop_table("event_notice")
