"""What our worker processes do besides Celery's own work.

Each worker starts a keeper, prepares its forked children, and touches a file for a container's
health check.
"""

import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from billiard.util import set_pdeathsig
from celery import Celery, bootsteps, current_app, signals
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool
from celery.worker import control
from kombu.utils.functional import maybe_list
from sqlalchemy.exc import SQLAlchemyError

from nightshift.celery import sizing
from nightshift.celery.link import Unrecorded, Word, open_pair
from nightshift.errors import InvalidInput, first_line
from nightshift.jobs import rescue

logger = logging.getLogger(__name__)

# Seconds between two signs of life that the worker gives its keeper.
SIGN_EVERY = 1.0

# Seconds that the main process's event loop may be busy, or wait for a broker, with one thing.
LONGEST_TURN = 15.0

# Seconds after which what the keeper has not recorded is said again, perhaps to its successor.
REPEAT_EVERY = 5.0

# Seconds that a keeper may take to start, before its first sign of life.
KEEPER_START = 60.0

_main_pid = os.getpid()

# Ours takes its place in the registry of commands.
_celerys_revoke = control.revoke


class KeeperStep(bootsteps.StartStopStep):
    """Start a keeper (keeper.py) beside the worker, and watch it until the worker has ended.

    It is a process and not a thread, because the parent forks children at any time: a child would
    inherit a lock that a thread holds at that moment, and nothing would release it. The keeper
    notices by itself that its worker has ended.
    """

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.watch: KeeperWatch | None = None

    def start(self, parent: Any) -> None:
        _record_worker(parent)
        self.watch = KeeperWatch(parent)
        self.watch.start()
        # Only a pool of processes leaves the main thread to the event loop.
        if issubclass(parent.pool_cls, TaskPool):
            parent.timer.call_repeatedly(SIGN_EVERY, self.watch.note_turn)

    def stop(self, parent: Any) -> None:
        # The keeper ends after the worker's process, and so after its last job. A worker in a
        # test's process ends before that.
        if self.watch is not None and not issubclass(parent.pool_cls, TaskPool):
            self.watch.end()

    terminate = stop


def _record_worker(parent: Any) -> None:
    """Record the worker before its first job can be claimed: the keeper takes a while to start."""
    app = parent.app
    judge = rescue.Judge(app.worker_id, app.runtime.settings.worker_silent_after)
    queues = ",".join(sorted(app.amqp.queues.consume_from))
    try:
        with app.runtime.unit_of_work() as session:
            rescue.record_heartbeat(
                session, judge, name=parent.hostname, queues=queues, pid=os.getpid()
            )
    except SQLAlchemyError as error:
        logger.warning("the worker is recorded later: %s", first_line(error))
    finally:
        app.runtime.disconnect()  # the parent forks, so it must not keep a connection


def find_bundles(app: Any) -> dict[str, int]:
    """Return by kind how many jobs a message may name, where that is more than one."""
    tasks = {kind: app.tasks[kind] for kind in app.composition.kinds if kind in app.tasks}
    return {kind: task.bundle for kind, task in tasks.items() if task.bundle > 1}


class KeeperWatch(threading.Thread):
    """Gives the keeper signs of life and the processes' words, and replaces one that is silent.

    A thread, so that this goes on while the main thread waits for the last jobs of a worker that
    stops. A fork cannot hurt it: it holds no lock that a child needs, and it starts the keeper by
    `posix_spawn`.
    """

    _give_up: float
    _repeat: float

    def __init__(self, worker: Any) -> None:
        super().__init__(daemon=True, name="keeper-watch")
        app = worker.app
        self._worker = worker
        self._processes, self._their_end = open_pair()
        app.keeper = self._their_end
        self._link, self._keepers_end = open_pair()
        self._unrecorded = Unrecorded()
        about = {
            "app": app.main,
            "worker": str(app.worker_id),
            "pid": os.getpid(),
            "name": worker.hostname,
            "queues": sorted(app.amqp.queues.consume_from),
            # Only a process that runs jobs has imported their bodies.
            "bundles": find_bundles(app),
        }
        self._command = [sys.executable, "-m", "nightshift.celery.keeper", json.dumps(about)]
        # What is left is for the next keeper to start, on a busy machine, before its worker looks
        # dead.
        self._patience = app.runtime.settings.worker_silent_after.total_seconds() / 3
        self._ended = threading.Event()
        self._turned = self._looked = time.monotonic()
        self.process = self._start_keeper()

    def note_turn(self) -> None:
        """Note that the main thread's event loop goes round."""
        self._turned = time.monotonic()

    def end(self) -> None:
        """End the keeper, and this watch."""
        self._ended.set()
        self.join()
        self.process.kill()
        self.process.wait()
        for link in (self._processes, self._their_end, self._link, self._keepers_end):
            link.socket.close()

    def run(self) -> None:
        while not self._ended.is_set():
            select.select([self._processes.socket, self._link.socket], [], [], SIGN_EVERY)
            try:
                self._look()
                self._pass_words()
            except Exception:
                logger.exception("the keeper cannot be looked after")

    def _pass_words(self) -> None:
        """Say to the keeper what the processes have said, until it has recorded that."""
        for word, about, since in self._processes.hear():
            if about is not None:
                self._unrecorded.add(word, about, since)
                self._link.say(word, about, since)
        if self._repeat < time.monotonic():
            self._repeat = time.monotonic() + REPEAT_EVERY
            for word, about, since in self._unrecorded:
                self._link.say(word, about, since)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > max(self._patience / 2, 2 * SIGN_EVERY):
            # This process was stopped itself, perhaps with the whole machine: begin to count.
            self._turned, self._give_up = now, max(self._give_up, now + self._patience)
        self._looked = now
        if now - self._turned < LONGEST_TURN or not self._loops():
            self._link.say(Word.ALIVE)
        for word, about, _ in self._link.hear():
            self._give_up = now + self._patience
            if about is not None:
                self._unrecorded.drop(word, about)
        if self.process.poll() is not None:
            logger.warning(
                "the keeper ended with exit code %s and is started again", self.process.returncode
            )
            self.process = self._start_keeper()
        elif now > self._give_up:
            logger.warning("the keeper gives no sign of life and is replaced")
            self.process.kill()
            self.process.wait(self._patience)
            self.process = self._start_keeper()

    def _loops(self) -> bool:
        """Whether the main thread should be in its event loop: not while it connects or stops."""
        consumer = self._worker.consumer
        return (
            consumer is not None
            and self._worker.blueprint.state == consumer.blueprint.state == bootsteps.RUN
            and consumer.blueprint.started == len(consumer.steps)
            and issubclass(self._worker.pool_cls, TaskPool)
        )

    def _start_keeper(self) -> subprocess.Popen[bytes]:
        self._give_up = time.monotonic() + KEEPER_START
        # It hears all of it before its first look at dead children.
        self._repeat = 0.0
        # The app's module may be where only this process looks: pytest has a path of its own.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        # Descriptors are closed at exec. With `close_fds` Python would fork, and wait for a pipe
        # that a child of the pool may have inherited.
        return subprocess.Popen(
            self._command, stdin=self._keepers_end.socket.fileno(), env=environment, close_fds=False
        )


def install(app: Celery) -> None:
    """Add our steps to the app, and our handlers to Celery's signals."""
    app.steps["worker"].add(KeeperStep)
    for signal_, handler in (
        (signals.worker_init, _refuse_pool),
        (signals.worker_init, _require_secrets),
        (signals.worker_init, _size_worker),
        (signals.worker_ready, _report_ready),
        (signals.worker_process_init, prepare_child),
        (signals.worker_process_shutdown, _close_child),
        (signals.worker_shutting_down, _report_stopping),
        (signals.worker_shutdown, _report_end),
        (signals.heartbeat_sent, touch_heartbeat_file),
        (signals.task_revoked, _cancel_revoked),
    ):
        # The same handlers for every app of the process; each acts for the current one.
        signal_.connect(handler, weak=False, dispatch_uid=handler.__name__)


def _refuse_pool(sender: Any, **_: Any) -> None:
    """End a worker whose pool keeps only half of the promises: time limits, kills, heartbeats."""
    pool = get_implementation(sender.pool_cls)
    if not issubclass(pool, TaskPool) and not sender.app.any_pool:
        # A signal's handler may end the process only with this; Celery logs other exceptions.
        sys.exit(
            f"the pool {pool.__module__} is not supported: start the worker with --pool prefork"
            " (or processes, its other name), or without --pool"
        )


def _require_secrets(sender: Any, **_: Any) -> None:
    """End a worker that was not given a secret that its jobs need."""
    app = sender.app
    try:
        app.composition.require_secrets(app.runtime, "worker")
    except InvalidInput as error:
        sys.exit(str(error))


def _size_worker(sender: Any, **_: Any) -> None:
    if issubclass(get_implementation(sender.pool_cls), TaskPool):
        sizing.size_worker(sender)


def _report_ready(sender: Any, **_: Any) -> None:
    # Here the keeper and the pool have started.
    prefork = issubclass(sender.controller.pool_cls, TaskPool)
    logger.info("worker ready: %s%s", sender.hostname, "" if prefork else ", without prefork")
    touch_heartbeat_file()


def prepare_child(**_: Any) -> None:
    """Prepare a process that was just forked to run jobs."""
    if os.getpid() == _main_pid:
        return  # a pool without child processes sends this signal in the worker's process
    # A worker that is killed must take its children with it: they would hold its connections, and
    # finish jobs that another worker runs by then.
    if sys.platform == "linux":
        set_pdeathsig(signal.SIGKILL)
    current_app.runtime.disconnect(close=False)
    # A job that reads a hundred thousand rows drops them at its end: the garbage collector need not
    # look at them often, and never at what was imported.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    logger.info("child started")


def _close_child(pid: int, exitcode: int, **_: Any) -> None:
    current_app.runtime.close()
    logger.info("child ended with exit code %s", exitcode)


def tell_keeper(app: Any, word: Word, about: UUID) -> None:
    """Tell this worker's keeper what it is to write into the ledger."""
    if app.keeper is not None:
        app.keeper.say(word, about)


@control.control_command(
    args=[("task_id", str)],
    signature="[id1 [id2 [... [idN]]]]",
    visible=True,
)
def revoke(state: Any, task_id: Any, *args: Any, **options: Any) -> Any:
    """Revoke tasks by their ids, and cancel the jobs with these ids.

    At once, in place of when their messages arrive: only the worker that gets the message could
    forget the revocation, and the others would cancel the job again after a retry.
    """
    for one in maybe_list(task_id) or []:
        with suppress(ValueError, AttributeError, TypeError):
            tell_keeper(state.app, Word.REVOKED, UUID(one))
    return _celerys_revoke(state, task_id, *args, **options)


def _cancel_revoked(sender: Any, request: Any, **_: Any) -> None:
    """Cancel the job of a task that was revoked in another way: by its stamps, or `terminate`.

    Of a message that names several jobs, only the one that was named: the others run again.
    """
    if sender.name in current_app.composition.kinds:
        with suppress(ValueError):
            tell_keeper(current_app, Word.REVOKED, UUID(request.id))


def _report_stopping(how: str, **_: Any) -> None:
    logger.info("worker stops: %s shutdown", how.lower())


def _report_end(**_: Any) -> None:
    logger.info("worker ended")


def touch_heartbeat_file(**_: Any) -> None:
    """Touch the file HEARTBEAT_FILE, which a container's health check reads, where it is set.

    That is cheap and local, unlike `inspect ping`.
    """
    path = os.environ.get("HEARTBEAT_FILE")
    if path:
        Path(path).touch()
