"""The ledger's tables."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import JSON, ColumnElement, ForeignKey, Index, String, Text, false, literal_column
from sqlalchemy.orm import Mapped, mapped_column

from nightshift.database import Base, UtcDateTime, choice, partial_index
from nightshift.jobs.args import LONGEST_KIND, LONGEST_QUEUE

# The name of an entry of the schedule.
LONGEST_ENTRY = 100
# The name of a person who uses the desk.
LONGEST_USER = 50


class JobState(StrEnum):
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    HELD = "held"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"


NOT_STARTED = (JobState.SCHEDULED, JobState.QUEUED, JobState.HELD)
# The type of the error of a job that is held because its message cannot be built.
UNSENDABLE = "Unsendable"
# The type of the error of a job whose kind no worker has known so far.
UNKNOWN_KIND = "UnknownJob"

ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.DISCARDED, JobState.CANCELLED)


class Job(Base):
    """One job. nightshift/jobs/__init__.py has a drawing of its states.

    `unique_key`: set while no second job with that key may exist, null afterwards. `claim_id`: the
    run that may write; of a job that was cancelled, the run that has not come back yet. `sent_at`:
    when the relay last sent a message for this queued row. `message_id`: that message, where it
    named several jobs; the row's own id where the job may only be sent alone; null where the
    message named this job only. `push_until`: the latest `run_at` that debouncing may set.
    `counted_at`: when the parent counted this child as ended. `limited`: only a relay that knows
    the kind's limit may send this row; the release before the column writes it as false.
    """

    __tablename__ = "job"
    __table_args__ = (
        partial_index("ix_job_scheduled", "run_at", where="state = 'scheduled'"),
        partial_index(
            "ix_job_unsent",
            "queue",
            "limited",
            "priority",
            "run_at",
            where="state = 'queued' and sent_at is null",
        ),
        partial_index(
            "ix_job_limited",
            "kind",
            "priority",
            "run_at",
            where="state = 'queued' and sent_at is null and limited",
        ),
        partial_index(
            "ix_job_sent", "queue", "sent_at", where="state = 'queued' and sent_at is not null"
        ),
        partial_index("ix_job_running", "worker_id", where="state = 'running'"),
        partial_index("ix_job_children", "parent_id", "state", where="parent_id is not null"),
        partial_index("ix_job_kind_started", "kind", "started_at", where="started_at is not null"),
        partial_index("ix_job_finished", "finished_at", where="finished_at is not null"),
        # Two more for people who look. A job that succeeds is never in them.
        partial_index(
            "ix_job_unsuccessful",
            "finished_at",
            where="state in ('failed', 'discarded', 'cancelled')",
        ),
        partial_index("ix_job_set_aside", "run_at", where="state in ('waiting', 'held')"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    kind: Mapped[str] = mapped_column(String(LONGEST_KIND))
    queue: Mapped[str] = mapped_column(String(LONGEST_QUEUE))
    priority: Mapped[int]
    state: Mapped[JobState] = mapped_column(choice(JobState))
    args: Mapped[dict[str, Any]] = mapped_column(JSON)
    unique_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    unique_until_started: Mapped[bool] = mapped_column(default=False)
    limited: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    run_at: Mapped[datetime] = mapped_column(UtcDateTime)
    push_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    message_id: Mapped[UUID | None]
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    time_limit: Mapped[float]
    claim_id: Mapped[UUID | None]
    worker_id: Mapped[UUID | None]
    pid: Mapped[int | None]
    result: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    progress_done: Mapped[int | None]
    progress_total: Mapped[int | None]
    trace: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    counted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    children: Mapped[int] = mapped_column(default=0)
    children_open: Mapped[int] = mapped_column(default=0)
    children_failed: Mapped[int] = mapped_column(default=0)
    follow_up: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


# Conditions of the partial indexes. As literals: Postgres uses no partial index for a prepared
# statement whose condition has a parameter in the place of its literal.
QUEUED = Job.state == literal_column("'queued'")
RUNNING = Job.state == literal_column("'running'")
SCHEDULED = Job.state == literal_column("'scheduled'")
UNSENT = (QUEUED, Job.sent_at.is_(None))
SENT = (QUEUED, Job.sent_at.is_not(None))
ALONE = Job.message_id == Job.id
LIMITED: ColumnElement[bool] = literal_column("job.limited")
FINISHED = Job.finished_at.is_not(None)
UNSUCCESSFUL = Job.state.in_(
    [literal_column(f"'{name}'") for name in ("failed", "discarded", "cancelled")]
)
SET_ASIDE = Job.state.in_([literal_column(f"'{name}'") for name in ("waiting", "held")])

# For statements without the ORM, where there are thousands of rows or calls.
TABLE = Base.metadata.tables[Job.__tablename__]


class JobLog(Base):
    """A line that a job's body wrote with `run.log`."""

    __tablename__ = "job_log"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int]
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    line: Mapped[str] = mapped_column(Text)


class JobStart(Base):
    """A start of a job whose kind has a rate. The job's row holds its newest start only."""

    __tablename__ = "job_start"
    __table_args__ = (Index("ix_job_start_kind_at", "kind", "at"),)

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    kind: Mapped[str] = mapped_column(String(LONGEST_KIND))


class Worker(Base):
    """A worker process and its last sign of life.

    `steady_since`: the start of its unbroken series of heartbeats. `hung_at`: when its keeper found
    that the worker's main process does not react any more.
    """

    __tablename__ = "worker"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    queues: Mapped[str] = mapped_column(Text)
    pid: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    stopped_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    steady_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    hung_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class PausedQueue(Base):
    """A queue whose jobs are neither sent nor claimed until it is resumed."""

    __tablename__ = "paused_queue"

    queue: Mapped[str] = mapped_column(String(LONGEST_QUEUE), primary_key=True)
    paused_at: Mapped[datetime] = mapped_column(UtcDateTime)


class PausedEntry(Base):
    """A recurring job whose slots pass without a job until it is resumed.

    A beat of the release before this table does not know it, and starts the job.
    """

    __tablename__ = "paused_entry"

    entry: Mapped[str] = mapped_column(String(LONGEST_ENTRY), primary_key=True)
    paused_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Action(Base):
    """What a person did at the desk, and what became of it.

    `verb`: what was done. `subject`: on what, as in `job 3f…` or `queue mail`. `query`: of an
    action on many jobs, the filter as it stands in an address. `expected`: how many jobs matched
    it; null where they were not counted to the end. `done` and `skipped`: how many were changed,
    and how many were not, by reason. `job_id`: the job that changes them. `cursor`: where that job
    goes on. `ended_at` is null until all are changed.
    """

    __tablename__ = "desk_action"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    by: Mapped[str] = mapped_column(String(LONGEST_USER))
    verb: Mapped[str] = mapped_column(String(30))
    subject: Mapped[str] = mapped_column(String(300))
    query: Mapped[str | None] = mapped_column(Text)
    expected: Mapped[int | None]
    done: Mapped[int] = mapped_column(default=0)
    skipped: Mapped[dict[str, int]] = mapped_column(JSON, default=dict)
    job_id: Mapped[UUID | None]
    cursor: Mapped[str | None] = mapped_column(String(100))
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ScheduleEntry(Base):
    """The newest slot of a recurring job that a beat has dealt with.

    Beats update it by compare-and-set, so each slot is started once, however many beats run.
    `seen_at`: when a beat last declared the entry, to within ten seconds.
    """

    __tablename__ = "schedule"

    entry: Mapped[str] = mapped_column(String(LONGEST_ENTRY), primary_key=True)
    last_fire_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
