"""The timetable's sources, its nightly jobs, and what `doctor` says of them."""

from datetime import timedelta

import pytest
from health import findings, troubles
from nightshift.errors import InvalidInput
from nightshift.jobs import enqueue
from nightshift.jobs.models import JobState
from nightshift.testing import run_due

from project.timetable.component import make_schedule, make_sources
from services.school.timetable.icalendars import Calendar
from services.school.timetable.jobs import SyncTimetable
from services.school.timetable.models import State, TimetableRun
from services.school.timetable.sync import Sources
from services.school.timetable.tables import Tables
from services.school.timetable.webuntis import WebUntis
from tests.conftest import make_runtime
from tests.services.school.timetable.builders import Paper, make_paper, sources


@pytest.fixture
def job_environment(job_environment):
    return job_environment | {"TIMETABLE_SOURCES": "main=/srv/timetable"}


def record(app, state: State, age: timedelta, error: str | None = None) -> None:
    at = app.runtime.now() - age
    with app.runtime.unit_of_work() as session:
        session.add(
            TimetableRun(source="main", started_at=at, finished_at=at, state=state, error=error)
        )


def test_places_are_opened_by_what_they_are():
    runtime = make_runtime(
        timetable_sources="a=/srv/plan b=https://school.example/plan.ics?k=1 c=webuntis://x/y"
        " d=webcal://school.example/plan e=https://school.example/plan/",
        timetable_user="u",
        timetable_password="p",
    )

    assert {name: type(one) for name, one in make_sources(runtime).by_name.items()} == {
        "a": Tables,
        "b": Calendar,
        "c": WebUntis,
        "d": Calendar,
        "e": Tables,
    }


def test_webuntis_needs_a_password():
    runtime = make_runtime(timetable_sources="c=webuntis://x/y", timetable_user="u")

    with pytest.raises(InvalidInput, match="TIMETABLE_PASSWORD: WebUntis needs it"):
        make_sources(runtime)


def test_each_source_has_its_nightly_job():
    runtime = make_runtime(timetable_sources="a=/srv/a b=/srv/b", timetable_at="30 2 * * *")

    assert [(one.name, one.job.source, one.when) for one in make_schedule(runtime)] == [
        ("timetable.sync.a", "a", "30 2 * * *"),
        ("timetable.sync.b", "b", "30 2 * * *"),
    ]


@pytest.mark.parametrize(
    ("runs", "status", "detail"),
    [
        ([], "warn", "main: no sync yet"),
        ([(State.UNCHANGED, 1, None)], None, "main: in step, last good sync "),
        (
            [(State.APPLIED, 30, None), (State.REFUSED, 1, "the source has no lesson")],
            "warn",
            "main: refused: the source has no lesson, last good sync ",
        ),
        (
            [(State.APPLIED, 60, None), (State.FAILED, 1, "does not answer")],
            "fail",
            "main: failed: does not answer, last good sync ",
        ),
        ([(State.FAILED, 1, "does not answer")], "fail", "main: failed: does not answer"),
        ([(State.APPLIED, 49, None)], "fail", "main: in step, last good sync "),
    ],
)
def test_doctor_says_how_the_timetable_is(healthy, runs, status, detail):
    for state, hours, error in runs:
        record(healthy, state, timedelta(hours=hours), error)

    assert troubles(healthy) == ({} if status is None else {"timetable": status})
    assert findings(healthy)["timetable"].detail.startswith(detail)


def run_job(app, source: str):
    with app.runtime.unit_of_work() as session:
        enqueue(session, SyncTimetable(source=source), now=app.runtime.now())
    [job] = run_due(app)
    return job


def test_job_that_is_refused_has_succeeded_with_that_result(job_app):
    job_app.runtime._made[Sources] = sources(main=Paper())

    job = run_job(job_app, "main")

    assert (job.state, job.result["state"], job.result["refusal"]) == (
        JobState.SUCCEEDED,
        "refused",
        "the source has no lesson",
    )


def test_job_of_a_source_that_is_gone_is_discarded(job_app):
    job_app.runtime._made[Sources] = sources(main=make_paper())

    assert run_job(job_app, "other").state == JobState.DISCARDED
