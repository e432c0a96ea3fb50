"""feed addresses"""

import sqlalchemy as sa
from alembic import op

from services import database

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("feed", sa.Column("modified_at", database.UtcDateTime(timezone=True), nullable=True))
    op.add_column("feed", sa.Column("revoked_at", database.UtcDateTime(timezone=True), nullable=True))
    op.execute("UPDATE feed SET modified_at = built_at")


def downgrade() -> None:
    op.drop_column("feed", "revoked_at")
    op.drop_column("feed", "modified_at")
