"""`@job`: the one way in which a job runs. Claim, read and validate, call the body, write the finish with the effect, in one commit.

A message only names a row. What the body raises decides what becomes of the job: a PermanentError ends it, anything else is tried again
with the kind's backoff. Celery's own retry is never used: it publishes with an ETA, which Redis delivers more than once.
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
from uuid import UUID, uuid4

from celery import Task
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from project import telemetry
from project.bootstrap import Bootstrap, bootstrap
from project.celery import app
from project.logs import job_context
from project.steps import worker_id
from services.errors import PermanentError
from services.jobs import claims, rescue
from services.jobs.args import JobArgs
from services.jobs.models import JobState
from services.jobs.run import Discard, Run

logger = logging.getLogger(__name__)

Args = TypeVar("Args", bound=JobArgs)
Body = Callable[..., Any]

# A database that is being restarted is waited for so long with what a job has to tell it.
DATABASE_PATIENCE = timedelta(seconds=30)


class LedgerTask(Task):
    """A task whose messages name rows of the ledger."""

    abstract = True
    args_type: type[JobArgs]
    body: Body
    own_transactions: bool

    def perform(self, job_id: UUID, boot: Bootstrap, *, worker: UUID) -> JobState | None:
        """Run the job if it can be claimed. Return its state, or None when there was nothing to claim.

        Raises what the body raised, after the ledger has it.
        """
        with boot.at_once() as connection:
            claim = claims.claim(connection, job_id, worker_id=worker, pid=os.getpid())
        if claim is None:
            logger.debug("nothing to claim")
            return None
        with telemetry.run_span(claim, queue=self.args_type.policy.queue) as ended:
            return self._perform(claim, boot, ended)

    def _perform(self, claim: claims.Claim, boot: Bootstrap, ended: Callable[[str], None]) -> JobState | None:
        run = Run(claim, boot.unit_of_work, boot.read_only)
        logger.info("job started, attempt %d of %d", claim.attempt, claim.max_attempts)
        began = time.monotonic()
        try:
            self._run(run, claim, boot)
        except claims.LostClaim as lost:
            logger.warning("%s", lost)
            ended("lost")
            return None
        except Exception as error:
            state = _record_failure(run, error, boot, self._retry_after(error, claim.attempt))
            ended(state or "not recorded")
            logger.exception("job attempt failed after %.3f s: %s", time.monotonic() - began, state or "not recorded")
            raise
        ended(run.state or "not recorded")
        logger.info("job %s after %.3f s", run.state, time.monotonic() - began)
        return run.state

    def _run(self, run: Run, claim: claims.Claim, boot: Bootstrap) -> None:
        try:
            args = self.args_type.from_row(claim.args)
        except ValidationError as error:
            with boot.unit_of_work() as session:
                run.finish(session, Discard(f"its arguments are no longer valid: {_summary(error)}"))
            return
        if self.own_transactions:
            outcome = self.body(args, run)
            if run.state is None:
                with boot.unit_of_work() as session:
                    run.finish(session, outcome, last=True)
            return
        with boot.unit_of_work() as session:
            run.session = session
            run.finish(session, self.body(session, args, run), last=True)

    def _retry_after(self, error: Exception, attempt: int) -> timedelta | None:
        return None if isinstance(error, PermanentError) else self.args_type.policy.backoff.delay(attempt)


def job(args_type: type[Args], *, own_transactions: bool = False) -> Callable[[Body], LedgerTask]:
    """Make a function the body of the jobs of one kind.

    The body is `(session, args, run) -> Outcome`: what it does in `session` and the job's finish are one commit. With
    `own_transactions` it is `(args, run) -> Outcome`, for an effect outside the database: it opens `run.unit_of_work()` as it
    needs and ends the last one with `run.finish(session, outcome)`.
    """

    def register(body: Body) -> LedgerTask:
        policy = args_type.policy
        soft = policy.soft_time_limit

        def entry(task: LedgerTask, **_display: Any) -> None:
            job_id = UUID(task.request.id)
            with job_context(policy.kind, str(job_id)):
                task.perform(job_id, bootstrap(), worker=worker_id())

        entry.__doc__ = body.__doc__
        entry.__module__ = body.__module__
        task: LedgerTask = app.task(
            entry,
            bind=True,
            base=LedgerTask,
            name=policy.kind,
            time_limit=policy.time_limit.total_seconds(),
            soft_time_limit=soft.total_seconds() if soft else None,
            typing=False,  # the message's arguments are for people; the row's are validated
            args_type=args_type,
            body=staticmethod(body),
            own_transactions=own_transactions,
        )
        return task

    return register


def _record_failure(run: Run, error: Exception, boot: Bootstrap, retry_after: timedelta | None) -> JobState | None:
    """Write the failure; a database that is away is waited for. Return None when somebody else decides about the job now."""
    give_up = time.monotonic() + DATABASE_PATIENCE.total_seconds()
    while True:
        try:
            with boot.unit_of_work() as session:
                return run.fail(session, error, retry_after=retry_after)
        except claims.LostClaim:
            # The commit had arrived and only its answer was lost, or the job was cancelled: the ledger is right as it is.
            return None
        except SQLAlchemyError:
            if time.monotonic() > give_up:
                # The row stays "running" beyond its time limit, which the keeper notices.
                return None
            time.sleep(0.5)


def _summary(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False))


def run_here(job_id: UUID, kind: str, boot: Bootstrap) -> None:
    """Run one job in this process, as a worker would; what its body raises is in the ledger and the log.

    A job whose kind is not known here is left as it is.
    """
    app.loader.import_default_modules()
    if kind not in app.tasks:
        return
    task = app.tasks[kind]
    with job_context(kind, str(job_id)):
        try:
            task.perform(job_id, boot, worker=_HERE)
        except Exception:  # noqa: BLE001 - recorded, and decided about, by `perform`
            return


_HERE = uuid4()


@contextmanager
def working_here(boot: Bootstrap) -> Iterator[None]:
    """Give this process, which calls `run_here`, the signs of life that a worker's keeper gives: else its jobs are taken for lost."""
    ended = threading.Event()

    def live() -> None:
        while not ended.is_set():
            with suppress(SQLAlchemyError), boot.unit_of_work() as session:
                rescue.heartbeat(session, _HERE, name=f"here@{socket.gethostname()}", queues="", pid=os.getpid())
            ended.wait(boot.settings.heartbeat_interval.total_seconds())

    # A thread is safe where nothing forks.
    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with boot.unit_of_work() as session:
            # Ctrl-C in the middle of a job: where no worker runs, nobody else would free it.
            rescue.free_worker(session, _HERE)
            rescue.stopped(session, _HERE)


__all__ = ["LedgerTask", "job", "run_here", "working_here"]
