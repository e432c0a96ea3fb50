"""The example school's feeds and a web server that serves them."""

from contextlib import AbstractContextManager
from pathlib import Path

from nightshift.celery.app import App
from nightshift.jobs import enqueue
from nightshift.jobs.models import JobState
from nightshift.testing import run_due
from web_servers import WebServer, web_server

from project.school.settings import SchoolSettings
from services.calendars.jobs import SyncCalendars
from services.school.loading import load

EXAMPLE = Path(__file__).parent.parent / "examples" / "school"


def load_example(app: App) -> None:
    """Load the example school into an installation's database."""
    zone = app.runtime[SchoolSettings].school_timezone
    with app.runtime.unit_of_work() as session:
        load(session, EXAMPLE, zone=zone, now=app.runtime.now())


def sync(app: App) -> None:
    """Bring every feed up to date, in this process."""
    with app.runtime.unit_of_work() as session:
        enqueue(session, SyncCalendars(), now=app.runtime.now())
    assert {job.state for job in run_due(app)} == {JobState.SUCCEEDED}


def serve(folder: Path, **settings: str) -> AbstractContextManager[WebServer]:
    """Start the project's web server with the environment and these settings."""
    return web_server("project.web", folder, **settings)
