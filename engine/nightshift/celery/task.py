"""`@job`: how every job runs.

A message only names a row. The task claims the row, validates its arguments, calls the body, and
writes the job's end in the commit of the body's effect. After a PermanentError the job ends; after
any other error it is tried again with the kind's backoff. Celery's own retry is never used: it
publishes with an ETA, which Redis delivers more than once.
"""

import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
from billiard.common import terminate_handler_fired
from celery import Task, shared_task
from pydantic import ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import (
    InterfaceError,
    InternalError,
    InvalidRequestError,
    MultipleResultsFound,
    NoResultFound,
    OperationalError,
    SQLAlchemyError,
)

from nightshift.celery import messages, telemetry
from nightshift.celery.app import App
from nightshift.celery.link import Word
from nightshift.celery.logs import job_context
from nightshift.celery.steps import tell_keeper
from nightshift.errors import PermanentError, first_line
from nightshift.jobs import claims, limits, rescue
from nightshift.jobs.args import JobArgs
from nightshift.jobs.bundles import Bundle
from nightshift.jobs.models import JobState
from nightshift.jobs.run import Discard, Run, UnitOfWork
from nightshift.jobs.session import BrokenTransaction, get_carried
from nightshift.runtime import Runtime

logger = logging.getLogger(__name__)

Args = TypeVar("Args", bound=JobArgs)
Body = Callable[..., Any]

# How long the worker waits for a database that is away, to write a job's failure.
DATABASE_PATIENCE = timedelta(seconds=30)
DATABASE_PAUSE = 0.5

# Seconds that jobs which run together may hold their transaction before it is committed. And the
# seconds after which one job is slow: those behind it are left to other processes.
SLICE = 0.05
SLOW = 0.1

# What may be due to the jobs that run together, also where a body uses the driver's connection. Not
# what a query's result is about.
SHARED_ERRORS = (
    InterfaceError,
    InternalError,
    InvalidRequestError,
    OperationalError,
    psycopg.InterfaceError,
    psycopg.InternalError,
    psycopg.OperationalError,
    sqlite3.OperationalError,
)
NOT_SHARED_ERRORS = (MultipleResultsFound, NoResultFound)


class LedgerTask(Task):
    """A task whose messages name rows of the ledger."""

    abstract = True
    args_type: type[JobArgs]
    body: Body
    own_transactions: bool
    # How many jobs may run in one transaction.
    bundle: int

    def perform(self, job_id: UUID, *, unlimited: bool = False) -> JobState | None:
        """Run the job if it can be claimed. Return its state, or None without a claim.

        `unlimited` as in `claims.claim`. Raises what the body raised, after it is recorded in the
        ledger.
        """
        held = self._claim([job_id], unlimited=unlimited)
        if not held:
            logger.debug("nothing to claim")
            return None
        return self._perform_claimed(held[0])

    def perform_together(self, job_ids: Sequence[UUID]) -> None:
        """Run those of the jobs that can be claimed, in one transaction where that is possible.

        Each of them ends, or runs again alone and without a charge: after a slow job, and after an
        error that need not be its own. Raises AttemptFailed when one has failed.
        """
        began = time.monotonic()
        held = self._claim(job_ids, unlimited=False)
        if len(held) == 1:
            with job_context(self.name, str(held[0].job_id)):
                self._perform_claimed(held[0])
        elif held:
            Together(self, held, began).perform()

    def _perform_claimed(self, claim: claims.Claim) -> JobState | None:
        with self.run_span(claim) as report:
            return self._perform(claim, self.app.runtime, report)

    def run_span(self, claim: claims.Claim) -> AbstractContextManager[Callable[[str], None]]:
        """Return the span of a run, as `telemetry.run_span`."""
        service = self.app.runtime.settings.project_name
        return telemetry.run_span(claim, queue=self.args_type.policy.queue, service=service)

    def _claim(self, job_ids: Sequence[UUID], *, unlimited: bool) -> list[claims.Claim]:
        """Claim jobs, and ask again while the database gives no answer.

        A claim that was made without an answer would leave a running job without a runner.
        """
        claim_id, asked_before = uuid4(), False
        limit = self.args_type.policy.time_limit
        give_up = time.monotonic() + min(DATABASE_PATIENCE, limit / 2).total_seconds()
        while True:
            try:
                with self._claiming() as connection:
                    held = self._claim_once(connection, job_ids, claim_id, unlimited)
                    # In this order: the claim waits for one that is still being executed.
                    if asked_before:
                        held = claims.find_claims(connection, job_ids, claim_id)
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
                return held

    def _claim_once(
        self, connection: Connection, job_ids: Sequence[UUID], claim_id: UUID, unlimited: bool
    ) -> list[claims.Claim]:
        policy = self.args_type.policy
        held = claims.claim(
            connection,
            job_ids,
            claim_id=claim_id,
            kind=policy.kind,
            worker_id=self.app.worker_id,
            pid=os.getpid(),
            unlimited=unlimited,
        )
        for claim in held if policy.rate is not None else ():
            limits.record_start(connection, claim.job_id, policy.kind, at=claim.started_at)
        return held

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
            self.run_body(run, claim, run.unit_of_work)
        except claims.LostClaim as lost:
            logger.warning("%s", lost)
            # Where the claim is ours after all, the job would have no runner.
            tell_keeper(self.app, Word.UNENDED, claim.claim_id)
            self._note_return(claim)
            report("lost")
            return None
        except BaseException as error:
            # Also SystemExit and the like: the body ends with its attempt, not with its process.
            if self.ends_process(error):
                raise
            found = claims.describe(error)
            state = self._record_failure(run, found, self.retry_after(error, claim.attempt))
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

    def run_body(self, run: Run, claim: claims.Claim, unit_of_work: UnitOfWork) -> None:
        """Call the body and write the job's end, in a transaction of `unit_of_work`."""
        try:
            args = self.args_type.from_row(claim.args)
        except ValidationError as error:
            with unit_of_work() as session:
                reason = f"its arguments are no longer valid: {_summarise(error)}"
                run.finish(session, Discard(reason), last=True)
            return
        if self.own_transactions:
            outcome = self.body(args, run)
            if run.state is None:
                with run.unit_of_work() as session:
                    run.finish(session, outcome, last=True)
            return
        with unit_of_work() as session:
            run.session = session
            run.finish(session, self.body(session, args, run), last=True)

    def ends_process(self, error: BaseException) -> bool:
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

    def retry_after(self, error: BaseException, attempt: int) -> timedelta | None:
        if isinstance(error, PermanentError):
            return None
        return self.args_type.policy.backoff.delay(attempt)


class Together:
    """One run of several jobs under one claim."""

    def __init__(self, task: LedgerTask, held: list[claims.Claim], began: float) -> None:
        self.task = task
        self.runtime: Runtime = task.app.runtime
        self.held = held
        # When the message came: the message's time limit counts from there.
        self._began = began
        self._claim_id = held[0].claim_id
        # What is logged once it is committed: the job's id, the line, and the body's error.
        self._lines: list[tuple[UUID, str, BaseException | None]] = []
        self._failed = 0
        self._lost = False

    def perform(self) -> None:
        """Run the jobs."""
        try:
            with self.runtime.bundle(self.held[0].started_at) as bundle:
                self._run_all(bundle)
            if self._lost:
                # Where a claim is ours after all, its job would have no runner.
                self._give_back()
        except BaseException as error:
            if self.task.ends_process(error):
                raise
            logger.warning("jobs run again, one by one: %s", first_line(error))
            self._give_back()
        if self._failed:
            raise AttemptFailed(f"{self._failed} of {len(self.held)} jobs") from None

    def _run_all(self, bundle: Bundle) -> None:
        committed = time.monotonic()
        for claim in self.held:
            started = time.monotonic()
            with job_context(self.task.name, str(claim.job_id)):
                goes_on = self._run(bundle, replace(claim, started_at=bundle.now()))
            now = time.monotonic()
            goes_on &= now - started < SLOW
            stops = not goes_on or now - self._began >= messages.BUNDLE_SECONDS
            last = claim is self.held[-1]
            if last or stops or now - committed >= SLICE or bundle.is_marked:
                self._commit(bundle, give_back=stops, alone=not goes_on)
                committed = time.monotonic()
            if stops:
                return

    def _run(self, bundle: Bundle, claim: claims.Claim) -> bool:
        """Run one job. Return False when it, or the next one, has to run alone."""
        run = Run(claim, self.runtime)
        logger.info("job started, attempt %d of %d", claim.attempt, claim.max_attempts)
        began = time.monotonic()
        try:
            with self.task.run_span(claim) as report:
                self.task.run_body(run, claim, bundle.unit_of_work)
                report(run.state or "not recorded")
        except claims.LostClaim as lost:
            logger.warning("%s", lost)
            self._lost = True
        except BaseException as error:
            if self.task.ends_process(error) or bundle.is_lost:
                raise
            if _is_shared(error):
                logger.warning("the job runs again, alone: %s", first_line(error))
                return False
            retry_after = self.task.retry_after(error, claim.attempt)
            with bundle.unit_of_work() as session:
                state = run.fail(session, claims.describe(error), retry_after=retry_after)
            line = f"job attempt failed after {time.monotonic() - began:.3f} s: {state}"
            self._lines.append((claim.job_id, line, error))
        else:
            if bundle.is_lost:
                raise BrokenTransaction
            line = f"job {run.state} after {time.monotonic() - began:.3f} s"
            self._lines.append((claim.job_id, line, None))
        return not terminate_handler_fired()

    def _commit(self, bundle: Bundle, *, give_back: bool, alone: bool) -> None:
        ids = bundle.commit(give_back=self._claim_id if give_back else None, alone=alone)
        for job_id, line, error in self._lines:
            with job_context(self.task.name, str(job_id)):
                logger.log(logging.ERROR if error else logging.INFO, "%s", line, exc_info=error)
            self._failed += error is not None
        self._lines.clear()
        self.runtime.send_soon(ids)

    def _give_back(self) -> None:
        """Let the jobs that have not ended run alone, and wait for a database that is away."""
        give_up = time.monotonic() + DATABASE_PATIENCE.total_seconds()
        while True:
            try:
                with self.runtime.unit_of_work() as session:
                    back = claims.undo_claims(session, [self._claim_id])
                    get_carried(session).enqueued.extend(back)
                    for claim in self.held:
                        claims.note_return(session.connection(), claim)
            except SQLAlchemyError:
                if time.monotonic() > give_up:
                    tell_keeper(self.task.app, Word.UNENDED, self._claim_id)
                    return
                time.sleep(DATABASE_PAUSE)
            else:
                return


def _is_shared(error: BaseException) -> bool:
    """Whether an error may be due to the jobs that run together: locks and timeouts are shared.

    And the transaction is: it has begun, so a body cannot choose its isolation level.
    """
    # An error may be its own cause: `raise error from error`.
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and not any(found is one for one in seen):
        if isinstance(found, SHARED_ERRORS) and not isinstance(found, NOT_SHARED_ERRORS):
            return True
        seen.append(found)
        found = found.__cause__ or found.__context__
    return False


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
            job_ids = messages.read_job_ids(named, task.request.id)
            for ids in [job_ids] if task.bundle > 1 else [[job_id] for job_id in job_ids]:
                _perform_for_celery(task, ids)

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
            bundle=1 if own_transactions else policy.bundled,
        )
        return task

    return register


class AttemptFailed(Exception):
    """An attempt failed, and the ledger holds why. Celery learns no more than this message."""


def _perform_for_celery(task: LedgerTask, job_ids: Sequence[UUID]) -> None:
    """Run jobs. Whatever their bodies raise, Celery gets a short AttemptFailed.

    Celery would log an error of 100 MB and send it to the parent, and end the process after a
    SystemExit of a body.
    """
    with job_context(task.name, str(job_ids[0])):
        try:
            if len(job_ids) > 1:
                task.perform_together(job_ids)
            else:
                task.perform(job_ids[0])
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
