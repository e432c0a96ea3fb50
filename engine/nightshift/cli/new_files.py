"""What `new` writes: the texts of a job's and a table's files. ruff formats them."""

COMPONENT = '''"""What the noun `{noun}` contributes."""

from nightshift.component import Component

{noun} = Component(
    name="{noun}",
)
'''

ARGS_MODULE = '"""The arguments of the jobs of `{noun}`. A leaf: any module may import it."""\n'

ARGS = '''class {cls}(JobArgs, kind="{kind}"{policy}):
    """The job `{kind}`."""
'''

SERVICE = '''"""What the job `{kind}` does."""

from datetime import datetime

from nightshift.database import Session


def run_{job}(session: Session, *, now: datetime) -> str:
    """Do the work of one job in its transaction, and return the job's result.

    This first version says when it ran. Put the work here.
    """
    return f"{kind} ran at {{now:%Y-%m-%d %H:%M:%S}} UTC"
'''

TASKS_MODULE = '"""The jobs of `{noun}`."""\n'

TASK = '''@job({cls})
def {job}(session: Session, args: {cls}, run: Run) -> Outcome:
    """Do the work of one job. A second run does it again."""
    return run_{job}(session, now=run.now)
'''

SCHEDULE = '''def make_schedule(_runtime: Runtime) -> Sequence[Entry]:
    """Return the recurring jobs."""
    return [{entry}]
'''

TEST = '''"""The job `{kind}`."""

from datetime import UTC, datetime

from nightshift.jobs import enqueue
from nightshift.testing import run_due

from services.{noun}.jobs import {cls}
from services.{noun}.{job} import run_{job}

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def test_result_says_when_it_ran(session):
    assert run_{job}(session, now=NOW) == "{kind} ran at 2026-11-21 12:00:00 UTC"


def test_job_succeeds_with_the_result_of_its_service(job_app):
    with job_app.runtime.unit_of_work() as session:
        enqueue(session, {cls}(), now=job_app.runtime.now())

    [row] = run_due(job_app)

    result = run_{job}(session, now=row.started_at)
    assert (row.kind, row.state, row.result) == ("{kind}", "succeeded", result)
'''

SCHEDULE_TEST = """

def test_job_is_due_by_its_schedule(job_app):
    entries = job_app.composition.schedule(job_app.runtime)

    [entry] = [entry for entry in entries if entry.job == {cls}()]

    assert entry.after(NOW) == {next_slot}
"""

MODELS_MODULE = '"""The tables of `{noun}`."""\n'

MODEL = """class {cls}(Base):
    __tablename__ = "{table}"

    id: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
"""
