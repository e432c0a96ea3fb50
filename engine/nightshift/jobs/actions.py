"""What people do at the desk: keep a record of it, and do it to many jobs, some at a time.

An action on many jobs is a job of the ledger. Each chunk is one transaction, in which also the
record says how far it is: a worker that dies repeats nothing.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from sqlalchemy import select

from nightshift.database import Session, read_clock
from nightshift.errors import InvalidInput, NotFound
from nightshift.jobs import care
from nightshift.jobs.args import UNSTORABLE, Kinds
from nightshift.jobs.enqueue import enqueue
from nightshift.jobs.jobs import ActOnJobs
from nightshift.jobs.models import Action, Job, JobState
from nightshift.jobs.run import Outcome, Run, Snooze
from nightshift.jobs.search import Cursor, Filter, find_page

# Jobs that one transaction changes, and seconds after which the job lets others run.
CHUNK = 200
SLICE = 20.0

LONGEST_SUBJECT = 300

Change = Callable[..., tuple[list[UUID], Counter[str]]]


class Verb(NamedTuple):
    """Something that may be done to jobs. `past`: what the jobs then are."""

    name: str
    label: str
    past: str
    change: Change
    # The order in which no changed job comes again: its time becomes now.
    oldest_first: bool = False


def _plainly(change: Callable[[Session, list[UUID]], list[UUID]]) -> Change:
    def call(
        session: Session, ids: list[UUID], *, kinds: Kinds, now: datetime
    ) -> tuple[list[UUID], Counter[str]]:
        return change(session, ids), Counter()

    return call


VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("retry", "Retry", "scheduled again", care.retry_each),
        Verb("cancel", "Cancel", "cancelled", _plainly(care.cancel)),
        Verb("hold", "Hold", "held", _plainly(care.hold)),
        Verb("release", "Release", "released", _plainly(care.release)),
        Verb("run-now", "Run now", "due now", _plainly(care.run_now), oldest_first=True),
    )
}

# What each state allows.
ALLOWED: Mapping[JobState, tuple[str, ...]] = {
    JobState.SCHEDULED: ("run-now", "hold", "cancel"),
    JobState.QUEUED: ("hold", "cancel"),
    JobState.RUNNING: ("cancel",),
    JobState.WAITING: ("cancel",),
    JobState.HELD: ("release", "cancel"),
    JobState.SUCCEEDED: ("retry",),
    JobState.FAILED: ("retry",),
    JobState.DISCARDED: ("retry",),
    JobState.CANCELLED: ("retry",),
}


def find_verb(name: str) -> Verb:
    """Return the verb of this name. Raises InvalidInput when there is none."""
    if name not in VERBS:
        raise InvalidInput(f"jobs cannot be {name!r}; they can be: {', '.join(VERBS)}")
    return VERBS[name]


def record(
    session: Session,
    by: str,
    verb: str,
    subject: str,
    *,
    now: datetime,
    done: int = 1,
    skipped: Mapping[str, int] | None = None,
) -> int:
    """Keep that a person did something, in the transaction that does it; return the record's id."""
    action = Action(
        at=now, by=by, verb=verb, subject=subject[:LONGEST_SUBJECT], done=done,
        skipped=dict(skipped or {}), ended_at=now,
    )  # fmt: skip
    session.add(action)
    session.flush()
    return action.id


def act_on_job(
    session: Session, by: str, verb: Verb, job_id: UUID, *, kinds: Kinds, now: datetime
) -> str:
    """Do it to one job, keep that, and return what happened, as a sentence."""
    kind, state = session.execute(
        select(Job.kind, Job.state).where(Job.id == job_id)
    ).one_or_none() or (None, None)
    if kind is None:
        raise NotFound(f"there is no job {job_id}")
    done, skipped = verb.change(session, [job_id], kinds=kinds, now=now)
    changed = job_id in done
    if not changed and not skipped:
        newest = session.execute(select(Job.state).where(Job.id == job_id)).scalar()
        skipped[f"it is {newest or state}"] += 1
    subject = f"job {job_id} ({kind})"
    record(session, by, verb.name, subject, now=now, done=int(changed), skipped=skipped)
    if not changed:
        return f"The job is not {verb.past}: {', '.join(skipped)}."
    others = len(done) - 1
    return f"The job is {verb.past}" + (f", with {others} of its batch." if others else ".")


def act_on_all(
    session: Session,
    by: str,
    verb: Verb,
    query: str,
    *,
    expected: int | None,
    now: datetime,
) -> int:
    """Enqueue the job that does it to all jobs which match; return the id of its record.

    `query` is the filter as it stands in an address: `read_filter` reads it again. Jobs that match
    only later are left alone.
    """
    action = Action(
        at=read_clock(session), by=by, verb=verb.name, subject="jobs", query=query,
        expected=expected, done=0, skipped={},
    )  # fmt: skip
    session.add(action)
    session.flush()
    action.job_id = enqueue(session, ActOnJobs(action_id=action.id), now=now)
    session.flush()
    return action.id


def find_actions(session: Session, *, before: int | None = None, limit: int) -> list[Action]:
    """Return what people did, newest first."""
    newest = select(Action).order_by(Action.id.desc()).limit(limit)
    if before is not None:
        newest = newest.where(Action.id < before)
    return list(session.execute(newest).scalars())


def work_through(run: Run, action_id: int, *, kinds: Kinds) -> Outcome:
    """Do what an action asks for to the jobs that match, chunk by chunk.

    Its result is how many were done and, by reason, how many were skipped. After SLICE it is put
    off to let other jobs run, and goes on where it was.
    """
    began = time.monotonic()
    with run.read_only() as session:
        action = session.get(Action, action_id)
        if action is None:
            return {"done": 0, "skipped": {}}
        wanted = replace(read_filter(action.query or ""), known_by=action.at)
        expected = action.expected
    while True:
        with run.unit_of_work() as session:
            action = session.get_one(Action, action_id, with_for_update=True)
            if action.ended_at is None:
                _do_chunk(session, run, action, wanted, kinds=kinds)
            done, skipped = action.done, sum(action.skipped.values())
            if action.ended_at is not None:
                run.finish(session, {"done": done, "skipped": action.skipped})
                return None
        run.progress(done + skipped, max(expected or 0, done + skipped))
        if time.monotonic() - began > SLICE:
            return Snooze(timedelta())


def _do_chunk(session: Session, run: Run, action: Action, wanted: Filter, *, kinds: Kinds) -> None:
    """Do it to the next jobs, and write how far the action is."""
    verb = find_verb(action.verb)
    cursor = None if action.cursor is None else Cursor.parse(action.cursor)
    page = find_page(session, wanted, limit=CHUNK, after=cursor, oldest_first=verb.oldest_first)
    # Not itself: it would cancel what it is doing.
    ids = {job.id for job, _ in page.jobs if job.id != run.id}
    done: list[UUID] = []
    skipped: Counter[str] = Counter()
    if ids:
        done, skipped = verb.change(session, sorted(ids), kinds=kinds, now=run.now)
    left = len(ids) - len(ids & set(done)) - sum(skipped.values())
    if left:
        # A reason that the change did not name: the state, which allows nothing of the kind.
        states = select(Job.state).where(Job.id.in_(ids - set(done)))
        reasons = [f"it is {state}" for state in session.execute(states).scalars()]
        skipped.update((reasons + ["it is gone"] * left)[:left])
    action.done += len(ids & set(done))
    action.skipped = dict(Counter(action.skipped) + skipped)
    action.cursor = None if page.next is None else str(page.next)
    if page.next is None:
        action.ended_at = run.now
    session.flush()


# --- A filter in an address ---

STATES = "state"
PARTS = ("kind", "queue", "worker", "parent", "since", "until", "args")


def read_filter(query: str) -> Filter:
    """Return the filter of an address's query. Raises InvalidInput, which names the part."""
    states: list[JobState] = []
    parts: dict[str, str] = {}
    for name, value in parse_qsl(query, max_num_fields=100):
        if name == STATES:
            if value not in list(JobState):
                raise InvalidInput(f"state: {value!r} is not one of {', '.join(JobState)}")
            states.append(JobState(value))
        elif name in PARTS and value.strip():
            if UNSTORABLE.search(value):
                raise InvalidInput(f"{name}: no job holds such a character")
            parts[name] = value.strip()
    return Filter(
        states=tuple(dict.fromkeys(states)),
        kind=parts.get("kind"),
        queue=parts.get("queue"),
        worker_id=_read_id("worker", parts.get("worker")),
        parent_id=_read_id("parent", parts.get("parent")),
        since=_read_moment("since", parts.get("since")),
        until=_read_moment("until", parts.get("until")),
        terms=tuple(_split(parts.get("args", ""))),
    )


def write_filter(query: str) -> str:
    """Return an address's query with nothing but the filter, in one order."""
    given = parse_qsl(query, max_num_fields=100)
    states = [(name, value) for name, value in given if name == STATES]
    parts = {name: value.strip() for name, value in given if name in PARTS and value.strip()}
    return urlencode(
        [*dict.fromkeys(states), *((one, parts[one]) for one in PARTS if one in parts)]
    )


def _read_id(name: str, text: str | None) -> UUID | None:
    if text is None:
        return None
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidInput(f"{name}: {text!r} is not a whole id") from error


def _read_moment(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        # A day or a time without a zone is this machine's, as times are shown.
        return moment if moment.tzinfo is not None else moment.astimezone()
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{name}: {text!r} is not a time; write 2026-11-28, or 2026-11-28T06:15"
        ) from error


def _split(text: str) -> list[str]:
    """Return the words of a text; one in double quotes may hold spaces."""
    words, inside = [""], False
    for character in text:
        if character == '"':
            inside = not inside
        elif character.isspace() and not inside:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]
