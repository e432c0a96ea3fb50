"""Beside every worker: heartbeat, relay, rescue, and an eye on the change log.

Started by the worker (project/steps.py), so there is nothing more to deploy. It ends with its worker. When its input ends, the worker is
stopping: it keeps the heartbeat until the worker's last job has ended. When its parent is gone, the worker was killed: it frees the
worker's jobs at once. When it is killed itself, the worker starts it again; when both are gone (a lost machine), the other keepers see
the silence.
"""

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from uuid import UUID

import psutil

from project import filebroker
from project.bootstrap import Bootstrap
from project.celery import app
from project.logs import setup
from project.publisher import Publisher
from project.settings import Settings
from services.calendars import changes
from services.calendars.jobs import RefreshFeeds
from services.jobs import enqueue, relay, rescue

logger = logging.getLogger("project.keeper")

# While there is something to send it is looked this often: the broker's buffer is small, and must not run dry.
BUSY_INTERVAL = 0.1

# A worker that was killed is noticed after this.
LONGEST_WAIT = 0.25

# The keeper has time: nobody waits for it.
BROKER_PATIENCE = 5.0


class Keeper:
    """The duties of one keeper; each is called at its own interval and may fail without harm to the others."""

    def __init__(self, boot: Bootstrap, worker_id: UUID, name: str, queues: list[str], parent: int) -> None:
        self.boot = boot
        self.settings = boot.settings
        self.worker_id = worker_id
        self.name = name
        self.queues = ",".join(queues)
        self.parent = parent
        self.publisher = Publisher(BROKER_PATIENCE)
        self.pause = BUSY_INTERVAL
        self._good_since: float | None = None

    def heartbeat(self) -> None:
        """Say that the worker lives; since when without a break decides whether we may judge others."""
        try:
            with self.boot.unit_of_work() as session:
                rescue.heartbeat(session, self.worker_id, name=self.name, queues=self.queues, pid=self.parent)
        except Exception:
            self._good_since = None
            raise
        self._good_since = self._good_since or time.monotonic()

    def send_due(self) -> None:
        """Tell the broker of what is due."""
        with self.boot.unit_of_work() as session:
            messages = relay.due(session, buffer=self.settings.relay_buffer)
        self._publish(messages)
        # The next look comes soon while there is something to send, and later and later when there was nothing.
        longest = self.settings.relay_interval.total_seconds()
        self.pause = BUSY_INTERVAL if messages else min(2 * self.pause, longest)

    def notice_changes(self) -> None:
        """Have the feeds refreshed that changes in the database lead to. Any number of keepers make it one job."""
        with self.boot.read_only() as session:
            if not changes.pending(session):
                return
        with self.boot.unit_of_work() as session:
            enqueue(session, RefreshFeeds(), now=self.boot.now(), delay=changes.COLLECT_FOR)

    def resend(self) -> None:
        """Tell the broker again of what it lost."""
        with self.boot.unit_of_work() as session:
            messages = relay.lost(session, ready=self.publisher.ready, after=self.settings.resend_after)
        if messages:
            logger.warning("%d messages were lost by the broker and are sent again", len(messages))
        self._publish(messages)

    def free_dead_children(self) -> None:
        """Free the jobs of this worker's processes that are gone."""
        with self.boot.read_only() as session:
            running = rescue.running(session, self.worker_id)
        if not running:
            return
        # Read after the rows: a process that claimed one of them was there by then.
        living = _living(self.parent)
        dead = [claim_id for claim_id, pid in running.items() if pid not in living]
        if dead:
            with self.boot.unit_of_work() as session:
                self._log_freed(rescue.free_claims(session, dead), "killed children")

    def judge(self) -> None:
        """Free the jobs of workers that fell silent, and of processes that could not write their end."""
        silent_after = self.settings.worker_silent_after
        if self._good_since is None or time.monotonic() - self._good_since < silent_after.total_seconds():
            return
        with self.boot.unit_of_work() as session:
            self._log_freed(rescue.free_silent(session, silent_after=silent_after), "silent workers")
            self._log_freed(rescue.free_overdue(session), "processes that overran their time limit")

    def tidy(self) -> None:
        """Remove what the embedded broker leaves behind."""
        options = app.conf.broker_transport_options
        if "processed_folder" in options:
            filebroker.prune(options)

    def bury(self) -> None:
        """The worker was killed: free its jobs now."""
        with self.boot.unit_of_work() as session:
            self._log_freed(rescue.free_worker(session, self.worker_id), "a killed worker")
            rescue.stopped(session, self.worker_id)

    def leave(self) -> bool:
        """The worker is stopping: when its last job has ended, say so and return True."""
        with self.boot.read_only() as session:
            if rescue.running(session, self.worker_id):
                return False
        with self.boot.unit_of_work() as session:
            rescue.stopped(session, self.worker_id)
        return True

    def _publish(self, messages: list[relay.Message]) -> None:
        if messages and not self.publisher.publish(messages):
            with self.boot.unit_of_work() as session:
                relay.unstamp(session, messages)

    def _log_freed(self, freed: int, whose: str) -> None:
        if freed:
            logger.warning("freed %d jobs of %s", freed, whose)


def _living(parent: int) -> set[int]:
    try:
        worker = psutil.Process(parent)
        children = worker.children()
    except psutil.NoSuchProcess:
        return set()
    living = {parent}
    for child in children:
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                living.add(child.pid)
        except psutil.NoSuchProcess:
            continue
    return living


class Clock:
    """Calls duties when their time has come."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def tick(self, duty: Callable[[], None], every: float) -> None:
        """Call the duty if it is due. Whatever it raises is logged: a database or broker that is away comes back."""
        name = duty.__name__
        if time.monotonic() < self._next.get(name, 0.0):
            return
        try:
            duty()
        except Exception as error:  # noqa: BLE001 - the keeper outlives everything that it depends on
            logger.warning("%s failed and is tried again: %s", name, str(error).partition("\n")[0])
        self._next[name] = time.monotonic() + every


def main() -> None:
    """Keep a worker until it ends."""
    # Ctrl-C and a stopped process group mean the worker; the keeper goes after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    about = json.loads(sys.argv[1])
    settings = Settings()
    setup(settings.log_format, settings.log_level)
    # The registry of kinds knows their limits; the modules of tasks bring it.
    app.conf.include = about["include"]
    app.loader.import_default_modules()
    parent = os.getppid()
    keeper = Keeper(Bootstrap(settings), UUID(about["worker"]), about["name"], about["queues"], parent)
    clock = Clock()
    stopping = False
    heartbeat = settings.heartbeat_interval.total_seconds()
    while True:
        if os.getppid() != parent:
            clock.tick(keeper.bury, every=0)
            return
        clock.tick(keeper.heartbeat, every=heartbeat)
        if stopping:
            if keeper.leave():
                return
        else:
            clock.tick(keeper.send_due, every=keeper.pause)
            clock.tick(keeper.notice_changes, every=settings.relay_interval.total_seconds())
            clock.tick(keeper.free_dead_children, every=heartbeat / 2)
            clock.tick(keeper.judge, every=heartbeat)
            clock.tick(keeper.resend, every=heartbeat)
            clock.tick(keeper.tidy, every=60)
        stopping = _wait(min(keeper.pause, LONGEST_WAIT), stopping=stopping)


def _wait(seconds: float, *, stopping: bool) -> bool:
    """Sleep, or until the input ends; return whether it has ended."""
    if stopping:
        time.sleep(seconds)
        return True
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and not sys.stdin.buffer.read(1)


if __name__ == "__main__":
    main()
