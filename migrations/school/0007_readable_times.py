"""readable times

Postgres takes times that Python cannot read ('infinity', the year 10000, 24:00), and one such row
would stop every calendar. The constraints do not check rows that exist: a migration must not stop
for them.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INSTANT = "{0} BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'"
DAY = "{0} BETWEEN '0001-01-01' AND '9999-12-31'"
CHECKED = {
    "event": [
        *(
            INSTANT.format(column)
            for column in ("starts_at", "ends_at", "cancelled_at", "deleted_at", "created_at")
        ),
        *(DAY.format(column) for column in ("starts_on", "ends_on")),
    ],
    "semester": [DAY.format("starts_on"), DAY.format("ends_on")],
    "lesson": ["starts < '24:00'", "ends < '24:00'"],
}


def upgrade() -> None:
    # Other programs write to Postgres; SQLite would have to copy whole tables for a constraint.
    if op.get_context().dialect.name == "postgresql":
        for table, checks in CHECKED.items():
            readable = f"CHECK ({' AND '.join(checks)}) NOT VALID"
            op.execute(f"ALTER TABLE {table} ADD CONSTRAINT ck_{table}_readable_times {readable}")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for table in CHECKED:
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT ck_{table}_readable_times")
