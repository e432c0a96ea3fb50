"""Installations of the project: its own tables, its own folders, real workers."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from installations import QUICK, Installation, any_installation
from nightshift.celery.app import App

from tests.conftest import migrate_runtime


def migrate_installation(app: App) -> None:
    """Make the tables of an installation's database, by the migrations."""
    migrate_runtime(app.runtime)


def install(kind: str, folder: Path, **settings: str) -> AbstractContextManager[Installation]:
    """Make an installation of a kind: `with install("servers", folder, log_level="DEBUG")`.

    Kinds are `embedded`, `servers` and `rabbit`. Settings are given as in the environment.
    """
    options: dict[str, Any] = {
        **QUICK,
        "feed_store": f"{folder}/feeds",
        "mail_url": f"folder://{folder}/mail",
        "school_name": "Probe",
        **settings,
    }
    how = {"prepare": migrate_installation, **options}
    return any_installation(kind, "project.celery", folder, **how)
