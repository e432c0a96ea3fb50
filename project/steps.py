"""What every Celery process of ours does besides Celery's own: a keeper beside each worker, clean forks, a sign of life."""

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
from uuid import UUID, uuid4

from billiard.util import set_pdeathsig
from celery import Celery, bootsteps, signals
from celery.concurrency.prefork import TaskPool

from services.jobs.args import Backoff
from services.jobs.models import JobState

logger = logging.getLogger(__name__)

# How often a worker looks whether its keeper lives, in seconds.
KEEPER_CHECK = 1.0

# A kind that a worker does not know may be known to a newer one, which gets time to start.
UNKNOWN = Backoff(first=timedelta(minutes=1))

_worker_id = uuid4()
_main_pid = os.getpid()


def worker_id() -> UUID:
    """Return the id of the worker that this process belongs to; children inherit it by the fork."""
    return _worker_id


class Keeper(bootsteps.StartStopStep):
    """Start project/keeper.py beside the worker.

    A process and not a thread: the parent forks children all the time, and a thread that holds a lock or a connection just then
    leaves the child with half of it. Its end needs no telling: see project/keeper.py.
    """

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, parent: Any) -> None:
        about = {
            "worker": str(worker_id()),
            "name": parent.hostname,
            "queues": sorted(parent.app.amqp.queues.consume_from),
            # `worker --include`: the keeper must know the limits of every kind that the worker knows.
            "include": list(parent.app.conf.include),
        }
        self._command = [sys.executable, "-m", "project.keeper", json.dumps(about)]
        self.process = subprocess.Popen(self._command, stdin=subprocess.PIPE)
        parent.timer.call_repeatedly(KEEPER_CHECK, self._keep)

    def _keep(self) -> None:
        # Without a keeper the worker would soon look dead to the others, and its jobs would run elsewhere too.
        if self.process is not None and self.process.stdin is not None and self.process.poll() is not None:
            logger.warning("the keeper ended with exit code %s and is started again", self.process.returncode)
            self.process = subprocess.Popen(self._command, stdin=subprocess.PIPE)

    def stop(self, parent: Any) -> None:
        # The end of its input: it stays until the worker's last job has ended, then goes. Nobody waits for it.
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.stdin = None

    terminate = stop


def install(app: Celery) -> None:
    """Add our steps and signal handlers to the app."""
    app.steps["worker"].add(Keeper)
    signals.worker_ready.connect(_ready, weak=False)
    signals.worker_process_init.connect(_child_started, weak=False)
    signals.worker_process_shutdown.connect(_child_ended, weak=False)
    signals.worker_shutting_down.connect(_shutting_down, weak=False)
    signals.worker_shutdown.connect(_ended, weak=False)
    signals.heartbeat_sent.connect(touch, weak=False)
    signals.task_unknown.connect(_unknown, weak=False)


def _ready(sender: Any, **_: Any) -> None:
    # Started before the pool, the keeper is stopped after it; the log says when both stand.
    prefork = issubclass(sender.controller.pool_cls, TaskPool)
    logger.info("worker ready: %s%s", sender.hostname, "" if prefork else ", without prefork")
    touch()


def _child_started(**_: Any) -> None:
    from project.bootstrap import bootstrap  # noqa: PLC0415 - the app must be importable without a database

    if os.getpid() == _main_pid:
        return  # A pool without processes of its own says so in the worker's.
    # A worker that is killed takes its children with it: they would hold its connections and finish work that runs elsewhere by then.
    if sys.platform == "linux":
        set_pdeathsig(signal.SIGKILL)
    bootstrap().after_fork()
    # A job that reads a school makes a hundred thousand rows and drops them at its end. The garbage collector need not look at them so
    # often, and at what was imported not at all.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    logger.info("child started")


def _child_ended(pid: int, exitcode: int, **_: Any) -> None:
    from project.bootstrap import bootstrap  # noqa: PLC0415 - as above

    bootstrap().close()
    logger.info("child ended with exit code %s", exitcode)


def _unknown(name: str, id: str, **_: Any) -> None:  # noqa: A002 - the signal's name for it
    """Count an attempt of a job whose kind this worker does not know: it may be newer than the worker, or have been removed."""
    from project.bootstrap import Bootstrap  # noqa: PLC0415
    from project.settings import Settings  # noqa: PLC0415
    from services.jobs import claims  # noqa: PLC0415

    # The parent forks: it keeps no connection.
    boot = Bootstrap(Settings())
    try:
        with boot.unit_of_work() as session:
            claim = claims.claim(session.connection(), UUID(id), worker_id=_worker_id, pid=os.getpid())
            if claim is not None:
                error = {"type": "UnknownJob", "message": f"no task is called {name!r}", "traceback": ""}
                state = claims.fail(session, claim, error, retry_after=UNKNOWN.delay(claim.attempt), at_last=JobState.DISCARDED)
                logger.error("job %s is of the unknown kind %s: %s", id, name, state)
    except Exception:
        logger.exception("job %s is of the unknown kind %s", id, name)
    finally:
        boot.disconnect()


def _shutting_down(how: str, **_: Any) -> None:
    logger.info("worker stops: %s shutdown", how.lower())


def _ended(**_: Any) -> None:
    logger.info("worker ended")


def touch(**_: Any) -> None:
    """Leave a sign of life where a container's health check looks: cheap and local, unlike `inspect ping`."""
    path = os.environ.get("HEARTBEAT_FILE")
    if path:
        Path(path).touch()
