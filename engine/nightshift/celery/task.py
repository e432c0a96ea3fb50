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
from uuid import UUID, uuid4

from billiard.common import terminate_handler_fired
from celery import Task, shared_task
from pydantic import ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from nightshift.celery import messages, telemetry
from nightshift.celery.app import App
from nightshift.celery.link import Word
from nightshift.celery.logs import job_context
from nightshift.celery.steps import tell_keeper
from nightshift.errors import PermanentError
from nightshift.jobs import claims, limits, rescue
from nightshift.jobs.args import JobArgs
from nightshift.jobs.models import JobState
from nightshift.jobs.run import Discard, Run
from nightshift.runtime import Runtime

logger = logging.getLogger(__name__)

Args = TypeVar("Args", bound=JobArgs)
Body = Callable[..., Any]

# How long the worker waits for a database that is away, to write a job's failure.
DATABASE_PATIENCE = timedelta(seconds=30)
DATABASE_PAUSE = 0.5


class LedgerTask(Task):
    """A task whose messages name rows of the ledger."""

    abstract = True
    args_type: type[JobArgs]
    body: Body
    own_transactions: bool

    def perform(self, job_id: UUID, *, unlimited: bool = False) -> JobState | None:
        """Run the job if it can be claimed. Return its state, or None without a claim.

        `unlimited` as in `claims.claim`. Raises what the body raised, after it is recorded in the
        ledger.
        """
        claim = self._claim(job_id, unlimited=unlimited)
        if claim is None:
            logger.debug("nothing to claim")
            return None
        runtime, queue = self.app.runtime, self.args_type.policy.queue
        service = runtime.settings.project_name
        with telemetry.run_span(claim, queue=queue, service=service) as report:
            return self._perform(claim, runtime, report)

    def _claim(self, job_id: UUID, *, unlimited: bool) -> claims.Claim | None:
        """Claim a job, and ask again while the database gives no answer.

        A claim that was made without an answer would leave a running job without a runner.
        """
        claim_id, asked_before = uuid4(), False
        limit = self.args_type.policy.time_limit
        give_up = time.monotonic() + min(DATABASE_PATIENCE, limit / 2).total_seconds()
        while True:
            try:
                with self._claiming() as connection:
                    claim = self._claim_once(connection, job_id, claim_id, unlimited)
                    # In this order: the claim waits for one that is still being executed.
                    if claim is None and asked_before:
                        claim = claims.find_claim(connection, job_id, claim_id)
            except BaseException as error:
                away = isinstance(error, OperationalError | InterfaceError)
                if not away or time.monotonic() > give_up:
                    tell_keeper(self.app, Word.UNSTARTED, claim_id)
                    raise
                tell_keeper(self.app, Word.UNSURE, claim_id)
                asked_before = True
                time.sleep(DATABASE_PAUSE)
            else:
                if asked_before:
                    tell_keeper(self.app, Word.SURE, claim_id)
                return claim

    def _claim_once(
        self, connection: Connection, job_id: UUID, claim_id: UUID, unlimited: bool
    ) -> claims.Claim | None:
        policy = self.args_type.policy
        claim = claims.claim(
            connection,
            job_id,
            claim_id=claim_id,
            kind=policy.kind,
            worker_id=self.app.worker_id,
            pid=os.getpid(),
            unlimited=unlimited,
        )
        if claim is not None and policy.rate is not None:
            limits.record_start(connection, job_id, policy.kind, at=claim.started_at)
        return claim

    @contextmanager
    def _claiming(self) -> Iterator[Connection]:
        """Yield a connection for the statements of a claim; for most kinds there is only one."""
        if self.args_type.policy.rate is None:
            with self.app.runtime.single_statement() as connection:
                yield connection
        else:
            with self.app.runtime.unit_of_work() as session:
                yield session.connection()

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
            # Where the claim is ours after all, the job would have no runner.
            tell_keeper(self.app, Word.UNENDED, claim.claim_id)
            self._note_return(claim)
            report("lost")
            return None
        except BaseException as error:
            # Also SystemExit and the like: the body ends with its attempt, not with its process.
            if self._ends_process(error):
                raise
            found = claims.describe(error)
            state = self._record_failure(run, found, self._retry_after(error, claim.attempt))
            if state is None:
                self._note_return(claim)
            report(state or "not recorded")
            seconds = time.monotonic() - began
            logger.exception(
                "job attempt failed after %.3f s: %s", seconds, state or "not recorded"
            )
            raise
        report(run.state or "not recorded")
        logger.info("job %s after %.3f s", run.state, time.monotonic() - began)
        return run.state

    def _note_return(self, claim: claims.Claim) -> None:
        # Where this fails, a retry of a cancelled job waits until the time limit has passed.
        with suppress(SQLAlchemyError), self.app.runtime.single_statement() as connection:
            claims.note_return(connection, claim)

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

    def _ends_process(self, error: BaseException) -> bool:
        """Whether an exception is a signal's, and not the body's. The job is then released."""
        # SIGTERM in a child of the pool: the time limit has passed, or the task was revoked. Ctrl-C
        # in a command that runs jobs by itself: a worker's child ignores it.
        if isinstance(error, SystemExit):
            return bool(terminate_handler_fired())
        return isinstance(error, KeyboardInterrupt) and self.app.keeper is None

    def _record_failure(
        self, run: Run, error: dict[str, str], retry_after: timedelta | None
    ) -> JobState | None:
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
            except BaseException as another:
                # A soft time limit may also come here.
                away = isinstance(another, SQLAlchemyError)
                if not away or time.monotonic() > give_up:
                    # The keeper lives longer than this job's time limit.
                    tell_keeper(self.app, Word.UNENDED, run.claim_id)
                    if not away:
                        raise
                    return None
                time.sleep(DATABASE_PAUSE)

    def _retry_after(self, error: BaseException, attempt: int) -> timedelta | None:
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
        except BaseException as error:  # noqa: BLE001 - `perform` has recorded it
            described = claims.describe(error)
            # `from None`: the cause would be pickled too.
            raise AttemptFailed(f"{described['type']}: {described['message']}") from None
        finally:
            if terminate_handler_fired():
                # Also when the body has caught what the signal raised: a child that was told to
                # end must not run another job.
                raise SystemExit


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
            app.tasks[kind].perform(job_id, unlimited=True)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - `perform` has recorded it
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
    judge = rescue.Judge(worker_id, runtime.settings.worker_silent_after)

    def record() -> None:
        with runtime.unit_of_work() as session:
            rescue.record_heartbeat(session, judge, name=name, queues="", pid=os.getpid())

    def beat() -> None:
        while not ended.wait(runtime.settings.heartbeat_interval.total_seconds()):
            with suppress(SQLAlchemyError):
                record()

    record()
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
