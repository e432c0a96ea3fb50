"""stamps and notes

Triggers note what 0002 left out: writes of revisions, renderings and feeds, new lessons, and on
SQLite the rows that `INSERT OR REPLACE` and `UPDATE OR REPLACE` remove without running a delete
trigger. Others keep the stamps of a revision that is deleted or set back.

A migration that renames or drops a column that a trigger names drops the trigger first, and creates
it again afterwards.
"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# What a note says: kind, key, event.
Note = tuple[str, str, str]

NULL = "CAST(NULL AS uuid)"
REVISED: Note = ("'revision'", "NULL", "{row}.event_id")
OWNED: Note = ("{row}.kind", "{row}.owner_id", NULL)
EVENT = (
    "id, state, title, description, location, starts_at, ends_at, starts_on, ends_on, audience,"
    " teaching_affected, addressed, version_of_id, cancelled_at, deleted_at"
)
SEEN = "{row}.state = 'published' AND {row}.version_of_id IS NULL"
# A sync and a refresh bring the feeds up to date themselves.
BY_OTHERS = "NOT EXISTS (SELECT 1 FROM own_write)"

# By table: the columns that calendars depend on, a row's unique keys beside SQLite's rowid, what is
# noted of a row, and which rows are noted.
NOTED: dict[str, tuple[str, list[str], list[Note], str]] = {
    "event": (
        EVENT,
        ["id"],
        [("CASE WHEN {row}.addressed THEN 'event' ELSE 'all' END", "NULL", "{row}.id")],
        SEEN,
    ),
    "event_class": (
        "event_id, class_id",
        ["event_id, class_id"],
        [("'class'", "{row}.class_id", "{row}.event_id")],
        "true",
    ),
    "event_class_group": (
        "event_id, class_group",
        ["event_id, class_group"],
        [("'group'", "{row}.class_group", "{row}.event_id")],
        "true",
    ),
    "event_department": (
        "event_id, department_id",
        ["event_id, department_id"],
        [("'department'", "{row}.department_id", "{row}.event_id")],
        "true",
    ),
    "event_user": (
        "event_id, user_id",
        ["event_id, user_id"],
        [("'user'", "{row}.user_id", "{row}.event_id")],
        "true",
    ),
    "school_class": (
        "id, name, display_name, department_id",
        ["name"],
        [("'class'", "{row}.id", NULL), ("'department_feed'", "{row}.department_id", NULL)],
        "true",
    ),
    "department": ("id, name, locale", ["name"], [("'department'", "{row}.id", NULL)], "true"),
    "user_account": (
        "id, first_name, last_name, locale, role, class_id, untis_id",
        ["email", "untis_id"],
        [("'user'", "{row}.id", NULL)],
        "true",
    ),
    "semester": ("id, starts_on, ends_on", ["name"], [("'all'", "NULL", NULL)], "true"),
    "lesson": (
        "id, semester_id, weekday, starts, ends, is_class_teachers",
        ["key"],
        [("'lesson'", "{row}.id", NULL)],
        "true",
    ),
    "lesson_class": (
        "lesson_id, class_id",
        ["lesson_id, class_id"],
        [("'lesson'", "{row}.lesson_id", NULL)],
        "true",
    ),
    "lesson_teacher": (
        "lesson_id, user_id",
        ["lesson_id, user_id"],
        [("'user'", "{row}.user_id", NULL)],
        "true",
    ),
    "subscription": ("user_id, follows_me", [], [("'user'", "{row}.user_id", NULL)], "true"),
    "subscribed_department": (
        "user_id, department_id",
        ["user_id, department_id"],
        [("'user'", "{row}.user_id", NULL)],
        "true",
    ),
    "subscribed_class": (
        "user_id, class_id",
        ["user_id, class_id"],
        [("'user'", "{row}.user_id", NULL)],
        "true",
    ),
    "ignored_event": (
        "user_id, event_id",
        ["user_id, event_id"],
        [("'user'", "{row}.user_id", NULL)],
        "true",
    ),
    "event_revision": (
        "event_id, sequence, modified_at, source, digest, error",
        ["event_id"],
        [REVISED],
        BY_OTHERS,
    ),
    "event_rendering": ("event_id, locale, body", ["event_id, locale"], [REVISED], BY_OTHERS),
    # To forget stamps changes no calendar.
    "event_stamp": ("event_id, sequence, modified_at", ["event_id"], [REVISED], "true"),
    # Not what a build records of its file: where that is wrong, the next build corrects it.
    "feed": ("id, kind, owner_id", ["kind, owner_id", "token"], [OWNED], BY_OTHERS),
}
# The triggers that 0002 did not make. The deletion of a revision is noted since then.
ADDED = {
    "lesson": ["insert"],
    "event_revision": ["insert", "update"],
    "event_rendering": ["insert", "update", "delete"],
    "event_stamp": ["insert", "update"],
    "feed": ["insert", "update", "delete"],
}
ROWS = {"insert": ["NEW"], "update": ["OLD", "NEW"], "delete": ["OLD"]}

LOWER = "(NEW.sequence < {row}.sequence OR NEW.modified_at < {row}.modified_at)"
# Two statements: SQLite applies the conflict clause of the statement that runs a trigger to the
# trigger's statements, so `INSERT OR IGNORE` would ignore an upsert.
KEEP_STAMPS = (
    "UPDATE event_stamp SET sequence = {greatest}(sequence, {row}.sequence),"
    " modified_at = {greatest}(modified_at, {row}.modified_at), gone_at = {now}"
    " WHERE event_id = {row}.event_id"
    "; INSERT INTO event_stamp (event_id, sequence, modified_at, gone_at)"
    " SELECT {row}.event_id, {row}.sequence, {row}.modified_at, {now}"
    " WHERE NOT EXISTS (SELECT 1 FROM event_stamp WHERE event_id = {row}.event_id)"
)
# The same of the rows that a statement on SQLite is about to replace.
KEEP_REPLACED = (
    "INSERT INTO event_stamp (event_id, sequence, modified_at, gone_at)"
    " SELECT gone.event_id, gone.sequence, gone.modified_at, {now} {source} WHERE {found}"
    " AND NOT EXISTS (SELECT 1 FROM event_stamp WHERE event_id = gone.event_id)"
    "; UPDATE event_stamp SET gone_at = {now},"
    " sequence = (SELECT max(event_stamp.sequence, one.sequence) FROM event_revision AS one"
    " WHERE one.event_id = event_stamp.event_id),"
    " modified_at = (SELECT max(event_stamp.modified_at, one.modified_at) FROM event_revision AS"
    " one WHERE one.event_id = event_stamp.event_id)"
    " WHERE event_id IN (SELECT gone.event_id {source} WHERE {found})"
)


def upgrade() -> None:
    op.create_table(
        "event_stamp",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("modified_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("gone_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_event_stamp")),
    )
    op.create_index(op.f("ix_event_stamp_gone_at"), "event_stamp", ["gone_at"])
    op.create_table(
        "own_write",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_own_write")),
    )
    op.add_column("feed", sa.Column("left_out", sa.Integer(), server_default="0", nullable=False))
    for table, operations in ADDED.items():
        columns, _keys, notes, where = NOTED[table]
        for operation in operations:
            noted = " UNION ".join(
                _note(note, row, where) for row in ROWS[operation] for note in notes
            )
            _create_trigger(
                f"note_{table}_{operation}",
                f"AFTER {operation} ON {table}",
                _and(_differ("OLD", columns) if operation == "update" else "", _by_others(where)),
                [f"INSERT INTO change_log (kind, key, event_id) {noted}"],
            )
    moved = f"NEW.event_id <> OLD.event_id OR {LOWER.format(row='OLD')}"
    _create_trigger("keep_stamps_delete", "AFTER DELETE ON event_revision", "", _keep("OLD"))
    _create_trigger("keep_stamps_update", "AFTER UPDATE ON event_revision", moved, _keep("OLD"))
    if _is_postgres():
        _note_truncation()
        # One such time would stop every calendar, as in 0007.
        op.execute(
            "ALTER TABLE event_revision ADD CONSTRAINT ck_event_revision_readable_times CHECK"
            " (modified_at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00')"
            " NOT VALID"
        )
    else:
        for table in NOTED:
            _note_replacing(table)


def downgrade() -> None:
    names = [f"note_{table}_{one}" for table, operations in ADDED.items() for one in operations]
    names += ["keep_stamps_delete", "keep_stamps_update"]
    if _is_postgres():
        op.execute("ALTER TABLE event_revision DROP CONSTRAINT ck_event_revision_readable_times")
        for table in ("event_revision", "event_rendering", "feed"):
            op.execute(f"DROP TRIGGER note_truncate ON {table}")
        op.execute(
            "CREATE TRIGGER note_truncate AFTER TRUNCATE ON event_revision"
            " EXECUTE FUNCTION note_truncate()"
        )
        for name in (*names, "note_truncate_revisions", "keep_stamps_truncate"):
            op.execute(f"DROP FUNCTION {name}() CASCADE")
    else:
        names += [
            f"note_{table}_{how}" for table in NOTED for how in ("replace", "replace_by_update")
        ]
        names += ["keep_stamps_replace", "keep_stamps_replace_by_update"]
        for name in names:
            op.execute(f"DROP TRIGGER {name}")
    op.drop_column("feed", "left_out")
    op.drop_table("own_write")
    op.drop_table("event_stamp")


def _is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _note(note: Note, row: str, where: str, *, source: str = "") -> str:
    kind, key, event = (part.format(row=row) for part in note)
    wanted = where.format(row=row)
    if kind == "'department_feed'":
        wanted += f" AND {key} IS NOT NULL"
    return f"SELECT {kind}, CAST({key} AS varchar(50)), {event} {source} WHERE {wanted}"


def _differ(row: str, columns: str) -> str:
    differs = "IS DISTINCT FROM" if _is_postgres() else "IS NOT"
    mine, yours = (
        f"({', '.join(f'{one}.{column}' for column in columns.split(', '))})"
        for one in (row, "NEW")
    )
    return f"{mine} {differs} {yours}"


def _by_others(where: str) -> str:
    """Return the condition of a trigger that need not run for own writes.

    On Postgres such a condition takes no query: there the trigger runs, and notes nothing.
    """
    return BY_OTHERS if where == BY_OTHERS and not _is_postgres() else ""


def _and(*conditions: str) -> str:
    return " AND ".join(filter(None, conditions))


def _keep(row: str) -> list[str]:
    greatest = "greatest" if _is_postgres() else "max"
    return [KEEP_STAMPS.format(row=row, greatest=greatest, now=_now())]


def _now() -> str:
    return "now()" if _is_postgres() else "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def _create_trigger(name: str, event: str, when: str, statements: list[str]) -> None:
    condition = f" WHEN ({when})" if when else ""
    trigger = f"CREATE TRIGGER {name} {event} FOR EACH ROW{condition}"
    if _is_postgres():
        _create_function(name, statements)
        op.execute(f"{trigger} EXECUTE FUNCTION {name}()")
    else:
        op.execute(f"{trigger} BEGIN {'; '.join(statements)}; END")


def _create_function(name: str, statements: list[str]) -> None:
    # SECURITY DEFINER: another program's role needs no rights on these tables. pg_temp comes last:
    # a temporary table of the caller could hide ours.
    schema = op.get_bind().scalar(sa.text("SELECT current_schema()"))
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql"
        f' SECURITY DEFINER SET search_path = "{schema}", pg_temp'
        f" AS $$ BEGIN {'; '.join(statements)}; RETURN NULL; END $$"
    )


def _note_truncation() -> None:
    """On Postgres: note that all revisions, renderings or feeds may be gone, and keep the stamps."""
    _create_function(
        "note_truncate_revisions", ["INSERT INTO change_log (kind) VALUES ('revision')"]
    )
    op.execute("DROP TRIGGER note_truncate ON event_revision")
    for table in ("event_revision", "event_rendering"):
        op.execute(
            f"CREATE TRIGGER note_truncate AFTER TRUNCATE ON {table}"
            " EXECUTE FUNCTION note_truncate_revisions()"
        )
    op.execute(
        "CREATE TRIGGER note_truncate AFTER TRUNCATE ON feed EXECUTE FUNCTION note_truncate()"
    )
    highest = (
        "sequence = greatest(event_stamp.sequence, excluded.sequence), modified_at ="
        " greatest(event_stamp.modified_at, excluded.modified_at), gone_at = excluded.gone_at"
    )
    every = "INSERT INTO event_stamp SELECT event_id, sequence, modified_at, now()"
    higher = f"FROM event_revision ON CONFLICT (event_id) DO UPDATE SET {highest}"
    _create_function("keep_stamps_truncate", [f"{every} {higher}"])
    op.execute(
        "CREATE TRIGGER keep_stamps BEFORE TRUNCATE ON event_revision"
        " EXECUTE FUNCTION keep_stamps_truncate()"
    )


def _note_replacing(table: str) -> None:
    """On SQLite: note the rows that the new row replaces, before it does.

    A statement `OR REPLACE` deletes each row that has one of the new row's unique keys, and runs
    delete triggers only where its program has turned `recursive_triggers` on.
    """
    columns, keys, notes, where = NOTED[table]
    key_columns = list(dict.fromkeys(", ".join(keys).split(", "))) if keys else []
    same = [
        " AND ".join(f"gone.{column} = NEW.{column}" for column in key.split(", ")) for key in keys
    ]
    # An integer key is the rowid; it is -1 where the database is to find one.
    found = f"({' OR '.join(['gone.rowid = NEW.rowid', *same])})"
    rekeyed = _differ("OLD", ", ".join(["rowid", *key_columns]))
    for name, event, when, more in (
        ("replace", "INSERT", "", f" AND {_differ('gone', columns)}"),
        # What is updated is itself no row that goes.
        ("replace_by_update", "UPDATE", rekeyed, " AND gone.rowid <> OLD.rowid"),
    ):
        source = f"FROM {table} AS gone"
        noted = " UNION ".join(
            _note(note, "gone", f"{where} AND {found}{more}", source=source) for note in notes
        )
        _create_trigger(
            f"note_{table}_{name}",
            f"BEFORE {event} ON {table}",
            _and(when, _by_others(where)),
            [f"INSERT INTO change_log (kind, key, event_id) {noted}"],
        )
        if table == "event_revision":
            goes = more if event == "UPDATE" else f" AND {LOWER.format(row='gone')}"
            kept = KEEP_REPLACED.format(source=source, found=f"{found}{goes}", now=_now())
            _create_trigger(
                f"keep_stamps_{name}",
                f"BEFORE {event} ON {table}",
                _and(when, _by_others(where)),  # Own writes only raise them.
                [kept],
            )
