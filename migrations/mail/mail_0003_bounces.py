"""what other servers report of messages that they took"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "mail_0003"
down_revision = "mail_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mail_bounce",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("mail_id", sa.Integer(), nullable=True),
        sa.Column(
            "kind",
            sa.Enum(
                "failed",
                "delayed",
                "delivered",
                "complaint",
                "other",
                name="bouncekind",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.Column("received_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["mail_id"], ["mail.id"], name=op.f("fk_mail_bounce_mail_id_mail"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mail_bounce")),
        sa.UniqueConstraint("digest", name=op.f("uq_mail_bounce_digest")),
    )
    op.create_index(op.f("ix_mail_bounce_mail_id"), "mail_bounce", ["mail_id"])
    op.create_index(op.f("ix_mail_bounce_received_at"), "mail_bounce", ["received_at"])
    op.create_index(
        "ix_mail_message_id",
        "mail",
        ["message_id"],
        unique=False,
        postgresql_where=sa.text("ended_at is not null"),
        sqlite_where=sa.text("ended_at is not null"),
    )


def downgrade() -> None:
    op.drop_index("ix_mail_message_id", table_name="mail")
    op.drop_table("mail_bounce")
