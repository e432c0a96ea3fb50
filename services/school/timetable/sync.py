"""Bring the timetable of a source into the school: read, compare, write, and record the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from nightshift.database import Session, read_clock
from nightshift.errors import ServiceError, first_line
from nightshift.jobs import Discard, Outcome, Run
from nightshift.jobs.run import UnitOfWork
from sqlalchemy import delete, func, select, text

from services.school.timetable.comparing import compare
from services.school.timetable.models import State as Ended, TimetableRun
from services.school.timetable.plan import Plan
from services.school.timetable.source import Question, Source, Timetable
from services.school.timetable.state import ask, read_state
from services.school.timetable.writing import write

# On Postgres, one transaction at a time brings a timetable in. SQLite has one writer.
LOCK = 0x74696D65

# The lines of a report that a record keeps, and how long it is kept.
MOST_LINES = 500
RUNS_KEPT = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of an installation by their names, and the school's clock."""

    by_name: dict[str, Source]
    zone: ZoneInfo


class Result(NamedTuple):
    """How a sync ended. `plan` is what it did; or, where it changed nothing, what it would do."""

    state: Ended
    plan: Plan


class Transactions(Protocol):
    """What opens transactions: a runtime, or the run of a job."""

    @property
    def unit_of_work(self) -> UnitOfWork:
        """Open a transaction."""

    @property
    def read_only(self) -> UnitOfWork:
        """Open a transaction that only reads."""


def sync(
    where: Transactions,
    sources: Sources,
    name: str,
    *,
    now: datetime,
    accept: bool = False,
    dry_run: bool = False,
) -> Result:
    """Bring what a source says into the school, in one transaction, and record that.

    Nothing is changed when the source is empty, or when too many rows would go: `accept` is a
    person's consent to that. `dry_run` writes nothing at all. A second run of an unchanged source
    writes only its record. A killed run has changed nothing.

    Raises:
        ServiceError: The source does not answer, or what it says cannot be read. That is recorded.

    """
    with where.read_only() as session:
        started_at = read_clock(session)
        question = ask(session, now.astimezone(sources.zone).date())
    try:
        timetable = sources.by_name[name].read(question)
    except Exception as error:
        if not dry_run:
            with where.unit_of_work() as session:
                _record(session, Plan(name), Ended.FAILED, started_at, error=_explain(error))
        raise
    if dry_run:
        with where.read_only() as session:
            plan, _ = _make_plan(session, name, timetable, question)
        return Result(_judge(plan, accept=accept), plan)
    with where.unit_of_work() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        plan, terms = _make_plan(session, name, timetable, question)
        state = _judge(plan, accept=accept)
        if state is Ended.APPLIED:
            write(session, plan, terms)
        _record(session, plan, state, started_at, error=plan.refusal or None)
    return Result(state, plan)


def run_job(run: Run, sources: Sources, name: str) -> Outcome:
    """Sync with a source as a job does; return what its result says.

    A refusal is a result, and not a failure: another attempt would be refused, too.
    """
    if name not in sources.by_name:
        return Discard(f"{name} is no source any more")
    state, plan = sync(run, sources, name, now=run.now)
    return {"state": state.value, "counts": plan.counts, "refusal": plan.refusal}


def _make_plan(
    session: Session, name: str, timetable: Timetable, question: Question
) -> tuple[Plan, dict[str, int]]:
    keys = [lesson.id for lesson in timetable.lessons]
    teachers = {teacher.id for teacher in timetable.teachers or ()}
    if timetable.teachers is None:
        teachers = {one for lesson in timetable.lessons for one in lesson.teachers}
        teachers |= {one for change in timetable.changes or () for one in change.teachers or ()}
    state = read_state(session, question, keys, teachers)
    return compare(name, timetable, question, state), state.terms


def _judge(plan: Plan, *, accept: bool) -> Ended:
    if plan.refusal and not accept:
        return Ended.REFUSED
    return Ended.UNCHANGED if plan.is_empty else Ended.APPLIED


def _explain(error: Exception) -> str:
    """Return what a person is told. Other errors than a service's may hold secrets."""
    return first_line(error) if isinstance(error, ServiceError) else type(error).__name__


def _record(
    session: Session, plan: Plan, state: Ended, started_at: datetime, *, error: str | None
) -> None:
    session.execute(delete(TimetableRun).where(TimetableRun.started_at < started_at - RUNS_KEPT))
    session.add(
        TimetableRun(
            source=plan.source,
            started_at=started_at,
            finished_at=read_clock(session),
            state=state,
            counts=plan.counts,
            report=plan.to_json()[:MOST_LINES],
            error=error,
        )
    )
    session.flush()


def find_last_run(session: Session, source: str) -> TimetableRun | None:
    """Return the newest run of a source, however it ended."""
    newest = (
        select(TimetableRun)
        .where(TimetableRun.source == source)
        .order_by(TimetableRun.started_at.desc())
    )
    return session.scalar(newest.limit(1))


def find_last_good(session: Session, source: str) -> datetime | None:
    """Return when the last run ended that brought the school to what the source said."""
    good = TimetableRun.state.in_((Ended.APPLIED, Ended.UNCHANGED))
    newest = select(func.max(TimetableRun.finished_at)).where(TimetableRun.source == source, good)
    return session.scalar(newest)


def list_runs(session: Session, *, limit: int) -> Sequence[dict[str, Any]]:
    """Return the newest runs, the newest first."""
    newest = select(TimetableRun).order_by(TimetableRun.started_at.desc()).limit(limit)
    return [
        {
            "id": run.id,
            "source": run.source,
            "started_at": run.started_at,
            "finished_at": run.finished_at,
            "state": run.state.value,
            "counts": run.counts,
            "error": run.error,
        }
        for run in session.scalars(newest)
    ]
