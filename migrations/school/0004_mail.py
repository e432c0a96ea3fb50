"""mail

Empty: mail has a history of its own. A database that has this revision has mail's tables, and
Alembic counts what it depends on as applied.
"""

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = "mail_0001"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
