"""The list of jobs, a job's page, and actions on one job or on all that match."""

import json
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import Response

from nightshift.component import Composition
from nightshift.database import Session
from nightshift.desk.site import Desk, Form, Part, Said, show_count
from nightshift.errors import InvalidInput, NotFound
from nightshift.jobs import actions, insight, search
from nightshift.jobs.actions import ALLOWED, VERBS
from nightshift.jobs.models import ENDED, Job, JobState, Worker
from nightshift.jobs.search import MOST_COUNTED, Cursor, Filter

PAGE = 50
CHILDREN = 50
# Milliseconds that a list may take to count what matches. The page before an action counts on.
COUNT_PATIENCE = 80
LONGEST_ARGUMENTS = 160

GROUPS = (
    ("open", (JobState.SCHEDULED, JobState.QUEUED, JobState.RUNNING, JobState.WAITING)),
    ("held", (JobState.HELD,)),
    ("succeeded", (JobState.SUCCEEDED,)),
    ("failed", (JobState.FAILED,)),
    ("discarded", (JobState.DISCARDED,)),
    ("cancelled", (JobState.CANCELLED,)),
)


def make_part(desk: Desk) -> Part:
    """Return the pages of jobs."""
    runtime = desk.runtime

    def show_list(request: Request) -> Response:
        query = request.url.query
        given = dict.fromkeys(actions.PARTS, "") | dict(parse_qsl(query, max_num_fields=100))
        wanted = actions.read_filter(query)
        place, oldest_first = given.get("from"), given.get("order") == "oldest"
        after = Cursor.parse(place) if place else None
        with runtime.read_only() as session:
            page = search.find_page(
                session, wanted, limit=PAGE, after=after, oldest_first=oldest_first
            )
            whole = page.next is None and after is None
            rows = [_build_row(desk, job, at) for job, at in page.jobs]
        kept = parse_qsl(actions.write_filter(query))
        ordered = [*kept, ("order", "oldest")] if oldest_first else kept
        further = None if page.next is None else urlencode([*ordered, ("from", str(page.next))])
        return desk.page(
            request,
            "jobs.html",
            rows=rows,
            wanted=wanted,
            given=given,
            kept=kept,
            all_states=urlencode([pair for pair in ordered if pair[0] != "state"]),
            first_page=urlencode(ordered),
            oldest_first=oldest_first,
            place=place,
            next_page=further,
            examined_to=page.examined_to,
            total=len(rows) if whole else _count_in_time(desk, wanted),
            most=MOST_COUNTED,
            groups=[_build_group(name, states, ordered, wanted) for name, states in GROUPS],
            states=list(JobState),
            kinds=sorted(runtime.kinds),
            queues=runtime[Composition].queues,
            verbs=_find_verbs(wanted),
        )

    def show_job(request: Request) -> Response:
        job_id = _read_id(request)
        with runtime.read_only() as session:
            details = insight.read_details(session, job_id, limit=CHILDREN)
            worker = None
            if details.job.worker_id is not None:
                worker = session.get(Worker, details.job.worker_id)
            return desk.page(
                request,
                "job.html",
                job=details.job,
                args=desk.mask.value(details.job.args),
                result=_show_json(desk, details.job.result),
                errors=[desk.mask.value(one) for one in reversed(details.job.errors or [])],
                lines=[(one.at, one.attempt, desk.mask.text(one.line)) for one in details.lines],
                worker=worker,
                ancestors=_find_ancestors(session, details.job),
                children=[_build_row(desk, one, _find_moment(one)) for one in details.children],
                by_state=sorted(details.children_by_state.items()),
                timeline=_build_timeline(details.job),
                verbs=[VERBS[name] for name in ALLOWED[details.job.state]],
                done_here=details.job.state in ENDED,
            )

    def ask(request: Request) -> Response:
        """Show how many jobs match, before something is done to all of them."""
        query = actions.write_filter(request.url.query)
        verb = actions.find_verb(request.query_params.get("verb", ""))
        with runtime.read_only() as session:
            counts = search.count_matches(session, actions.read_filter(query))
        allowed = {state for state, names in ALLOWED.items() if verb.name in names}
        return desk.page(
            request,
            "confirm.html",
            verb=verb,
            query=query,
            shown=[(name, value) for name, value in parse_qsl(query)],
            total=sum(counts.values()),
            counts=sorted(counts.items()),
            allowed=allowed,
            most=MOST_COUNTED,
        )

    def act_on_all(request: Request, form: Form) -> Said:
        query = actions.write_filter(form.get("query", ""))
        verb = actions.find_verb(form.get("verb", ""))
        with runtime.read_only() as session:
            total = sum(search.count_matches(session, actions.read_filter(query)).values())
        if total == 0:
            raise InvalidInput("no job matches this filter any more")
        with runtime.unit_of_work() as session:
            action_id = actions.act_on_all(
                session,
                request.state.user.name,
                verb,
                query,
                expected=total if total <= MOST_COUNTED else None,
                now=runtime.now(),
            )
        number = show_count(total, MOST_COUNTED)
        text = f"{verb.label}: {number} jobs. A job does it, and this page shows how far it is."
        return Said(text, f"/actions/{action_id}")

    def act_on_one(request: Request, form: Form) -> str:
        verb = actions.find_verb(request.path_params["verb"])
        with runtime.unit_of_work() as session:
            return actions.act_on_job(
                session,
                request.state.user.name,
                verb,
                _read_id(request),
                kinds=runtime.kinds,
                now=runtime.now(),
            )

    return Part(
        name="jobs",
        title="Jobs",
        pages={"/": show_list, "/all": ask, "/{job_id}": show_job},
        acts={"/all": act_on_all, "/{job_id}/{verb}": act_on_one},
    )


def _read_id(request: Request) -> UUID:
    try:
        return UUID(request.path_params["job_id"])
    except ValueError as error:
        raise NotFound("there is no such job") from error


def _count_in_time(desk: Desk, wanted: Filter) -> int | None:
    """Return how many jobs match, or None where that takes too long for a page."""
    try:
        with desk.runtime.read_only() as session:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(text(f"SET LOCAL statement_timeout = {COUNT_PATIENCE}"))
            return sum(search.count_matches(session, wanted).values())
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == "57014":  # query_canceled
            return None
        raise


def _find_verbs(wanted: Filter) -> list[actions.Verb]:
    """Return what may be done to jobs in one of these states; without a state, everything."""
    states = wanted.states or tuple(JobState)
    names = {name for state in states for name in ALLOWED[state]}
    return [verb for name, verb in VERBS.items() if name in names]


def _build_group(
    name: str, states: tuple[JobState, ...], pairs: list[tuple[str, str]], wanted: Filter
) -> dict[str, Any]:
    """Return a link to a group of states that keeps the rest of the filter."""
    kept = [pair for pair in pairs if pair[0] != "state"]
    return {
        "name": name,
        "query": urlencode([*(("state", state.value) for state in states), *kept]),
        "chosen": set(wanted.states) == set(states),
    }


def _find_moment(job: Job) -> datetime:
    """Return what the list is ordered by: when a job ended, or began, or is due."""
    if job.state in ENDED and job.finished_at is not None:
        return job.finished_at
    if job.state in (JobState.RUNNING, JobState.WAITING) and job.started_at is not None:
        return job.started_at
    return job.run_at


def _build_row(desk: Desk, job: Job, at: datetime) -> dict[str, Any]:
    error = job.errors[-1] if job.errors else None
    shown = ", ".join(
        f"{name}={_show_value(one)}" for name, one in desk.mask.value(job.args).items()
    )
    took = None
    if job.started_at is not None and job.finished_at is not None:
        took = job.finished_at - job.started_at
    return {
        "job": job,
        "at": at,
        "took": took,
        "args": shown if len(shown) <= LONGEST_ARGUMENTS else f"{shown[:LONGEST_ARGUMENTS]}…",
        "error": desk.mask.value(error) if error and job.state != JobState.SUCCEEDED else None,
    }


def _show_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _show_json(desk: Desk, value: Any) -> str | None:
    if value is None:
        return None
    value = desk.mask.value(value)
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _find_ancestors(session: Session, job: Job) -> list[Job]:
    """Return the job's parent, its parent, and so on, the oldest first."""
    found: list[Job] = []
    parent_id = job.parent_id
    while parent_id is not None and len(found) < 10:  # noqa: PLR2004 - deeper ones are links away
        parent = session.execute(select(Job).where(Job.id == parent_id)).scalar_one_or_none()
        if parent is None:
            break
        found.insert(0, parent)
        parent_id = parent.parent_id
    return found


def _build_timeline(job: Job) -> list[tuple[datetime, str, str]]:
    """Return what happened to a job and when: the instant, the words, and a tone."""
    moments: list[tuple[datetime | None, str, str]] = [
        (job.created_at, "enqueued", ""),
        (job.sent_at, "sent to a worker", ""),
    ]
    moments += [
        (
            _parse(error.get("at")),
            f"attempt {error.get('attempt')} began, and failed: {error.get('type')}",
            "bad",
        )
        for error in job.errors or []
    ]
    failed = {error.get("attempt") for error in job.errors or []}
    if job.attempt not in failed or job.state in (JobState.RUNNING, JobState.SUCCEEDED):
        moments.append((job.started_at, f"attempt {job.attempt} began", ""))
    if job.state in ENDED:
        tone = {"succeeded": "good", "failed": "bad"}.get(job.state.value, "")
        moments.append((job.finished_at, job.state.value, tone))
    if job.state in (JobState.SCHEDULED, JobState.QUEUED, JobState.HELD):
        moments.append((job.run_at, "due", ""))
    return sorted(((at, words, tone) for at, words, tone in moments if at), key=lambda one: one[0])


def _parse(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
