"""`@job`: how every job runs.

A message only names a row. The task claims the row, validates its arguments, calls the body, and
writes the job's end in the commit of the body's effect. After a PermanentError the job ends; after
any other error it is tried again with the kind's backoff. Celery's own retry is never used: it
publishes with an ETA, which Redis delivers more than once.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from billiard.common import terminate_handler_fired
from celery import Task, shared_task
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from nightshift.celery import messages, telemetry
from nightshift.celery.app import App
from nightshift.celery.logs import job_context
from nightshift.errors import PermanentError
from nightshift.jobs import claims, rescue
from nightshift.jobs.args import JobArgs
from nightshift.jobs.models import JobState
from nightshift.jobs.run import Discard, Run
from nightshift.runtime import Runtime

logger = logging.getLogger(__name__)

Args = TypeVar("Args", bound=JobArgs)
Body = Callable[..., Any]

# How long the worker waits for a database that is away, to write a job's failure.
DATABASE_PATIENCE = timedelta(seconds=30)


class LedgerTask(Task):
    """A task whose messages name rows of the ledger."""

    abstract = True
    args_type: type[JobArgs]
    body: Body
    own_transactions: bool

    def perform(self, job_id: UUID) -> JobState | None:
        """Run the job if it can be claimed. Return its state, or None without a claim.

        Raises what the body raised, after it is recorded in the ledger.
        """
        with self.app.runtime.single_statement() as connection:
            claim = claims.claim(connection, job_id, worker_id=self.app.worker_id, pid=os.getpid())
        if claim is None:
            logger.debug("nothing to claim")
            return None
        with telemetry.run_span(claim, queue=self.args_type.policy.queue) as report:
            return self._perform(claim, self.app.runtime, report)

    def _perform(
        self, claim: claims.Claim, runtime: Runtime, report: Callable[[str], None]
    ) -> JobState | None:
        run = Run(claim, runtime)
        logger.info("job started, attempt %d of %d", claim.attempt, claim.max_attempts)
        began = time.monotonic()
        try:
            self._run(run, claim)
        except claims.LostClaim as lost:
            logger.warning("%s", lost)
            report("lost")
            return None
        except Exception as error:
            state = _record_failure(run, error, self._retry_after(error, claim.attempt))
            report(state or "not recorded")
            seconds = time.monotonic() - began
            logger.exception(
                "job attempt failed after %.3f s: %s", seconds, state or "not recorded"
            )
            raise
        report(run.state or "not recorded")
        logger.info("job %s after %.3f s", run.state, time.monotonic() - began)
        return run.state

    def _run(self, run: Run, claim: claims.Claim) -> None:
        try:
            args = self.args_type.from_row(claim.args)
        except ValidationError as error:
            with run.unit_of_work() as session:
                reason = f"its arguments are no longer valid: {_summarise(error)}"
                run.finish(session, Discard(reason))
            return
        if self.own_transactions:
            outcome = self.body(args, run)
            if run.state is None:
                with run.unit_of_work() as session:
                    run.finish(session, outcome, last=True)
            return
        with run.unit_of_work() as session:
            run.session = session
            run.finish(session, self.body(session, args, run), last=True)

    def _retry_after(self, error: Exception, attempt: int) -> timedelta | None:
        if isinstance(error, PermanentError):
            return None
        return self.args_type.policy.backoff.delay(attempt)


def job(args_type: type[Args], *, own_transactions: bool = False) -> Callable[[Body], LedgerTask]:
    """Make a function the body of the jobs of one kind.

    The body is `(session, args, run) -> Outcome`. What it writes in `session` and the job's end are
    one commit; it must not commit itself. With `own_transactions`, for an effect outside the
    database, the body is `(args, run) -> Outcome`: it opens `run.unit_of_work()` as often as it
    needs, and may write its end in the last one with `run.finish(session, outcome)`.
    """

    def register(body: Body) -> LedgerTask:
        policy = args_type.policy
        soft = policy.soft_time_limit

        def entry(task: LedgerTask, **named: Any) -> None:
            for job_id in messages.read_job_ids(named, task.request.id):
                _perform_for_celery(task, job_id)

        entry.__doc__ = body.__doc__
        entry.__module__ = body.__module__
        # Shared: a module of bodies does not import an app, and every app of the process runs them.
        task: LedgerTask = shared_task(
            entry,
            bind=True,
            base=LedgerTask,
            name=policy.kind,
            time_limit=policy.time_limit.total_seconds(),
            soft_time_limit=soft.total_seconds() if soft else None,
            typing=False,  # the message's arguments are for display; the row's are validated
            args_type=args_type,
            body=staticmethod(body),
            own_transactions=own_transactions,
        )
        return task

    return register


class AttemptFailed(Exception):
    """An attempt failed, and the ledger holds why. Celery learns no more than this message."""


def _perform_for_celery(task: LedgerTask, job_id: UUID) -> None:
    """Run a job. Whatever its body raises, Celery gets a short AttemptFailed.

    Celery would log an error of 100 MB and send it to the parent, and end the process after a
    SystemExit of a body.
    """
    with job_context(task.name, str(job_id)):
        try:
            task.perform(job_id)
        except BaseException as error:
            if terminate_handler_fired():
                raise  # the worker ends this process
            described = claims.describe(error)
            # `from None`: the cause would be pickled too.
            raise AttemptFailed(f"{described['type']}: {described['message']}") from None


def _record_failure(run: Run, error: Exception, retry_after: timedelta | None) -> JobState | None:
    """Record a failed attempt, and wait DATABASE_PATIENCE for a database that is away.

    Return the job's state, or None when nothing was recorded.
    """
    give_up = time.monotonic() + DATABASE_PATIENCE.total_seconds()
    while True:
        try:
            with run.unit_of_work() as session:
                return run.fail(session, error, retry_after=retry_after)
        except claims.LostClaim:
            # The commit succeeded and only its answer was lost, or the job was cancelled: the
            # ledger is right as it is.
            return None
        except SQLAlchemyError:
            if time.monotonic() > give_up:
                # The row stays "running". A keeper releases it after its time limit.
                return None
            time.sleep(0.5)


def _summarise(error: ValidationError) -> str:
    found = error.errors(include_input=False)
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)


def run_here(app: App, job_id: UUID, kind: str) -> None:
    """Run one job in this process, as a worker would.

    What its body raises is recorded and logged, and not raised. A job of an unknown kind stays as
    it is.
    """
    app.loader.import_default_modules()
    if kind not in app.tasks:
        return
    with job_context(kind, str(job_id)):
        try:
            app.tasks[kind].perform(job_id)
        except Exception:  # noqa: BLE001 - `perform` has recorded it
            return


@contextmanager
def working_here(app: App) -> Iterator[None]:
    """Record heartbeats for a process that calls `run_here`, as a keeper does for a worker.

    Without them a keeper would release its jobs as a dead worker's. At the end, a job that was
    interrupted is released.
    """
    ended = threading.Event()
    name = f"here@{socket.gethostname()}"
    runtime, worker_id = app.runtime, app.worker_id

    def beat() -> None:
        while not ended.is_set():
            with suppress(SQLAlchemyError), runtime.unit_of_work() as session:
                rescue.record_heartbeat(session, worker_id, name=name, queues="", pid=os.getpid())
            ended.wait(runtime.settings.heartbeat_interval.total_seconds())

    # A thread is safe here: this process does not fork.
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with runtime.unit_of_work() as session:
            # After Ctrl-C in the middle of a job: where no worker runs, no keeper would release it.
            rescue.release_worker(session, worker_id)
            rescue.mark_stopped(session, worker_id)
