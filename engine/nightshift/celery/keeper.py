"""The keeper, a process beside every worker: heartbeat, relay, rescue, duties of the components.

The worker starts it (steps.py), so an installation has nothing more to deploy. It goes on until its
worker has ended, and then releases the jobs that the worker has left: none, unless the worker was
killed. When the worker's main process does not react any more, the keeper ends the heartbeat, so
that other keepers release the jobs; in production it kills the worker. When the keeper is killed or
hangs, the worker starts another; when both are gone (a lost machine), the other keepers release the
jobs.

Three threads: the main one watches the worker, and waits for a server only once the worker is gone;
one writes the heartbeat; one performs the duties. This process does not fork.
"""

import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from threading import Event, Thread
from uuid import UUID

import psutil
from celery.app.utils import find_app
from sqlalchemy.exc import SQLAlchemyError

from nightshift.celery import filebroker, sentry
from nightshift.celery.app import App
from nightshift.celery.link import Link, Unrecorded, Word
from nightshift.celery.logs import SELDOM, setup
from nightshift.celery.publisher import Publisher
from nightshift.database import Session, explain, is_away, limit_lock_wait
from nightshift.jobs import care, claims, relay, rescue
from nightshift.jobs.run import repeat

logger = logging.getLogger("nightshift.keeper")

# Seconds between two looks while there are jobs to send: the broker's buffer is small and must not
# run empty.
BUSY_INTERVAL = 0.1

# Seconds after which the keeper notices that its worker was killed.
LONGEST_WAIT = 0.25

# Seconds for words in one look, and for the lock of one row: other duties wait meanwhile.
WORDS_SECONDS = 1.0

# Seconds for which a keeper goes on to record its worker's end.
LAST_PATIENCE = 60.0

# Seconds. Longer than a caller's patience: no caller waits for the keeper.
BROKER_PATIENCE = 5.0

TIDY_SECONDS = 60.0

# Seconds without a sign of life of the worker's main process, which gives one each second.
HUNG_AFTER = 15.0

# Seconds after which a thread of the keeper that does not come back is stuck: far more than all
# time limits of a database and a broker together. The keeper is then silent, so the worker starts
# another.
STUCK_AFTER = 300.0


class Keeper:
    """The duties of one keeper.

    Each is called at its own interval. One that raises does not stop the others.
    """

    def __init__(
        self,
        app: App,
        worker_id: UUID,
        name: str,
        queues: list[str],
        *,
        pid: int,
        link: Link,
        bundles: relay.Bundles = relay.NO_BUNDLES,
    ) -> None:
        self.app = app
        self.runtime = app.runtime
        self.worker_id = worker_id
        self.name = name
        self.queues = ",".join(queues)
        self.worker_pid = pid
        self.link = link
        self.bundles = bundles
        self.publisher = Publisher(app, BROKER_PATIENCE, pause=BROKER_PATIENCE)
        self.pause = BUSY_INTERVAL
        self.judge = rescue.Judge(worker_id, app.runtime.settings.worker_silent_after)
        # Connections of its own, which are given up soon: a heartbeat that waits for a silent one
        # would let a healthy worker look dead.
        silence = self.judge.silent_after.total_seconds() / 4
        self._heart = self.runtime.make_engine(silence=silence).execution_options(
            sqlite_begin="IMMEDIATE"
        )
        # What the worker's processes have said; the duty `record_words` takes it.
        self.words = Unrecorded()
        # Claims whose answer a living child waits for.
        self._unsure: set[UUID] = set()

    def record_heartbeat(self) -> None:
        """Record that the worker lives."""
        with Session(self._heart) as session, session.begin():
            rescue.record_heartbeat(
                session, self.judge, name=self.name, queues=self.queues, pid=self.worker_pid
            )

    def record_words(self) -> None:
        """Write into the ledger what the worker's processes have said, for about a second.

        Raises the last error of the database. A word that met one stays, for another try.
        """
        give_up, failed = time.monotonic() + WORDS_SECONDS, None
        for word, about, since in self.words:
            if time.monotonic() > give_up:
                break
            try:
                with self.runtime.unit_of_work() as session:
                    limit_lock_wait(session, WORDS_SECONDS)
                    self._record(session, word, about, since)
            except SQLAlchemyError as error:
                failed = error
                if is_away(error):
                    break
                # Its row is locked, perhaps: the others go first.
                self.words.add(word, about, since)
                continue
            except Exception:
                logger.exception("%s %s cannot be recorded", word, about)
            self.words.drop(word, about)
            # The next keeper has to know who waits, if this one is killed.
            if word is not Word.UNSURE:
                self.link.say(word, about)
        if failed is not None:
            raise failed

    def _record(self, session: Session, word: Word, about: UUID, since: float) -> None:
        match word:
            case Word.REVOKED:
                age = timedelta(seconds=time.monotonic() - since)
                if not rescue.is_retried(session, about, since=age) and care.cancel(
                    session, [about]
                ):
                    logger.warning("job %s is cancelled: its task was revoked", about)
            case Word.UNKNOWN:
                age = self.runtime.settings.unknown_kind_age
                kinds = self.runtime.kinds
                state = rescue.postpone_unknown(session, about, kinds=kinds, at_most=age)
                if state is not None:
                    logger.error("job %s is of an unknown kind: %s", about, state)
            case Word.UNSURE:
                self._unsure.add(about)
            case Word.SURE:
                self._unsure.discard(about)
            case Word.UNSTARTED:
                self._unsure.discard(about)
                claims.undo_claims(session, [about])
            case Word.UNENDED:
                rescue.release_claims(session, [about], reason="its end could not be written")

    def send_due(self) -> None:
        """Send messages for the jobs that are due."""
        queues = self.publisher.find_open(self.app.composition.queues)
        with self.runtime.unit_of_work() as session:
            messages = relay.mark_due_sent(
                session,
                kinds=self.runtime.kinds,
                queues=queues,
                buffer=self.runtime.settings.relay_buffer,
                bundles=self.bundles,
            )
        self.publisher.publish(self.runtime, messages)
        settings = self.runtime.settings
        longest = settings.relay_interval.total_seconds()
        if messages:
            longest = min(longest, LONGEST_WAIT)
        # While the broker may run empty, the next look is soon; otherwise each pause is twice the
        # one before.
        drains = 4 * len(messages) > settings.relay_buffer
        drains = drains or any(len(message.job_ids) > 1 for message in messages)
        self.pause = BUSY_INTERVAL if drains else min(2 * self.pause, longest)

    def resend_lost(self) -> None:
        """Let the next look send the jobs again whose messages the broker has lost."""
        queues = self.publisher.find_open(self.app.composition.queues)
        with self.runtime.unit_of_work() as session:
            lost = relay.mark_lost_unsent(
                session,
                count_ready=self.publisher.count_ready,
                queues=queues,
                after=self.runtime.settings.resend_after,
            )
        if lost:
            logger.warning("the broker lost %d messages; their jobs are sent again", lost)
            self.pause = BUSY_INTERVAL

    def release_dead_children(self) -> None:
        """Release the jobs of this worker's processes that have ended."""
        with self.runtime.read_only() as session:
            running = rescue.find_running(session, self.worker_id)
        if not running:
            return
        # Read after the rows: every process that claimed one of them has started by now.
        living = _find_living(self.worker_pid)
        dead = {claim_id for claim_id, pid in running.items() if pid not in living}
        if dead:
            with self.runtime.unit_of_work() as session:
                # These died while they waited for the answer to their claim.
                claims.undo_claims(session, dead & self._unsure)
                _report(rescue.release_claims(session, dead - self._unsure), "killed children")
            for claim_id in dead & self._unsure:
                self._unsure.discard(claim_id)
                self.link.say(Word.UNSURE, claim_id)

    def release_silent(self) -> None:
        """Release the jobs of silent workers, and jobs that run beyond their time limit."""
        with self.runtime.unit_of_work() as session:
            _report(rescue.release_silent_workers(session, self.judge), "silent workers")
            _report(
                rescue.release_overdue(session, self.judge),
                "processes that ran beyond their time limit",
            )

    def tidy_broker(self) -> None:
        """Delete old files of the embedded broker."""
        options = self.app.conf.broker_transport_options
        if "processed_folder" in options:
            filebroker.prune(options)

    def release_worker(self) -> None:
        """Release the jobs that this worker, which has ended, has left."""
        while self.words:
            self.record_words()
        with self.runtime.unit_of_work() as session:
            claims.undo_claims(session, self._unsure)
        # A few processes that each run a bundle have more jobs than one transaction releases.
        release = partial(rescue.release_worker, worker_id=self.worker_id)
        _report(repeat(self.runtime.unit_of_work, release), "a killed worker")
        with self.runtime.unit_of_work() as session:
            rescue.mark_stopped(session, self.worker_id)

    def record_hang(self) -> None:
        """Record that the worker's main process does not react."""
        with Session(self._heart) as session, session.begin():
            rescue.mark_hung(session, self.worker_id)


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

    def tick(self, name: str, duty: Callable[[], object], every: float) -> bool:
        """Call a duty if its last call was at least `every` seconds ago.

        Log what it raises, and return False then.
        """
        if time.monotonic() < self._next.get(name, 0.0):
            return True
        try:
            duty()
        except Exception as error:  # noqa: BLE001 - the keeper outlives what it depends on
            line = "%s failed and is tried again: %s"
            logger.warning(line, name, explain(error), extra=SELDOM)
            return False
        finally:
            self._next[name] = time.monotonic() + every
        return True


class Loop(Thread):
    """Calls a function again and again until `end`. The function must not raise."""

    def __init__(self, call: Callable[[], object], pause: Callable[[], float]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._pause = pause
        self._ended = Event()
        self._came_back = time.monotonic()

    def run(self) -> None:
        while not self._ended.is_set():
            self._call()
            self._came_back = time.monotonic()
            self._ended.wait(self._pause())

    @property
    def stuck(self) -> bool:
        """Whether the last call has not come back for STUCK_AFTER."""
        return time.monotonic() - self._came_back > STUCK_AFTER

    def end(self, *, patience: float) -> None:
        """Call the function no more, and wait up to `patience` seconds for the last call."""
        self._ended.set()
        self.join(patience)


class Watch:
    """What the keeper knows of its worker's main process."""

    def __init__(self, link: Link, pid: int) -> None:
        self.link = link
        self.pid = pid
        self._heard = self._looked = time.monotonic()

    def wait(self, seconds: float) -> list[tuple[Word, UUID, float]]:
        """Wait for what the worker says, `seconds` at most; return what is for the ledger."""
        select.select([self.link.socket], [], [], seconds)
        now = time.monotonic()
        if now - self._looked > HUNG_AFTER / 3:
            # This process was stopped itself, perhaps with the whole machine: begin to count.
            self._heard = now
        self._looked = now
        words = []
        for word, about, since in self.link.hear():
            self._heard = now
            if about is not None:
                words.append((word, about, since))
        return words

    @property
    def gone(self) -> bool:
        """Whether the worker's main process has ended."""
        return os.getppid() != self.pid

    @property
    def hangs(self) -> bool:
        """Whether the worker's main process has given no sign of life for HUNG_AFTER."""
        return time.monotonic() - self._heard > HUNG_AFTER


def main() -> None:
    """Keep a worker until it ends."""
    # Ctrl-C and a signal to the process group are for the worker; the keeper ends after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    about = json.loads(sys.argv[1])
    # Not this process's parent: the worker may have ended before this line.
    watch = Watch(Link(socket.socket(fileno=sys.stdin.fileno())), about["pid"])
    app = find_app(about["app"])
    settings = app.runtime.settings
    setup(settings.log_format, settings.log_level)
    sentry.start(settings)
    worker_id = UUID(about["worker"])
    name, queues = about["name"], about["queues"]
    keeper = Keeper(
        app,
        worker_id,
        name,
        queues,
        pid=watch.pid,
        link=watch.link,
        bundles=about["bundles"],
    )
    _keep(keeper, watch)


def _keep(keeper: Keeper, watch: Watch) -> None:
    interval = keeper.runtime.settings.heartbeat_interval.total_seconds()
    clock = Clock()
    hung = Event()
    heart = Loop(partial(_beat, keeper, Clock(), hung), lambda: interval)
    duties = Loop(
        partial(_perform, keeper, clock, interval), lambda: min(keeper.pause, LONGEST_WAIT)
    )
    heart.start()
    duties.start()
    while not watch.gone:
        _note_words(keeper, watch.wait(LONGEST_WAIT))
        if watch.hangs != hung.is_set():
            _report_hang(keeper, watch, hung)
        if not (heart.stuck or duties.stuck):
            watch.link.say(Word.ALIVE)
    # Neither may write after the worker's end is recorded.
    heart.end(patience=BROKER_PATIENCE)
    duties.end(patience=BROKER_PATIENCE)
    _note_words(keeper, watch.wait(0))
    _release(keeper, clock)


def _release(keeper: Keeper, clock: Clock) -> None:
    """Release what the worker has left, also where the database is away just now.

    No other process has the words that are not recorded.
    """
    give_up = time.monotonic() + LAST_PATIENCE
    while not clock.tick("release of the worker", keeper.release_worker, every=0):
        if time.monotonic() > give_up:
            return
        time.sleep(LONGEST_WAIT)


def _note_words(keeper: Keeper, words: Iterable[tuple[Word, UUID, float]]) -> None:
    for word, about, since in words:
        keeper.words.add(word, about, since)


def _report_hang(keeper: Keeper, watch: Watch, hung: Event) -> None:
    """Note that the worker's main process hangs, or that it goes on; in production end it."""
    if not watch.hangs:
        hung.clear()
        logger.warning("the worker's main process goes on")
        return
    hung.set()
    if keeper.runtime.settings.environment == "production":
        logger.error("the worker's main process hangs: the keeper kills it, for another to start")
        with suppress(ProcessLookupError):
            os.kill(watch.pid, signal.SIGKILL)
    else:
        logger.error("the worker's main process hangs: its jobs run elsewhere soon")


def _beat(keeper: Keeper, clock: Clock, hung: Event) -> None:
    if hung.is_set():
        clock.tick("note of the hang", keeper.record_hang, every=0)
    else:
        clock.tick("heartbeat", keeper.record_heartbeat, every=0)


def _perform(keeper: Keeper, clock: Clock, heartbeat: float) -> None:
    """Perform the duties that are due."""
    clock.tick("the worker's words", keeper.record_words, every=0)
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


if __name__ == "__main__":
    main()
