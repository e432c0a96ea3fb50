"""what a message is about, and to which reader

Messages about one thing to one reader are compared with each other. Those of an earlier release
have no such values: the school's migration fills them in for its own.
"""

import sqlalchemy as sa
from alembic import op

revision = "mail_0002"
down_revision = "mail_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("mail", sa.Column("about", sa.String(length=100), nullable=True))
    op.add_column("mail", sa.Column("reader_id", sa.Integer(), nullable=True))
    op.add_column("mail", sa.Column("version", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_mail_about",
        "mail",
        ["about", "reader_id"],
        unique=False,
        postgresql_where=sa.text("about is not null"),
        sqlite_where=sa.text("about is not null"),
    )


def downgrade() -> None:
    op.drop_index("ix_mail_about", table_name="mail")
    op.drop_column("mail", "version")
    op.drop_column("mail", "reader_id")
    op.drop_column("mail", "about")
