"""The scheduler behind `celery -A project beat`.

Celery's own scheduler loses a slot when it stops between its note of the slot and the message, and
two beats send every message twice.
"""

import logging
from datetime import datetime
from typing import Any

from celery import beat

from nightshift.celery.logs import SELDOM
from nightshift.celery.steps import touch_heartbeat_file
from nightshift.database import explain, read_clock
from nightshift.jobs import schedule

logger = logging.getLogger(__name__)

# How often beat reads the schedule, and so how late it starts a slot at most.
TICK_SECONDS = 1.0


class Scheduler(beat.Scheduler):
    """Starts recurring jobs from the table `schedule`.

    Any number of beats may run; each slot is started once.
    """

    def __init__(self, app: Any, *args: Any, **options: Any) -> None:
        self._runtime = app.runtime
        self._entries = app.composition.schedule(app.runtime)
        self._started = False
        # By entry the newest slot that the table has had.
        self._remembered: dict[str, datetime] = {}
        super().__init__(app, *args, **options)

    def setup_schedule(self) -> None:
        """Do nothing: the first tick reads the table. The database may still be away here."""

    def tick(self, *_: Any, **__: Any) -> float:
        """Start the jobs that are due and return the seconds until the next tick.

        An error is logged, and the next tick tries again.
        """
        try:
            with self._runtime.unit_of_work() as session:
                # The database's clock, which all beats share: a beat whose clock is ahead for a
                # moment would mark slots of the far future as started.
                now = read_clock(session)
                # Each time: a beat of another release may have deleted our entries.
                schedule.register_entries(
                    session, self._entries, now=now, remembered=self._remembered
                )
                fired = schedule.enqueue_due(
                    session, self._entries, now=now, remembered=self._remembered
                )
                if not self._started:
                    # Afterwards: an entry whose slot was missed has its job now.
                    fired += schedule.enqueue_overdue(session, self._entries, now=now)
                slots = schedule.read_last_fires(session)
            self._started, self._remembered = True, slots
        except Exception as error:  # noqa: BLE001 - beat outlives everything that it depends on
            line = "the schedule cannot be read and is tried again: %s"
            logger.warning(line, explain(error), extra=SELDOM)
            return TICK_SECONDS
        for name, slot in fired:
            logger.info("started %s for %s", name, slot.isoformat())
        touch_heartbeat_file()
        return TICK_SECONDS

    def sync(self) -> None:
        """Do nothing: the table is always up to date."""

    @property
    def info(self) -> str:
        return f"    . entries -> {', '.join(entry.name for entry in self._entries)}"
