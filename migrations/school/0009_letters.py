"""what readers knew, and what mails of the release before are about

A mail about an event names the event, the version and the reader in its `dedupe_key`; from now on
in columns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = ("mail_0002",)

KINDS = (
    "event_published",
    "event_changed",
    "event_cancelled",
    "invitation",
    "invitation_cancelled",
)
# KIND:EVENT:VERSION:READER, and the event's id has 36 characters.
REST = "substr(dedupe_key, length(kind) + 39)"
BOTH = {
    "postgresql": (f"split_part({REST}, ':', 1)", f"split_part({REST}, ':', 2)"),
    "sqlite": (
        f"substr({REST}, 1, instr({REST}, ':') - 1)",
        f"substr({REST}, instr({REST}, ':') + 1)",
    ),
}


def upgrade() -> None:
    op.add_column("event_notice", sa.Column("before_id", sa.Uuid(), nullable=True))
    op.add_column("event_notice", sa.Column("before_cancelled", sa.Boolean(), nullable=True))
    version, reader = BOTH[op.get_context().dialect.name]
    kinds = ", ".join(f"'{kind}'" for kind in KINDS)
    op.execute(
        "UPDATE mail SET about = 'event:' || substr(dedupe_key, length(kind) + 2, 36),"  # noqa: S608 - our own words
        f" version = CAST({version} AS bigint), reader_id = CAST({reader} AS integer)"
        f" WHERE about IS NULL AND kind IN ({kinds})"
    )


def downgrade() -> None:
    op.drop_column("event_notice", "before_cancelled")
    op.drop_column("event_notice", "before_id")
