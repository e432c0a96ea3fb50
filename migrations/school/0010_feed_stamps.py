"""a feed's stamp, by which its store knows it again; and a note of an address that goes or comes

Until now the stamp was `size` and `mtime_ns`. The release before goes on reading these.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NOTE = (
    "INSERT INTO change_log (kind, key)"
    " SELECT NEW.kind, CAST(NEW.owner_id AS varchar(50))"
    " WHERE NOT EXISTS (SELECT 1 FROM own_write)"
)


def upgrade() -> None:
    op.add_column("feed", sa.Column("stamp", sa.Text(), nullable=True))
    op.execute("UPDATE feed SET stamp = size || '-' || mtime_ns WHERE etag IS NOT NULL")
    if _is_postgres():
        # As in 0008: another program's role needs no rights on the change log.
        schema = op.get_bind().scalar(sa.text("SELECT current_schema()"))
        op.execute(
            "CREATE FUNCTION note_feed_revoked() RETURNS trigger LANGUAGE plpgsql"
            f' SECURITY DEFINER SET search_path = "{schema}", pg_temp'
            f" AS $$ BEGIN {NOTE}; RETURN NULL; END $$"
        )
        op.execute(
            "CREATE TRIGGER note_feed_revoked AFTER UPDATE ON feed FOR EACH ROW"
            " WHEN (OLD.revoked_at IS DISTINCT FROM NEW.revoked_at)"
            " EXECUTE FUNCTION note_feed_revoked()"
        )
    else:
        op.execute(
            "CREATE TRIGGER note_feed_revoked AFTER UPDATE ON feed FOR EACH ROW"
            f" WHEN (OLD.revoked_at IS NOT NEW.revoked_at) BEGIN {NOTE}; END"
        )


def downgrade() -> None:
    if _is_postgres():
        op.execute("DROP FUNCTION note_feed_revoked() CASCADE")
    else:
        op.execute("DROP TRIGGER note_feed_revoked")
    op.drop_column("feed", "stamp")


def _is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"
