"""a feed's stamp, by which its store knows it again

Until now that was `size` and `mtime_ns`. The release before goes on reading these.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("feed", sa.Column("stamp", sa.Text(), nullable=True))
    op.execute("UPDATE feed SET stamp = size || '-' || mtime_ns WHERE etag IS NOT NULL")


def downgrade() -> None:
    op.drop_column("feed", "stamp")
