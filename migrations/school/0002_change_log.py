"""change log

Triggers note what was touched, old and new, for every writer: a service, another program, a
cascade. services/calendars/changes.py reads the notes.

A migration that renames or drops a column that a trigger names drops the trigger first, and creates
it again afterwards.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _note(kind: str, key: str, event: str = "CAST(NULL AS uuid)", where: str = "true") -> str:
    return f"SELECT {kind}, CAST({key} AS varchar(50)), {event} WHERE {where}"


EVENT = (
    "id, state, title, description, location, starts_at, ends_at, starts_on, ends_on, audience,"
    " teaching_affected, addressed, version_of_id, cancelled_at, deleted_at"
)
# Only events that subscribers may have seen count; one that names no reader is in every calendar.
EVENT_OR_ALL = "CASE WHEN {row}.addressed THEN 'event' ELSE 'all' END"
SEEN = "{row}.state = 'published' AND {row}.version_of_id IS NULL"

# By table: the columns that calendars depend on, and what is noted of a row.
NOTED = {
    "event": (EVENT, [_note(EVENT_OR_ALL, "NULL", "{row}.id", SEEN)]),
    "event_class": ("event_id, class_id", [_note("'class'", "{row}.class_id", "{row}.event_id")]),
    "event_class_group": (
        "event_id, class_group",
        [_note("'group'", "{row}.class_group", "{row}.event_id")],
    ),
    "event_department": (
        "event_id, department_id",
        [_note("'department'", "{row}.department_id", "{row}.event_id")],
    ),
    "event_user": ("event_id, user_id", [_note("'user'", "{row}.user_id", "{row}.event_id")]),
    "school_class": (
        "id, name, display_name, department_id",
        [
            _note("'class'", "{row}.id"),
            _note(
                "'department_feed'", "{row}.department_id", where="{row}.department_id IS NOT NULL"
            ),
        ],
    ),
    "department": ("id, name, locale", [_note("'department'", "{row}.id")]),
    "user_account": (
        "id, first_name, last_name, locale, role, class_id, untis_id",
        [_note("'user'", "{row}.id")],
    ),
    "semester": ("id, starts_on, ends_on", [_note("'all'", "NULL")]),
    "lesson": (
        "id, semester_id, weekday, starts, ends, is_class_teachers",
        [_note("'lesson'", "{row}.id")],
    ),
    "lesson_class": ("lesson_id, class_id", [_note("'lesson'", "{row}.lesson_id")]),
    "lesson_teacher": ("lesson_id, user_id", [_note("'user'", "{row}.user_id")]),
    "subscription": ("user_id, follows_me", [_note("'user'", "{row}.user_id")]),
    "subscribed_department": ("user_id, department_id", [_note("'user'", "{row}.user_id")]),
    "subscribed_class": ("user_id, class_id", [_note("'user'", "{row}.user_id")]),
    "ignored_event": ("user_id, event_id", [_note("'user'", "{row}.user_id")]),
    "event_revision": ("event_id", [_note("'revision'", "NULL", "{row}.event_id")]),
}
NAMING = ["event_class", "event_class_group", "event_department", "event_user"]
ADDRESSED = "UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed"
ROWS = {"insert": ["NEW"], "update": ["OLD", "NEW"], "delete": ["OLD"]}


def upgrade() -> None:
    op.create_table(
        "change_log",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("key", sa.String(length=50), nullable=True),
        sa.Column("event_id", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change_log")),
        sqlite_autoincrement=True,
    )
    exists = "EXISTS (SELECT 1 FROM {} WHERE event_id = event.id)"
    named = " OR ".join(map(exists.format, NAMING))
    op.execute(f"UPDATE event SET addressed = true WHERE NOT addressed AND ({named})")  # noqa: S608
    for table, (columns, notes) in NOTED.items():
        for operation in _operations(table):
            rows = ROWS[operation]
            noted = " UNION ".join(note.format(row=row) for row in rows for note in notes)
            statements = [f"INSERT INTO change_log (kind, key, event_id) {noted}"]
            if table in NAMING and operation != "delete":
                statements.append(ADDRESSED)
            _create_trigger(table, operation, columns.split(", "), statements)
    if _is_postgres():
        op.execute(_function("note_truncate", ["INSERT INTO change_log (kind) VALUES ('all')"]))
        for table in NOTED:
            op.execute(
                f"CREATE TRIGGER note_truncate AFTER TRUNCATE ON {table}"
                " EXECUTE FUNCTION note_truncate()"
            )


def downgrade() -> None:
    for table in NOTED:
        for operation in _operations(table):
            _drop_trigger(table, operation)
    if _is_postgres():
        op.execute("DROP FUNCTION note_truncate() CASCADE")
    op.drop_table("change_log")


def _operations(table: str) -> list[str]:
    # A new lesson is in no calendar before it has a teacher or a class, and there are tens of
    # thousands.
    # A revision is ours: only that it went with its event says something.
    if table == "event_revision":
        return ["delete"]
    return [operation for operation in ROWS if (table, operation) != ("lesson", "insert")]


def _is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _function(name: str, statements: list[str]) -> str:
    # SECURITY DEFINER: another program's role needs no rights on the log. pg_temp comes last: a
    # temporary table of the caller could hide ours.
    schema = op.get_bind().scalar(sa.text("SELECT current_schema()"))
    body = "; ".join(statements)
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql"
        f' SECURITY DEFINER SET search_path = "{schema}", pg_temp'
        f" AS $$ BEGIN {body}; RETURN NULL; END $$"
    )


def _create_trigger(table: str, operation: str, columns: list[str], statements: list[str]) -> None:
    name = f"note_{table}_{operation}"
    differs = "IS DISTINCT FROM" if _is_postgres() else "IS NOT"
    old, new = (f"({', '.join(f'{row}.{column}' for column in columns)})" for row in ("OLD", "NEW"))
    when = f"FOR EACH ROW WHEN ({old} {differs} {new})" if operation == "update" else "FOR EACH ROW"
    trigger = f"CREATE TRIGGER {name} AFTER {operation} ON {table} {when}"
    if _is_postgres():
        op.execute(_function(name, statements))
        op.execute(f"{trigger} EXECUTE FUNCTION {name}()")
    else:
        op.execute(f"{trigger} BEGIN {'; '.join(statements)}; END")


def _drop_trigger(table: str, operation: str) -> None:
    if _is_postgres():
        op.execute(f"DROP FUNCTION note_{table}_{operation}() CASCADE")
    else:
        op.execute(f"DROP TRIGGER note_{table}_{operation}")
