"""school and calendars

The engine's tables were made here too, before they had a history of their own: a database that has
this revision has them, and Alembic counts what it depends on as applied.
"""

import sqlalchemy as sa
from alembic import op
from nightshift import database

revision = "0001"
down_revision = None
branch_labels = ("school",)
depends_on = "ns_0001"


def upgrade() -> None:
    op.create_table(
        "department",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("letter", sa.String(length=10), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("colour", sa.String(length=20), nullable=False),
        sa.Column(
            "locale",
            sa.Enum(
                "de",
                "fr",
                "en",
                name="locale",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_department")),
        sa.UniqueConstraint("name", name=op.f("uq_department_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "feed",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "user",
                "class",
                "department",
                name="feedkind",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.Column("etag", sa.String(length=64), nullable=True),
        sa.Column("event_count", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("built_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("built_by", sa.Uuid(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed")),
        sa.UniqueConstraint("kind", "owner_id", name=op.f("uq_feed_kind_owner_id")),
        sa.UniqueConstraint("token", name=op.f("uq_feed_token")),
        sqlite_autoincrement=True,
    )

    op.create_table(
        "semester",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("starts_on", sa.Date(), nullable=False),
        sa.Column("ends_on", sa.Date(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_semester")),
        sa.UniqueConstraint("name", name=op.f("uq_semester_name")),
    )
    op.create_table(
        "sync_run",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("started_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("built", sa.Integer(), nullable=False),
        sa.Column("unchanged", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("removed", sa.Integer(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.Column("inputs", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sync_run")),
    )
    with op.batch_alter_table("sync_run", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sync_run_started_at"), ["started_at"], unique=False)

    op.create_table(
        "lesson",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=50), nullable=False),
        sa.Column("semester_id", sa.Integer(), nullable=False),
        sa.Column("weekday", sa.Integer(), nullable=False),
        sa.Column("starts", sa.Time(), nullable=False),
        sa.Column("ends", sa.Time(), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("room", sa.String(length=100), nullable=False),
        sa.Column("is_class_teachers", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.CheckConstraint("weekday between 1 and 7", name=op.f("ck_lesson_weekday")),
        sa.ForeignKeyConstraint(
            ["semester_id"], ["semester.id"], name=op.f("fk_lesson_semester_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lesson")),
        sa.UniqueConstraint("key", name=op.f("uq_lesson_key")),
    )
    with op.batch_alter_table("lesson", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_lesson_semester_id"), ["semester_id"], unique=False)

    op.create_table(
        "school_class",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("display_name", sa.String(length=200), nullable=False),
        sa.Column("graduation_year", sa.Integer(), nullable=True),
        sa.Column("department_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["department_id"],
            ["department.id"],
            name=op.f("fk_school_class_department_id"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_school_class")),
        sa.UniqueConstraint("name", name=op.f("uq_school_class_name")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("school_class", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_school_class_department_id"), ["department_id"], unique=False
        )

    op.create_table(
        "lesson_class",
        sa.Column("lesson_id", sa.Integer(), nullable=False),
        sa.Column("class_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["class_id"],
            ["school_class.id"],
            name=op.f("fk_lesson_class_class_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["lesson_id"], ["lesson.id"], name=op.f("fk_lesson_class_lesson_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("lesson_id", "class_id", name=op.f("pk_lesson_class")),
    )
    with op.batch_alter_table("lesson_class", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_lesson_class_class_id"), ["class_id"], unique=False)

    op.create_table(
        "user_account",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("first_name", sa.String(length=200), nullable=False),
        sa.Column("last_name", sa.String(length=200), nullable=False),
        sa.Column(
            "locale",
            sa.Enum(
                "de",
                "fr",
                "en",
                name="locale",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column(
            "role",
            sa.Enum(
                "teacher",
                "student",
                "admin",
                name="role",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("class_id", sa.Integer(), nullable=True),
        sa.Column("untis_id", sa.String(length=50), nullable=True),
        sa.Column("mail_events", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("mail_reviews", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("mail_digest", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["class_id"],
            ["school_class.id"],
            name=op.f("fk_user_account_class_id"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_account")),
        sa.UniqueConstraint("email", name=op.f("uq_user_account_email")),
        sa.UniqueConstraint("untis_id", name=op.f("uq_user_account_untis_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("user_account", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_user_account_class_id"), ["class_id"], unique=False)

    op.create_table(
        "event",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("author_id", sa.Integer(), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "draft",
                "review",
                "published",
                "refused",
                name="eventstate",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("starts_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("ends_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("starts_on", sa.Date(), nullable=True),
        sa.Column("ends_on", sa.Date(), nullable=True),
        sa.Column(
            "audience",
            sa.Enum(
                "teachers",
                "class_teachers",
                "students",
                "all",
                name="audience",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column(
            "teaching_affected",
            sa.Enum(
                "yes",
                "partial",
                "no",
                name="teachingaffected",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("addressed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("version_of_id", sa.Uuid(), nullable=True),
        sa.Column("refusal", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("cancelled_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(starts_at is not null and ends_at is not null"
            " and starts_on is null and ends_on is null)"
            " or (starts_at is null and ends_at is null"
            " and starts_on is not null and ends_on is not null)",
            name=op.f("ck_event_instants_or_dates"),
        ),
        sa.ForeignKeyConstraint(
            ["author_id"], ["user_account.id"], name=op.f("fk_event_author_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["version_of_id"], ["event.id"], name=op.f("fk_event_version_of_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_event_author_id"), ["author_id"], unique=False)
        batch_op.create_index(
            "ix_event_current_dates",
            ["ends_on"],
            unique=False,
            postgresql_where=sa.text("state = 'published' and version_of_id is null"),
            sqlite_where=sa.text("state = 'published' and version_of_id is null"),
        )
        batch_op.create_index(
            "ix_event_current_instants",
            ["ends_at"],
            unique=False,
            postgresql_where=sa.text("state = 'published' and version_of_id is null"),
            sqlite_where=sa.text("state = 'published' and version_of_id is null"),
        )
        batch_op.create_index(batch_op.f("ix_event_version_of_id"), ["version_of_id"], unique=False)

    op.create_table(
        "lesson_teacher",
        sa.Column("lesson_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["lesson_id"],
            ["lesson.id"],
            name=op.f("fk_lesson_teacher_lesson_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["user_account.id"],
            name=op.f("fk_lesson_teacher_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("lesson_id", "user_id", name=op.f("pk_lesson_teacher")),
    )
    with op.batch_alter_table("lesson_teacher", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_lesson_teacher_user_id"), ["user_id"], unique=False)

    op.create_table(
        "subscription",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("follows_me", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["user_account.id"],
            name=op.f("fk_subscription_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_subscription")),
    )
    op.create_table(
        "event_class",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("class_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["class_id"],
            ["school_class.id"],
            name=op.f("fk_event_class_class_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["event_id"], ["event.id"], name=op.f("fk_event_class_event_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", "class_id", name=op.f("pk_event_class")),
    )
    with op.batch_alter_table("event_class", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_event_class_class_id"), ["class_id"], unique=False)

    op.create_table(
        "event_class_group",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("class_group", sa.String(length=3), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["event.id"],
            name=op.f("fk_event_class_group_event_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", "class_group", name=op.f("pk_event_class_group")),
    )
    op.create_table(
        "event_department",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("department_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["department_id"],
            ["department.id"],
            name=op.f("fk_event_department_department_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["event.id"],
            name=op.f("fk_event_department_event_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", "department_id", name=op.f("pk_event_department")),
    )
    with op.batch_alter_table("event_department", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_event_department_department_id"), ["department_id"], unique=False
        )

    op.create_table(
        "event_revision",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("modified_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("source", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["event_id"], ["event.id"], name=op.f("fk_event_revision_event_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_event_revision")),
    )
    op.create_table(
        "event_user",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["event.id"], name=op.f("fk_event_user_event_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_event_user_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", "user_id", name=op.f("pk_event_user")),
    )
    with op.batch_alter_table("event_user", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_event_user_user_id"), ["user_id"], unique=False)

    op.create_table(
        "ignored_event",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["event.id"], name=op.f("fk_ignored_event_event_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["subscription.user_id"],
            name=op.f("fk_ignored_event_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "event_id", name=op.f("pk_ignored_event")),
    )
    with op.batch_alter_table("ignored_event", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ignored_event_event_id"), ["event_id"], unique=False)

    op.create_table(
        "subscribed_class",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("class_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["class_id"],
            ["school_class.id"],
            name=op.f("fk_subscribed_class_class_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["subscription.user_id"],
            name=op.f("fk_subscribed_class_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "class_id", name=op.f("pk_subscribed_class")),
    )
    with op.batch_alter_table("subscribed_class", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_subscribed_class_class_id"), ["class_id"], unique=False
        )

    op.create_table(
        "subscribed_department",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("department_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["department_id"],
            ["department.id"],
            name=op.f("fk_subscribed_department_department_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["subscription.user_id"],
            name=op.f("fk_subscribed_department_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "department_id", name=op.f("pk_subscribed_department")),
    )
    with op.batch_alter_table("subscribed_department", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_subscribed_department_department_id"), ["department_id"], unique=False
        )

    op.create_table(
        "event_rendering",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column(
            "locale",
            sa.Enum(
                "de",
                "fr",
                "en",
                name="locale",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["event_revision.event_id"],
            name=op.f("fk_event_rendering_event_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", "locale", name=op.f("pk_event_rendering")),
    )


def downgrade() -> None:
    op.drop_table("event_rendering")
    op.drop_table("subscribed_department")
    op.drop_table("subscribed_class")
    op.drop_table("ignored_event")
    op.drop_table("event_user")
    op.drop_table("event_revision")
    op.drop_table("event_department")
    op.drop_table("event_class_group")
    op.drop_table("event_class")
    op.drop_table("subscription")
    op.drop_table("lesson_teacher")
    op.drop_table("event")
    op.drop_table("user_account")
    op.drop_table("lesson_class")
    op.drop_table("school_class")
    op.drop_table("lesson")
    op.drop_table("sync_run")
    op.drop_table("semester")
    op.drop_table("feed")
    op.drop_table("department")
