"""What `pytest_plugins = ["project.testing"]` in the outermost conftest would bring."""

from project.testing import job_boot, job_worker

__all__ = ["job_boot", "job_worker"]
