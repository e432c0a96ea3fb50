"""A sync that is killed (SIGKILL) at any moment is as if it had not begun."""

import copy
import os
import random
import signal
import time
from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest
from forking import ForkedProcess

from tests.conftest import ROOT
from tests.services.school.timetable.builders import (
    Paper,
    add_school,
    contents,
    expected_changes,
    expected_lessons,
    make_paper,
    read_changes,
    read_lessons,
)

pytestmark = pytest.mark.worker

KILLS = 20
# The command has the machine's clock.
LATER = date(2150, 1, 5)
COMMAND = ["-A", "project", "school", "timetable", "sync", "--accept"]


@pytest.fixture
def start(installed, tmp_path):
    """Return a function that starts the command in a process of its own."""
    url = installed.runtime.engine.url.render_as_string(hide_password=False)
    environment = os.environ | {
        "DATABASE_URL": url,
        "BROKER_URL": f"filesystem://{tmp_path / 'broker'}",
        "TIMETABLE_SOURCES": f"main={tmp_path / 'timetable'}",
    }

    def start() -> ForkedProcess:
        said = tmp_path / "said"
        return ForkedProcess("celery", COMMAND, environment, folder=ROOT, stdout=said, stderr=said)

    return start


def change_all(paper: Paper) -> Paper:
    """Return the timetable with every lesson changed, a tenth gone, and many single dates."""
    changed = copy.deepcopy(paper)
    for number, key in enumerate(list(changed.lessons)):
        changed.lesson(key, room=f"neu {number}", weekday=number % 5 + 1)
        if number % 10 == 0:
            del changed.lessons[key]
        elif number % 5 == 0:
            changed.change(key, LATER, cancelled=True)
    return changed


def read(runtime):
    with runtime.read_only() as session:
        return read_lessons(session), read_changes(session)


@pytest.mark.timeout(900)
def test_killed_sync_is_as_if_it_had_not_begun(installed, start, tmp_path: Path):
    runtime = installed.runtime
    here = make_paper(classes=60, teachers=120, lessons=1500)
    there = change_all(here)
    with runtime.unit_of_work() as session:
        add_school(session, here, last=date(2190, 1, 31))
    for paper in (here, there):
        paper.write(tmp_path / "timetable")
        began = time.monotonic()
        assert start().wait(60) == 0, (tmp_path / "said").read_text()
        lasted = time.monotonic() - began
    here, there = there, here
    there.write(tmp_path / "timetable")
    rng, killed, tried = random.Random(16), 0, 0
    while killed < KILLS:
        tried += 1
        assert tried < 4 * KILLS
        with runtime.read_only() as session:
            before = contents(session, without=())
        process = start()
        time.sleep(rng.uniform(0.2, 1) * lasted)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        code = process.wait(60)
        if read(runtime) == (expected_lessons(there), expected_changes(there)):
            # It was done before: the other way round from here on.
            here, there = there, here
            there.write(tmp_path / "timetable")
            continue
        assert code == -signal.SIGKILL, (tmp_path / "said").read_text()
        assert read(runtime) == (expected_lessons(here), expected_changes(here))
        with runtime.read_only() as session:
            assert contents(session, without=()) == before
        killed += 1

    assert start().wait(60) == 0
    assert read(runtime) == (expected_lessons(there), expected_changes(there))
