"""Create the tables of the job ledger."""

import sqlalchemy as sa
from alembic import op

from nightshift import database

revision = "ns_0001"
down_revision = None
branch_labels = ("nightshift",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=100), nullable=False),
        sa.Column("queue", sa.String(length=50), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "scheduled",
                "queued",
                "running",
                "waiting",
                "held",
                "succeeded",
                "failed",
                "discarded",
                "cancelled",
                name="jobstate",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("args", sa.JSON(), nullable=False),
        sa.Column("unique_key", sa.String(length=200), nullable=True),
        sa.Column("unique_until_started", sa.Boolean(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("run_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("push_until", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("sent_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("started_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("finished_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("time_limit", sa.Double(), nullable=False),
        sa.Column("claim_id", sa.Uuid(), nullable=True),
        sa.Column("worker_id", sa.Uuid(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("errors", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("progress_done", sa.Integer(), nullable=True),
        sa.Column("progress_total", sa.Integer(), nullable=True),
        sa.Column("trace", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("counted_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("children", sa.Integer(), nullable=False),
        sa.Column("children_open", sa.Integer(), nullable=False),
        sa.Column("children_failed", sa.Integer(), nullable=False),
        sa.Column("follow_up", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["job.id"], name=op.f("fk_job_parent_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("unique_key", name=op.f("uq_job_unique_key")),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(
            "ix_job_children",
            ["parent_id", "state"],
            unique=False,
            postgresql_where=sa.text("parent_id is not null"),
            sqlite_where=sa.text("parent_id is not null"),
        )
        batch_op.create_index(
            "ix_job_finished",
            ["finished_at"],
            unique=False,
            postgresql_where=sa.text("finished_at is not null"),
            sqlite_where=sa.text("finished_at is not null"),
        )
        batch_op.create_index("ix_job_kind_started", ["kind", "started_at"], unique=False)
        batch_op.create_index(
            "ix_job_running",
            ["worker_id"],
            unique=False,
            postgresql_where=sa.text("state = 'running'"),
            sqlite_where=sa.text("state = 'running'"),
        )
        batch_op.create_index(
            "ix_job_scheduled",
            ["run_at"],
            unique=False,
            postgresql_where=sa.text("state = 'scheduled'"),
            sqlite_where=sa.text("state = 'scheduled'"),
        )
        batch_op.create_index(
            "ix_job_sent",
            ["queue", "sent_at"],
            unique=False,
            postgresql_where=sa.text("state = 'queued' and sent_at is not null"),
            sqlite_where=sa.text("state = 'queued' and sent_at is not null"),
        )
        batch_op.create_index(
            "ix_job_unsent",
            ["queue", "priority", "run_at"],
            unique=False,
            postgresql_where=sa.text("state = 'queued' and sent_at is null"),
            sqlite_where=sa.text("state = 'queued' and sent_at is null"),
        )
    op.create_table(
        "paused_queue",
        sa.Column("queue", sa.String(length=50), nullable=False),
        sa.Column("paused_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_paused_queue")),
    )
    op.create_table(
        "schedule",
        sa.Column("entry", sa.String(length=100), nullable=False),
        sa.Column("last_fire_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_schedule")),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("queues", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("stopped_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_table(
        "job_log",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_job_log_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_log")),
    )
    with op.batch_alter_table("job_log", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_job_log_job_id"), ["job_id"], unique=False)


def downgrade() -> None:
    op.drop_table("job_log")
    op.drop_table("worker")
    op.drop_table("schedule")
    op.drop_table("paused_queue")
    op.drop_table("job")
