"""The keeper, a process beside every worker: heartbeat, relay, rescue, duties of the components.

The worker starts it (steps.py), so an installation has nothing more to deploy. It ends with its
worker. When its input ends, the worker is stopping: the keeper goes on with the heartbeat until the
worker's last job has ended. When its parent is gone, the worker was killed: the keeper releases the
worker's jobs at once. When the keeper is killed, the worker starts another; when both are gone (a
lost machine), the other keepers release the jobs.
"""

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

import psutil
from celery.app.utils import find_app

from nightshift.celery import filebroker
from nightshift.celery.app import App
from nightshift.celery.logs import setup
from nightshift.celery.publisher import Publisher
from nightshift.errors import first_line
from nightshift.jobs import relay, rescue

logger = logging.getLogger("nightshift.keeper")

# Seconds between two looks while there are jobs to send: the broker's buffer is small and must not
# run empty.
BUSY_INTERVAL = 0.1

# Seconds after which the keeper notices that its worker was killed.
LONGEST_WAIT = 0.25

# Seconds. Longer than a caller's patience: no caller waits for the keeper.
BROKER_PATIENCE = 5.0

TIDY_SECONDS = 60.0


class Keeper:
    """The duties of one keeper.

    Each is called at its own interval. One that raises does not stop the others.
    """

    def __init__(self, app: App, worker_id: UUID, name: str, queues: list[str], pid: int) -> None:
        self.app = app
        self.runtime = app.runtime
        self.worker_id = worker_id
        self.name = name
        self.queues = ",".join(queues)
        self.worker_pid = pid
        self.publisher = Publisher(app, BROKER_PATIENCE, pause=BROKER_PATIENCE)
        self.pause = BUSY_INTERVAL
        self._good_since: float | None = None

    def record_heartbeat(self) -> None:
        """Record that the worker lives.

        Only a keeper with an unbroken series of heartbeats may release other workers' jobs.
        """
        # An error ends the series.
        since, self._good_since = self._good_since, None
        with self.runtime.unit_of_work() as session:
            rescue.record_heartbeat(
                session, self.worker_id, name=self.name, queues=self.queues, pid=self.worker_pid
            )
        self._good_since = since or time.monotonic()

    def send_due(self) -> None:
        """Send messages for the jobs that are due."""
        queues = self.publisher.find_open(self.app.composition.queues)
        with self.runtime.unit_of_work() as session:
            messages = relay.mark_due_sent(
                session,
                kinds=self.runtime.kinds,
                queues=queues,
                buffer=self.runtime.settings.relay_buffer,
            )
        self.publisher.publish(self.runtime, messages)
        # While there are jobs to send, the next look is soon; otherwise each pause is twice the
        # one before.
        longest = self.runtime.settings.relay_interval.total_seconds()
        self.pause = BUSY_INTERVAL if messages else min(2 * self.pause, longest)

    def resend_lost(self) -> None:
        """Send again the messages that the broker has lost."""
        queues = self.publisher.find_open(self.app.composition.queues)
        with self.runtime.unit_of_work() as session:
            messages = relay.mark_lost_sent(
                session,
                count_ready=self.publisher.count_ready,
                queues=queues,
                after=self.runtime.settings.resend_after,
            )
        if messages:
            logger.warning("the broker lost %d messages; they are sent again", len(messages))
        self.publisher.publish(self.runtime, messages)

    def release_dead_children(self) -> None:
        """Release the jobs of this worker's processes that have ended."""
        with self.runtime.read_only() as session:
            running = rescue.find_running(session, self.worker_id)
        if not running:
            return
        # Read after the rows: every process that claimed one of them has started by now.
        living = _find_living(self.worker_pid)
        dead = [claim_id for claim_id, pid in running.items() if pid not in living]
        if dead:
            with self.runtime.unit_of_work() as session:
                _report(rescue.release_claims(session, dead), "killed children")

    def release_silent(self) -> None:
        """Release the jobs of silent workers, and jobs that run beyond their time limit."""
        threshold = self.runtime.settings.worker_silent_after
        since = self._good_since
        if since is None or time.monotonic() - since < threshold.total_seconds():
            return
        with self.runtime.unit_of_work() as session:
            _report(
                rescue.release_silent_workers(session, silent_after=threshold), "silent workers"
            )
            _report(rescue.release_overdue(session), "processes that ran beyond their time limit")

    def tidy_broker(self) -> None:
        """Delete old files of the embedded broker."""
        options = self.app.conf.broker_transport_options
        if "processed_folder" in options:
            filebroker.prune(options)

    def release_worker(self) -> None:
        """Release the jobs of this worker, which was killed."""
        with self.runtime.unit_of_work() as session:
            _report(rescue.release_worker(session, self.worker_id), "a killed worker")
            rescue.mark_stopped(session, self.worker_id)

    def leave(self) -> bool:
        """Mark the stopping worker as stopped once its last job has ended; return whether it is."""
        with self.runtime.read_only() as session:
            if rescue.find_running(session, self.worker_id):
                return False
        with self.runtime.unit_of_work() as session:
            rescue.mark_stopped(session, self.worker_id)
        return True


def _report(released: int, whose: str) -> None:
    if released:
        logger.warning("released %d jobs of %s", released, whose)


def _find_living(parent: int) -> set[int]:
    """Return the process ids of a worker and its children, without zombies."""
    try:
        children = psutil.Process(parent).children()
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
    """Calls duties when they are due."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def tick(self, name: str, duty: Callable[[], object], every: float) -> None:
        """Call a duty if its last call was at least `every` seconds ago. Log what it raises."""
        if time.monotonic() < self._next.get(name, 0.0):
            return
        try:
            duty()
        except Exception as error:  # noqa: BLE001 - the keeper outlives what it depends on
            logger.warning("%s failed and is tried again: %s", name, first_line(error))
        self._next[name] = time.monotonic() + every


def main() -> None:
    """Keep a worker until it ends."""
    # Ctrl-C and a signal to the process group are for the worker; the keeper ends after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    about = json.loads(sys.argv[1])
    app = find_app(about["app"])
    settings = app.runtime.settings
    setup(settings.log_format, settings.log_level)
    parent = os.getppid()
    keeper = Keeper(app, UUID(about["worker"]), about["name"], about["queues"], parent)
    clock = Clock()
    stopping = False
    heartbeat = settings.heartbeat_interval.total_seconds()
    while True:
        if os.getppid() != parent:
            clock.tick("release of the worker", keeper.release_worker, every=0)
            return
        clock.tick("heartbeat", keeper.record_heartbeat, every=heartbeat)
        if stopping:
            if keeper.leave():
                return
        else:
            _perform(keeper, clock, heartbeat)
        stopping = _wait(min(keeper.pause, LONGEST_WAIT), stopping=stopping)


def _perform(keeper: Keeper, clock: Clock, heartbeat: float) -> None:
    """Perform the duties that are due, for a worker that is not stopping."""
    clock.tick("relay", keeper.send_due, every=keeper.pause)
    for duty in keeper.app.composition.duties:
        every = duty.every or keeper.runtime.settings.relay_interval
        # A component may give its duty the name of one of ours.
        call = partial(duty.run, keeper.runtime)
        clock.tick(f"duty {duty.name}", call, every=every.total_seconds())
    clock.tick("release of dead children", keeper.release_dead_children, every=heartbeat / 2)
    clock.tick("release of silent workers", keeper.release_silent, every=heartbeat)
    clock.tick("resend", keeper.resend_lost, every=heartbeat)
    clock.tick("tidying", keeper.tidy_broker, every=TIDY_SECONDS)


def _wait(seconds: float, *, stopping: bool) -> bool:
    """Wait until the input ends, `seconds` at most; return whether it has ended."""
    if stopping:
        time.sleep(seconds)
        return True
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and not sys.stdin.buffer.read(1)


if __name__ == "__main__":
    main()
