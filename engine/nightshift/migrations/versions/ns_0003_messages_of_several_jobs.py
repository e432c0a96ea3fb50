"""Keep which message a job was sent in: one may name several jobs.

The column may be missing in what the release before writes.
"""

import sqlalchemy as sa
from alembic import op

revision = "ns_0003"
down_revision = "ns_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("message_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("job", "message_id")
