"""mail"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "mail_0001"
down_revision = None
branch_labels = ("mail",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mail",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=50), nullable=False),
        sa.Column("dedupe_key", sa.String(length=200), nullable=False),
        sa.Column("message_id", sa.String(length=300), nullable=False),
        sa.Column("recipient", sa.String(length=320), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("sensitive", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("resend", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "held",
                "sending",
                "sent",
                "failed",
                "unknown",
                "suppressed",
                "cancelled",
                name="mailstate",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("repeats", sa.Integer(), nullable=False),
        sa.Column("claim_id", sa.Uuid(), nullable=True),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("due_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("claimed_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("ended_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mail")),
        sa.UniqueConstraint("dedupe_key", name=op.f("uq_mail_dedupe_key")),
    )
    with op.batch_alter_table("mail", schema=None) as batch_op:
        batch_op.create_index(
            "ix_mail_deadline",
            ["expires_at"],
            unique=False,
            postgresql_where=sa.text("ended_at is null"),
            sqlite_where=sa.text("ended_at is null"),
        )
        batch_op.create_index(
            "ix_mail_ended",
            ["ended_at"],
            unique=False,
            postgresql_where=sa.text("ended_at is not null"),
            sqlite_where=sa.text("ended_at is not null"),
        )
        batch_op.create_index(
            "ix_mail_queued",
            ["priority", "due_at"],
            unique=False,
            postgresql_where=sa.text("state = 'queued'"),
            sqlite_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index(
            "ix_mail_sending",
            ["claim_id"],
            unique=False,
            postgresql_where=sa.text("state = 'sending'"),
            sqlite_where=sa.text("state = 'sending'"),
        )
    op.create_table(
        "mail_server",
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failing_since", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("paused_until", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("rate_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_mail_server")),
    )
    op.create_table(
        "mail_suppression",
        sa.Column("address", sa.String(length=320), nullable=False),
        sa.Column("refusals", sa.Integer(), nullable=False),
        sa.Column("refused_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("suppressed_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_mail_suppression")),
    )


def downgrade() -> None:
    op.drop_table("mail_suppression")
    op.drop_table("mail_server")
    op.drop_table("mail")
