"""user keys"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "user_key",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column(
            "purpose",
            sa.Enum(
                "verify_address",
                "reset_password",
                name="keypurpose",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("address", sa.String(length=320), nullable=False),
        sa.Column("expires_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("redeemed_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_user_key_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "purpose", name=op.f("pk_user_key")),
        sa.UniqueConstraint("hash", name=op.f("uq_user_key_hash")),
    )
    op.add_column(
        "user_account",
        sa.Column("email_verified_at", database.UtcDateTime(timezone=True), nullable=True),
    )


def downgrade() -> None:
    op.drop_column("user_account", "email_verified_at")

    op.drop_table("user_key")
