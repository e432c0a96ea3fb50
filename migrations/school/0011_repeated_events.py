"""repeated events: a rule, the days between which it has dates, and what is otherwise on a date

The release before does not know rules: it shows a repeated event on its first date.

A migration that renames or drops a column that a trigger names drops the trigger first, and creates
it again afterwards.
"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

CURRENT = "state = 'published' AND version_of_id IS NULL"
SERIES = f"{CURRENT} AND last_on IS NOT NULL"

OLD_EVENT = (
    "id, state, title, description, location, starts_at, ends_at, starts_on, ends_on, audience,"
    " teaching_affected, addressed, version_of_id, cancelled_at, deleted_at"
)
EVENT = f"{OLD_EVENT}, rrule, first_on, last_on"
EVENT_NOTE = (
    "SELECT CASE WHEN {row}.addressed THEN 'event' ELSE 'all' END, CAST(NULL AS varchar(50)),"
    " {row}.id {source} WHERE {row}.state = 'published' AND {row}.version_of_id IS NULL"
)
DATE = (
    "event_id, original_on, state, starts_at, ends_at, starts_on, ends_on, title, description,"
    " location"
)
# A refresh finds out whether the event is for all.
DATE_NOTE = "SELECT 'event', CAST(NULL AS varchar(50)), {row}.event_id {source} WHERE true"
# A statement `OR REPLACE` deletes the rows that have one of the new row's keys.
SAME_EVENT = "(gone.rowid = NEW.rowid OR gone.id = NEW.id)"
SAME_DATE = (
    "(gone.rowid = NEW.rowid OR gone.id = NEW.id"
    " OR (gone.event_id = NEW.event_id AND gone.original_on = NEW.original_on))"
)
ROWS = {"insert": ["NEW"], "update": ["OLD", "NEW"], "delete": ["OLD"]}

INSTANT = "{0} BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'"
DAY = "{0} BETWEEN '0001-01-01' AND '9999-12-31'"


def upgrade() -> None:
    op.add_column("event", sa.Column("rrule", sa.Text(), server_default="", nullable=False))
    op.add_column("event", sa.Column("first_on", sa.Date(), nullable=True))
    op.add_column("event", sa.Column("last_on", sa.Date(), nullable=True))
    op.create_index(
        "ix_event_current_series",
        "event",
        ["last_on"],
        postgresql_where=sa.text(SERIES),
        sqlite_where=sa.text(SERIES),
    )
    op.create_table(
        "event_date",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("original_on", sa.Date(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "left_out",
                "cancelled",
                "changed",
                name="datestate",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("starts_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("ends_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("starts_on", sa.Date(), nullable=True),
        sa.Column("ends_on", sa.Date(), nullable=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("location", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["event_id"], ["event.id"], name=op.f("fk_event_date_event_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_date")),
        sa.UniqueConstraint(
            "event_id", "original_on", name=op.f("uq_event_date_event_id_original_on")
        ),
    )
    _note_events(EVENT)
    for operation, rows in ROWS.items():
        notes = " UNION ".join(DATE_NOTE.format(row=row, source="") for row in rows)
        _create_trigger(
            f"note_event_date_{operation}",
            f"AFTER {operation} ON event_date",
            _differ("OLD", DATE) if operation == "update" else "",
            notes,
        )
    if _is_postgres():
        op.execute(
            "CREATE TRIGGER note_truncate AFTER TRUNCATE ON event_date"
            " EXECUTE FUNCTION note_truncate()"
        )
        _check_times()
    else:
        for name, event, condition, found in (
            ("replace", "INSERT", "", f"{SAME_DATE} AND {_differ('gone', DATE)}"),
            (
                "replace_by_update",
                "UPDATE",
                _differ("OLD", "rowid, id, event_id, original_on"),
                f"{SAME_DATE} AND gone.rowid <> OLD.rowid",
            ),
        ):
            note = DATE_NOTE.format(row="gone", source="FROM event_date AS gone")
            _create_trigger(
                f"note_event_date_{name}",
                f"BEFORE {event} ON event_date",
                condition,
                f"{note} AND {found}",
            )


def downgrade() -> None:
    if _is_postgres():
        op.execute("ALTER TABLE event DROP CONSTRAINT ck_event_readable_days")
        for operation in ROWS:
            op.execute(f"DROP FUNCTION note_event_date_{operation}() CASCADE")
    op.drop_table("event_date")  # On SQLite its triggers go with it.
    _note_events(OLD_EVENT)
    op.drop_index("ix_event_current_series", "event")
    for column in ("rrule", "first_on", "last_on"):
        op.drop_column("event", column)


def _note_events(columns: str) -> None:
    """Create those triggers again that look at an event's columns."""
    if _is_postgres():
        op.execute("DROP TRIGGER note_event_update ON event")
        op.execute(
            "CREATE TRIGGER note_event_update AFTER update ON event FOR EACH ROW"
            f" WHEN ({_differ('OLD', columns)}) EXECUTE FUNCTION note_event_update()"
        )
        return
    op.execute("DROP TRIGGER note_event_update")
    op.execute("DROP TRIGGER note_event_replace")
    notes = " UNION ".join(EVENT_NOTE.format(row=row, source="") for row in ROWS["update"])
    _create_trigger("note_event_update", "AFTER update ON event", _differ("OLD", columns), notes)
    note = EVENT_NOTE.format(row="gone", source="FROM event AS gone")
    _create_trigger(
        "note_event_replace",
        "BEFORE INSERT ON event",
        "",
        f"{note} AND {SAME_EVENT} AND {_differ('gone', columns)}",
    )


def _check_times() -> None:
    """Refuse times that Python cannot read, as 0007 does."""
    of_dates = [
        *(INSTANT.format(column) for column in ("starts_at", "ends_at")),
        *(DAY.format(column) for column in ("original_on", "starts_on", "ends_on")),
    ]
    of_events = [DAY.format(column) for column in ("first_on", "last_on")]
    for table, name, checks in (
        ("event_date", "readable_times", of_dates),
        ("event", "readable_days", of_events),
    ):
        op.execute(
            f"ALTER TABLE {table} ADD CONSTRAINT ck_{table}_{name}"
            f" CHECK ({' AND '.join(checks)}) NOT VALID"
        )


def _is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _differ(row: str, columns: str) -> str:
    differs = "IS DISTINCT FROM" if _is_postgres() else "IS NOT"
    mine, yours = (
        f"({', '.join(f'{one}.{column}' for column in columns.split(', '))})"
        for one in (row, "NEW")
    )
    return f"{mine} {differs} {yours}"


def _create_trigger(name: str, event: str, when: str, noted: str) -> None:
    condition = f" WHEN ({when})" if when else ""
    trigger = f"CREATE TRIGGER {name} {event} FOR EACH ROW{condition}"
    statement = f"INSERT INTO change_log (kind, key, event_id) {noted}"
    if _is_postgres():
        # As in 0008: another program's role needs no rights on the change log.
        schema = op.get_bind().scalar(sa.text("SELECT current_schema()"))
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql"
            f' SECURITY DEFINER SET search_path = "{schema}", pg_temp'
            f" AS $$ BEGIN {statement}; RETURN NULL; END $$"
        )
        op.execute(f"{trigger} EXECUTE FUNCTION {name}()")
    else:
        op.execute(f"{trigger} BEGIN {statement}; END")
