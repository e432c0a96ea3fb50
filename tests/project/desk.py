"""A desk of the project, without a server, and persons who use it."""

from typing import Any

from desk_browser import PASSWORD, Browser
from nightshift.celery.app import App
from nightshift.desk.logins import make_hash
from nightshift.desk.server import make_app


def open_desk(app: App, monkeypatch: Any) -> Browser:
    """Return the browser of a user who may act, at an installation's desk."""
    users = f"ada:act:{make_hash(PASSWORD)}"
    monkeypatch.setenv("DESK_USERS", users)
    again = App(app.main, app.composition, _env_file=None)
    browser = Browser(make_app(again.runtime))
    assert browser.log_in("ada").status_code == 303
    return browser
