"""What our worker processes do besides Celery's own work.

Each worker starts a keeper, prepares its forked children, and touches a file for a container's
health check.
"""

import gc
import json
import logging
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from billiard.util import set_pdeathsig
from celery import Celery, bootsteps, current_app, signals
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool

from nightshift.celery import messages
from nightshift.jobs import care, claims
from nightshift.jobs.args import Backoff
from nightshift.jobs.models import JobState

logger = logging.getLogger(__name__)

# How often a worker checks that its keeper lives, in seconds.
KEEPER_CHECK = 1.0

# The wait after a job of a kind that this worker does not know: a newer worker, which knows it, may
# be starting.
UNKNOWN = Backoff(first=timedelta(minutes=1))

_main_pid = os.getpid()


class KeeperStep(bootsteps.StartStopStep):
    """Start a keeper (keeper.py) beside the worker.

    It is a process and not a thread, because the parent forks children at any time: a child would
    inherit a lock that a thread holds at that moment, and nothing would release it. The keeper
    notices by itself that its worker has ended.
    """

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, parent: Any) -> None:
        about = {
            "app": parent.app.main,
            "worker": str(parent.app.worker_id),
            "name": parent.hostname,
            "queues": sorted(parent.app.amqp.queues.consume_from),
        }
        self._command = [sys.executable, "-m", "nightshift.celery.keeper", json.dumps(about)]
        self.process = self._start_keeper()
        parent.timer.call_repeatedly(KEEPER_CHECK, self._restart_keeper)

    def _restart_keeper(self) -> None:
        # Without a keeper the worker would soon look dead, and its jobs would run elsewhere too.
        if (
            self.process is not None
            and self.process.stdin is not None
            and self.process.poll() is not None
        ):
            logger.warning(
                "the keeper ended with exit code %s and is started again", self.process.returncode
            )
            self.process = self._start_keeper()

    def _start_keeper(self) -> subprocess.Popen[bytes]:
        # The app's module may be where only this process looks: pytest has a path of its own.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, env=environment)

    def stop(self, parent: Any) -> None:
        # At the end of its input the keeper waits until the worker's last job has ended, then ends.
        # The worker does not wait for it.
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.stdin = None

    terminate = stop


def install(app: Celery) -> None:
    """Add our steps to the app, and our handlers to Celery's signals."""
    app.steps["worker"].add(KeeperStep)
    for signal_, handler in (
        (signals.worker_init, _refuse_pool),
        (signals.worker_ready, _report_ready),
        (signals.worker_process_init, prepare_child),
        (signals.worker_process_shutdown, _close_child),
        (signals.worker_shutting_down, _report_stopping),
        (signals.worker_shutdown, _report_end),
        (signals.heartbeat_sent, touch_heartbeat_file),
        (signals.task_unknown, _charge_unknown),
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


def _report_ready(sender: Any, **_: Any) -> None:
    # The keeper starts before the pool and stops after it. Here both have started.
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


def _charge_unknown(name: str, id: str, **_: Any) -> None:  # noqa: A002 - the signal's name for it
    """Count an attempt of a job whose kind this worker does not know.

    The job may be newer than the worker, or its kind may have been removed.
    """
    runtime = current_app.runtime
    try:
        with runtime.unit_of_work() as session:
            claim = claims.claim(
                session.connection(), UUID(id), worker_id=current_app.worker_id, pid=os.getpid()
            )
            if claim is not None:
                error = {
                    "type": "UnknownJob",
                    "message": f"no task is called {name!r}",
                    "traceback": "",
                }
                state = claims.record_failure(
                    session,
                    claim,
                    error,
                    retry_after=UNKNOWN.delay(claim.attempt),
                    at_last=JobState.DISCARDED,
                )
                logger.error("job %s is of the unknown kind %s: %s", id, name, state)
    except Exception:
        logger.exception("job %s is of the unknown kind %s", id, name)
    finally:
        # The parent forks, so it must not keep a connection.
        runtime.disconnect()


def _cancel_revoked(sender: Any, request: Any, **_: Any) -> None:
    """Cancel the job of a task that was revoked, by Flower's button or `control revoke`."""
    if sender.name not in current_app.composition.kinds:
        return
    for job_id in messages.read_job_ids(request.kwargs or {}, request.id):
        tell_keeper(current_app, "revoked", job_id)


def tell_keeper(app: Any, word: str, job_id: UUID) -> None:
    """Write to the database directly, until the keeper's socket is there."""
    try:
        with app.runtime.unit_of_work() as session:
            care.cancel(session, [job_id])
    except Exception:
        logger.exception("job %s is %s, and the ledger does not know", job_id, word)
    finally:
        app.runtime.disconnect()


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
