"""Recurring jobs: when they are due in words, their last runs, run now, pause and resume."""

from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nightshift.component import Composition
from nightshift.database import Session
from nightshift.desk.charts import draw_spark
from nightshift.desk.site import Desk, Form, Part
from nightshift.errors import InvalidInput
from nightshift.jobs import enqueue, schedule, statistics
from nightshift.jobs.models import ENDED, Job, JobState
from nightshift.jobs.schedule import Entry
from nightshift.observe.words import show_span

RUNS = 20


def make_part(desk: Desk) -> Part:
    """Return the page of the recurring jobs."""
    runtime = desk.runtime

    def show(request: Request) -> Response:
        with runtime.read_only() as session:
            return desk.page(request, "recurring.html", entries=read_entries(session, desk))

    def change(request: Request, form: Form) -> str:
        entry = _find(desk, form.get("entry", ""))
        name, now = entry.name, runtime.now()
        with runtime.unit_of_work() as session:
            match form.get("verb"):
                case "run-now":
                    job_id = enqueue(session, entry.job, now=now)
                    text = f"{name} is enqueued as job {job_id}."
                    done = True
                case "pause":
                    done = schedule.pause_entry(session, name, now=now)
                    text = f"{name} is paused: its slots pass without a job."
                    text = text if done else f"{name} was paused already."
                case "resume":
                    done = schedule.resume_entry(session, name)
                    text = f"{name} is resumed, from its next slot on."
                    text = text if done else f"{name} was not paused."
                case other:
                    raise InvalidInput(f"a recurring job cannot be {other!r}")
            subject = f"recurring job {name}"
            desk.record(session, request, str(form.get("verb")), subject, done=int(done))
        return text

    return Part(name="recurring", title="Recurring", pages={"/": show}, acts={"/": change})


def _find(desk: Desk, name: str) -> Entry:
    for entry in desk.runtime[Composition].schedule(desk.runtime):
        if entry.name == name:
            return entry
    raise InvalidInput(f"there is no recurring job {name!r}")


def read_entries(session: Session, desk: Desk) -> list[dict[str, Any]]:
    """Return the recurring jobs with their rules in words, and their last and next runs."""
    now = datetime.now(UTC)
    fires, paused = schedule.read_last_fires(session), schedule.find_paused_entries(session)
    return [
        {
            **_read_runs(session, entry),
            "entry": entry,
            "kind": entry.job.policy.kind,
            "words": entry.words,
            "zone": "" if isinstance(entry.when, timedelta) else str(entry.zone),
            "paused_at": paused.get(entry.name),
            "next": entry.after(now),
            "registered": entry.name in fires,
        }
        for entry in desk.runtime[Composition].schedule(desk.runtime)
    ]


def _read_runs(session: Session, entry: Entry) -> dict[str, Any]:
    runs = statistics.find_last_runs(session, entry.job.policy.kind, limit=RUNS)
    last = runs[0] if runs else None
    seconds = [
        (_measure(job), job.state == JobState.SUCCEEDED)
        for job in reversed(runs)
        if job.state in ENDED and job.finished_at is not None
    ]
    longest = max((one for one, _ in seconds), default=0.0)
    label = f"Durations of the last {len(seconds)} runs; the longest took"
    return {
        "last": last,
        "spark": draw_spark(seconds, label=f"{label} {show_span(timedelta(seconds=longest))}"),
        "longest": timedelta(seconds=longest) if seconds else None,
    }


def _measure(job: Job) -> float:
    assert job.started_at is not None
    assert job.finished_at is not None
    return max(0.0, (job.finished_at - job.started_at).total_seconds())
