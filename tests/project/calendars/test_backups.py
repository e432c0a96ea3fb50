"""Calendars are not in a backup: after a restore they are built again, byte for byte."""

import os
import shutil

import pytest
from forking import run_forked
from installations import Installation
from sqlalchemy import delete

from services.calendars.store import FeedStore
from services.school.models import Lesson
from tests.conftest import ROOT
from tests.installing import install
from tests.serving import load_example, sync


def read_feeds(installation: Installation) -> dict[str, bytes]:
    root = installation.runtime[FeedStore].root
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.ics")}


def run(installation: Installation, *words: str) -> str:
    done = run_forked(*words, environment=os.environ | installation.environment, folder=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_feeds_are_byte_identical_after_a_restore(tmp_path, kind):
    if kind == "servers" and shutil.which("pg_dump") is None:
        pytest.skip("PG_DUMP IS NOT INSTALLED: apt-get install postgresql-client")
    with install(kind, tmp_path) as installation:
        load_example(installation.app)
        sync(installation.app)
        before = read_feeds(installation)
        run(installation, "project.here", "backup", f"{tmp_path}/backup.tar")
        with installation.runtime.unit_of_work() as session:
            session.execute(delete(Lesson))
        sync(installation.app)
        changed = read_feeds(installation)
        # Some files are older than the database says, and one is gone.
        next(installation.runtime[FeedStore].root.rglob("*.ics")).unlink()
        installation.runtime.disconnect()

        run(installation, "project.here", "restore", f"{tmp_path}/backup.tar")

        assert len(before) > 10
        assert changed != before
        assert read_feeds(installation) == before
