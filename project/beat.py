"""The scheduler behind `celery -A project beat`. Celery's own moves on before it publishes, and sends twice with two beats."""

import logging
from typing import Any

from celery import beat
from sqlalchemy import select

from project.bootstrap import bootstrap
from project.schedule import entries
from project.steps import touch
from services.database import utc_now
from services.jobs import schedule

logger = logging.getLogger(__name__)

# How often the schedule is looked at: the latest that a slot is started.
TICK_SECONDS = 1.0


class Scheduler(beat.Scheduler):
    """Starts recurring jobs from the table `schedule`. Any number of beats may run; each slot is started once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._boot = bootstrap()
        self._entries = entries(self._boot.settings)
        self._registered = False
        super().__init__(*args, **options)

    def setup_schedule(self) -> None:
        """Do nothing: the table is read at the first tick, when the database may still be away."""

    def tick(self, *_: Any, **__: Any) -> float:
        """Start what is due and return the seconds until the next look. A database that is away is waited for."""
        try:
            with self._boot.unit_of_work() as session:
                # The database's clock, which all beats share: one that was wrong for a moment would mark slots of a far future as started.
                now = session.execute(select(utc_now())).scalar_one()
                fired = [] if self._registered else schedule.register(session, self._entries, now=now)
                fired += schedule.fire(session, self._entries, now=now)
            self._registered = True
        except Exception as error:  # noqa: BLE001 - beat outlives everything that it depends on
            logger.warning("the schedule cannot be read and is tried again: %s", str(error).partition("\n")[0])
            return TICK_SECONDS
        for name, slot in fired:
            logger.info("started %s for %s", name, slot.isoformat())
        touch()
        return TICK_SECONDS

    def sync(self) -> None:
        """Do nothing: the table is always up to date."""

    @property
    def info(self) -> str:
        return f"    . entries -> {', '.join(entry.name for entry in self._entries)}"


__all__ = ["Scheduler"]
