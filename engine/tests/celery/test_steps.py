"""What a worker's main process does beside Celery's own work."""

from nightshift.jobs.models import Worker
from sqlalchemy import select


def test_worker_is_recorded_before_its_keeper_has_started(job_worker):
    """Otherwise another keeper could call the worker of a first job unknown, and so dead."""
    with job_worker.app.runtime.read_only() as session:
        found = session.scalars(select(Worker.id)).all()
    assert found == [job_worker.app.worker_id]
