"""An app whose beat has the entries that ENTRIES names: `celery -A two_releases beat`.

Two processes with different entries are beats of two releases.
"""

import os
from datetime import UTC, timedelta

from nightshift.celery.app import App
from nightshift.component import Component, Composition
from nightshift.jobs.schedule import Entry
from nightshift.ledger import ledger
from nightshift.runtime import Runtime
from probe_app import Leave, probe

EVERY = timedelta(seconds=1)
# Each entry's jobs have its number.
NUMBERS = {"common": 0, "older": 1, "newer": 2}


def make_schedule(_runtime: Runtime) -> list[Entry]:
    return [
        Entry(name, Leave(number=NUMBERS[name]), EVERY, UTC, missed="all")
        for name in os.environ.get("ENTRIES", "common").split(",")
    ]


schedule = Component(name="schedule", schedule=make_schedule)
app = App("two_releases", Composition([ledger, probe, schedule]))
