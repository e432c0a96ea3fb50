"""The scheduler behind `celery -A project beat`."""

from datetime import UTC, datetime

from sqlalchemy import select

from project.beat import Scheduler
from project.celery import app
from services.jobs.models import ScheduleEntry


def test_machine_whose_clock_is_wrong_leaves_no_mark_in_the_future(job_boot, monkeypatch):
    beat = Scheduler(app)
    with monkeypatch.context() as patch:
        patch.setattr(job_boot, "now", lambda: datetime(2086, 1, 1, tzinfo=UTC))
        beat.tick()
    with job_boot.read_only() as session:
        marks = session.execute(select(ScheduleEntry.last_fire_at)).scalars().all()
    assert marks
    assert max(marks) <= datetime.now(UTC)
