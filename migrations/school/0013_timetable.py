"""single dates of lessons, holidays, and what the timetable's syncs remember

The triggers are those of 0008, for the new tables that feeds read.
"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# By table: the columns that calendars depend on, a row's unique keys beside SQLite's rowid, and
# what is noted of a row: kind and key.
NOTED: dict[str, tuple[str, list[str], tuple[str, str]]] = {
    "lesson_change": (
        "id, lesson_id, taken_on, cancelled, moved_to, starts, ends, substituted",
        ["lesson_id, taken_on"],
        ("'lesson'", "{row}.lesson_id"),
    ),
    "lesson_change_teacher": (
        "change_id, user_id",
        ["change_id, user_id"],
        ("'user'", "{row}.user_id"),
    ),
    "holiday": ("id, starts_on, ends_on", ["key"], ("'all'", "NULL")),
}
# As in 0007: Postgres takes times that Python cannot read.
READABLE = {
    "lesson_change": (
        "taken_on BETWEEN '0001-01-01' AND '9999-12-31'"
        " AND moved_to BETWEEN '0001-01-01' AND '9999-12-31'"
        " AND starts < '24:00' AND ends < '24:00'"
    ),
    "holiday": (
        "starts_on BETWEEN '0001-01-01' AND '9999-12-31'"
        " AND ends_on BETWEEN '0001-01-01' AND '9999-12-31'"
    ),
}
ROWS = {"insert": ["NEW"], "update": ["OLD", "NEW"], "delete": ["OLD"]}
INTO_LOG = "INSERT INTO change_log (kind, key) "

# SQLite gives the id of a deleted row to a new one, which no source has a claim on.
CLAIMED = {"class": "school_class", "lesson": "lesson", "change": "lesson_change"}


def upgrade() -> None:
    op.create_table(
        "lesson_change",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("lesson_id", sa.Integer(), nullable=False),
        sa.Column("taken_on", sa.Date(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("room", sa.String(length=100), nullable=True),
        sa.Column("moved_to", sa.Date(), nullable=True),
        sa.Column("starts", sa.Time(), nullable=True),
        sa.Column("ends", sa.Time(), nullable=True),
        sa.Column("substituted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(
            ["lesson_id"],
            ["lesson.id"],
            name=op.f("fk_lesson_change_lesson_id_lesson"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lesson_change")),
        sa.UniqueConstraint(
            "lesson_id", "taken_on", name=op.f("uq_lesson_change_lesson_id_taken_on")
        ),
    )
    op.create_table(
        "lesson_change_teacher",
        sa.Column("change_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["change_id"],
            ["lesson_change.id"],
            name=op.f("fk_lesson_change_teacher_change_id_lesson_change"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["user_account.id"],
            name=op.f("fk_lesson_change_teacher_user_id_user_account"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("change_id", "user_id", name=op.f("pk_lesson_change_teacher")),
    )
    op.create_index(op.f("ix_lesson_change_teacher_user_id"), "lesson_change_teacher", ["user_id"])
    op.create_table(
        "holiday",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=50), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("starts_on", sa.Date(), nullable=False),
        sa.Column("ends_on", sa.Date(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holiday")),
        sa.UniqueConstraint("key", name=op.f("uq_holiday_key")),
    )
    op.create_table(
        "timetable_claim",
        sa.Column(
            "kind",
            sa.Enum(
                "class",
                "lesson",
                "change",
                name="kind",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("row_id", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=30), nullable=False),
        sa.Column("source_id", sa.String(length=100), nullable=False),
        sa.Column("written", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("kind", "row_id", name=op.f("pk_timetable_claim")),
    )
    op.create_index(op.f("ix_timetable_claim_source"), "timetable_claim", ["source"])
    op.create_table(
        "timetable_run",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.String(length=30), nullable=False),
        sa.Column("started_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "applied",
                "unchanged",
                "refused",
                "failed",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_timetable_run")),
    )
    op.create_index(op.f("ix_timetable_run_started_at"), "timetable_run", ["started_at"])
    if _is_postgres():
        for table, readable in READABLE.items():
            check = f"ADD CONSTRAINT ck_{table}_readable_times CHECK ({readable})"
            op.execute(f"ALTER TABLE {table} {check}")
    for table in NOTED:
        _note_changes(table)
    for kind, table in CLAIMED.items():
        _create_trigger(
            f"end_claim_{kind}",
            f"AFTER DELETE ON {table}",
            "",
            f"DELETE FROM timetable_claim WHERE kind = '{kind}' AND row_id = OLD.id",  # noqa: S608
        )


def downgrade() -> None:
    if _is_postgres():
        names = [f"note_{table}_{operation}" for table in NOTED for operation in ROWS]
        for name in (*names, *(f"end_claim_{kind}" for kind in CLAIMED)):
            op.execute(f"DROP FUNCTION {name}() CASCADE")
    else:
        # The others go with their tables.
        for kind in ("class", "lesson"):
            op.execute(f"DROP TRIGGER end_claim_{kind}")
    for table in (
        "timetable_run", "timetable_claim", "holiday", "lesson_change_teacher", "lesson_change"
    ):  # fmt: skip
        op.drop_table(table)


def _is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _note_changes(table: str) -> None:
    columns, keys, note = NOTED[table]
    for operation, rows in ROWS.items():
        noted = INTO_LOG + " UNION ".join(_note(note, row) for row in rows)
        when = _differ("OLD", columns) if operation == "update" else ""
        _create_trigger(f"note_{table}_{operation}", f"AFTER {operation} ON {table}", when, noted)
    if _is_postgres():
        op.execute(
            f"CREATE TRIGGER note_truncate AFTER TRUNCATE ON {table}"
            " EXECUTE FUNCTION note_truncate()"
        )
    else:
        _note_replacing(table, columns, keys, note)


def _note(note: tuple[str, str], row: str, source: str = "") -> str:
    kind, key = (part.format(row=row) for part in note)
    return f"SELECT {kind}, CAST({key} AS varchar(50)) {source}"


def _differ(row: str, columns: str) -> str:
    differs = "IS DISTINCT FROM" if _is_postgres() else "IS NOT"
    mine, yours = (
        f"({', '.join(f'{one}.{column}' for column in columns.split(', '))})"
        for one in (row, "NEW")
    )
    return f"{mine} {differs} {yours}"


def _create_trigger(name: str, event: str, when: str, statement: str) -> None:
    condition = f" WHEN ({when})" if when else ""
    trigger = f"CREATE TRIGGER {name} {event} FOR EACH ROW{condition}"
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


def _note_replacing(table: str, columns: str, keys: list[str], note: tuple[str, str]) -> None:
    """On SQLite: note the rows that a statement `OR REPLACE` is about to remove, as in 0008."""
    key_columns = list(dict.fromkeys(", ".join(keys).split(", ")))
    same = [
        " AND ".join(f"gone.{column} = NEW.{column}" for column in key.split(", ")) for key in keys
    ]
    found = f"({' OR '.join(['gone.rowid = NEW.rowid', *same])})"
    for name, event, when, more in (
        ("replace", "INSERT", "", _differ("gone", columns)),
        (
            "replace_by_update",
            "UPDATE",
            _differ("OLD", ", ".join(["rowid", *key_columns])),
            "gone.rowid <> OLD.rowid",
        ),
    ):
        noted = INTO_LOG + _note(note, "gone", f"FROM {table} AS gone WHERE {found} AND {more}")
        _create_trigger(f"note_{table}_{name}", f"BEFORE {event} ON {table}", when, noted)
