"""feed addresses

A deleted owner loses the address of the feed at once: a trigger writes another one. So an owner to
whom another program gives the same id does not inherit it. The next refresh removes the feed where
the owner is still missing.
"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


OWNERS = {"user_account": "user", "school_class": "class", "department": "department"}
TOKENS = {
    "postgresql": "replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '')",
    "sqlite": "lower(hex(randomblob(24)))",
}


def upgrade() -> None:
    op.add_column(
        "feed", sa.Column("modified_at", database.UtcDateTime(timezone=True), nullable=True)
    )
    op.add_column(
        "feed", sa.Column("revoked_at", database.UtcDateTime(timezone=True), nullable=True)
    )
    op.execute("UPDATE feed SET modified_at = built_at")
    dialect = op.get_context().dialect.name
    for table, kind in OWNERS.items():
        owned = f"kind = '{kind}' AND owner_id = OLD.id"
        change = f"UPDATE feed SET token = {TOKENS[dialect]} WHERE {owned}"  # noqa: S608 - constants
        name = f"readdress_{table}"
        trigger = f"CREATE TRIGGER {name} AFTER DELETE ON {table} FOR EACH ROW"
        if dialect == "postgresql":
            secured = "LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT"
            body = f"$$ BEGIN {change}; RETURN NULL; END $$"
            op.execute(f"CREATE FUNCTION {name}() RETURNS trigger {secured} AS {body}")
            op.execute(f"{trigger} EXECUTE FUNCTION {name}()")
        else:
            op.execute(f"{trigger} BEGIN {change}; END")


def downgrade() -> None:
    for table in OWNERS:
        if op.get_context().dialect.name == "postgresql":
            op.execute(f"DROP FUNCTION readdress_{table}() CASCADE")
        else:
            op.execute(f"DROP TRIGGER readdress_{table}")
    op.drop_column("feed", "revoked_at")
    op.drop_column("feed", "modified_at")
