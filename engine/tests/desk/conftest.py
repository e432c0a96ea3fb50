"""The desk of a bakery, in this process, on a database of each kind."""

from collections.abc import Callable, Iterator

import pytest
from desk_app import app
from desk_browser import PASSWORD, Browser
from nightshift.celery.app import App
from nightshift.desk import logins
from nightshift.desk.server import make_app
from nightshift.jobs.models import Action, Job, JobLog, PausedEntry, PausedQueue, ScheduleEntry
from nightshift.runtime import Runtime
from sqlalchemy import delete

TABLES = (JobLog, Job, PausedQueue, PausedEntry, ScheduleEntry, Action)


@pytest.fixture(scope="session")
def project_app() -> App:
    return app


@pytest.fixture(scope="session")
def hashed() -> str:
    return logins.make_hash(PASSWORD)


@pytest.fixture
def runtime(database_url: str, hashed: str) -> Iterator[Runtime]:
    """Yield a runtime of the bakery, whose desk has two users; what it wrote is removed."""
    made = app.composition.runtime(
        database_url=database_url,
        desk_users=f"ada:act:{hashed},bob:look:{hashed}",
        metrics_token="a-token-of-the-settings",
        given={App: app},
        _env_file=None,
    )
    yield made
    with made.unit_of_work() as session:
        for table in TABLES:
            session.execute(delete(table))
    made.close()


@pytest.fixture
def open_browser(runtime: Runtime) -> Callable[..., Browser]:
    """Return what opens browsers at one desk."""
    desk = make_app(runtime)

    def open_one(name: str | None = None) -> Browser:
        browser = Browser(desk)
        if name is not None:
            assert browser.log_in(name).status_code == 303
        return browser

    return open_one


@pytest.fixture
def ada(open_browser: Callable[..., Browser]) -> Browser:
    """Return the browser of a user who may act."""
    return open_browser("ada")


@pytest.fixture
def bob(open_browser: Callable[..., Browser]) -> Browser:
    """Return the browser of a user who may look."""
    return open_browser("bob")
