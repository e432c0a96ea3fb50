"""What doctor, `/ready` and the metrics say of the calendars, and what the keeper does for them."""

import asyncio
import os
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
from exposed import samples
from health import findings, make_job, troubles
from nightshift.component import Composition
from nightshift.jobs import enqueue, schedule
from nightshift.jobs.models import JobState, ScheduleEntry
from nightshift.observe.checks import show_time
from nightshift.observe.metrics import render_metrics
from nightshift.testing import assert_enqueued, run_due
from nightshift.web.server import make_app
from sqlalchemy import delete, update

from project.calendars.component import make_schedule
from services.calendars.jobs import RefreshFeeds, SyncCalendars
from services.calendars.models import ChangeLog, Feed, SyncRun
from services.calendars.sync import Rules
from tests.conftest import ZONE, make_runtime, metric

as_another_user = pytest.mark.skipif(
    os.geteuid() == 0, reason="ROOT WRITES ANYWHERE: run the tests as another user to see this"
)


def add(app, *rows):
    with app.runtime.unit_of_work() as session:
        session.add_all(rows)


def make_feed(number, error=None, kind="class"):
    return Feed(kind=kind, owner_id=number, token=f"{number:032d}", error=error)


def test_feed_that_cannot_be_built_is_a_warning_and_touches_no_other_probe(healthy):
    good = [make_feed(number, kind="user") for number in range(2, 12)]
    add(healthy, make_feed(1, "the disk is full", kind="user"), *good)

    assert troubles(healthy) == {"failed feeds": "warn"}
    found = findings(healthy)["failed feeds"]
    assert (found.detail, found.remedy) == (
        "user: 1 of 11",
        "`celery -A project feeds list` says why; each keeps its last good file",
    )


def test_most_feeds_that_cannot_be_built_are_a_failure(healthy):
    add(healthy, make_feed(1, "the disk is full"), make_feed(2))

    assert troubles(healthy) == {"failed feeds": "fail"}


def record(app, at, **columns):
    """Add the record of a sync, and the job that succeeded, whatever the record says."""
    add(
        app,
        SyncRun(id=uuid4(), started_at=at, finished_at=at, **columns),
        make_job("calendars.sync", JobState.SUCCEEDED, at),
    )


MANY = {
    "built": 33,
    "failed": 3_987,
    "errors": [{"feed": "user/1", "error": "[Errno 28] No space left on device"}],
}


async def get(asgi, path):
    transport = httpx.ASGITransport(asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path)


def say_everything(app):
    """Return what `/ready`, doctor, the metrics and the overdue rule say of the last sync."""
    runtime = app.runtime
    ready = asyncio.run(get(make_app(runtime), "/ready"))
    metrics = samples(render_metrics(runtime).decode())
    [entry] = [one for one in app.composition.schedule(runtime) if one.name == "calendars.sync"]
    with runtime.unit_of_work() as session:
        overdue = schedule.enqueue_overdue(session, [entry], now=runtime.now())
    return {
        "ready": (ready.status_code, ready.json()["status"], ready.json()["probes"]["sync"]),
        "doctor": findings(app)["sync"].status.value,
        "recurring": findings(app)["recurring jobs"].status.value,
        "probe": metrics[metric("probe"), ("probe", "sync")],
        "overdue": [name for name, _ in overdue],
        "good": metrics.get((metric("last_success_timestamp_seconds"), ("kind", "calendars.sync"))),
    }


def test_sync_that_failed_for_most_feeds_is_good_nowhere(healthy):
    now = healthy.runtime.now()
    with healthy.runtime.unit_of_work() as session:
        session.execute(delete(SyncRun))
    record(healthy, now, **MANY)

    assert say_everything(healthy) == {
        # The feeds that are there can be served: another server could do no better.
        "ready": (200, "fail", "fail"),
        "doctor": "fail",
        "recurring": "ok",  # beat has just registered it, and no slot has passed
        "probe": 2,
        "overdue": ["calendars.sync"],
        "good": None,
    }
    found = findings(healthy)["sync"]
    said = "3987 of 4020 feeds failed in the last run, 1 errors; no good run yet"
    assert found.detail == said


def test_good_sync_before_the_one_that_failed_does_not_hide_it(healthy):
    now = healthy.runtime.now()
    record(healthy, now + timedelta(seconds=1), **MANY)

    said = say_everything(healthy)
    assert (said["ready"], said["doctor"], said["probe"]) == ((200, "fail", "fail"), "fail", 2)
    assert abs(said["good"] - now.timestamp()) < 60


def test_recurring_sync_whose_runs_all_fail_in_part_is_a_warning(healthy):
    now = healthy.runtime.now()
    with healthy.runtime.unit_of_work() as session:
        session.execute(delete(SyncRun))
        entry = make_schedule(healthy.runtime)[0]
        at_slot = {"last_fire_at": next(entry.before(now))}
        session.execute(update(ScheduleEntry).filter_by(entry=entry.name).values(at_slot))
    record(healthy, now, **MANY)

    assert findings(healthy)["recurring jobs"].status == "warn"


def test_sync_that_left_one_event_out_is_a_warning(healthy):
    record(
        healthy,
        healthy.runtime.now() + timedelta(seconds=1),
        unchanged=4_020,
        errors=[{"event": "1", "error": "its end is before its start"}],
    )

    assert troubles(healthy) == {"sync": "warn"}


@pytest.mark.parametrize(("hours", "status"), [(12, "ok"), (14, "fail")])
def test_sync_is_late_after_two_intervals_and_an_hour(healthy, hours, status):
    at = healthy.runtime.now() - timedelta(hours=hours)
    with healthy.runtime.unit_of_work() as session:
        session.execute(update(SyncRun).values(finished_at=at))

    found = findings(healthy)["sync"]
    assert (found.status, found.detail) == (status, f"last good run {show_time(at)}")


def test_sync_that_never_ran_fails(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.execute(delete(SyncRun))

    found = findings(healthy)["sync"]
    assert (found.status, found.detail) == ("fail", "no good run yet")


def test_sync_that_has_not_ended_does_not_count(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.execute(update(SyncRun).values(finished_at=None))

    assert findings(healthy)["sync"].detail == "no good run yet"


def test_web_server_is_ready_when_it_can_serve_calendars(healthy):
    probes = healthy.composition.probes

    assert [one.name for one in probes if one.ready] == ["database", "addresses", "store"]
    assert [one.name for one in probes if one.told] == ["sync", "failed feeds"]


def test_store_is_where_the_settings_say(healthy, tmp_path):
    found = findings(healthy)

    assert (found["store"].status, found["store"].detail) == ("ok", f"{tmp_path}/feeds")
    assert found["feed store"].detail.startswith(f"{tmp_path}/feeds, ")


def test_store_that_is_not_there_is_made_with_the_first_feed(healthy, tmp_path):
    (tmp_path / "feeds").rmdir()

    found = findings(healthy)["store"]
    assert (found.status, found.detail) == ("ok", f"{tmp_path}/feeds")


@as_another_user
def test_store_that_is_not_writable_fails(healthy, tmp_path):
    (tmp_path / "feeds").chmod(0o500)

    assert findings(healthy)["feed store"].status == "fail"


def test_feeds_are_counted_by_kind(job_app):
    add(job_app, make_feed(1), make_feed(2, "the disk is full"))

    found = samples(render_metrics(job_app.runtime).decode())

    assert found[metric("feeds"), ("kind", "class")] == 2
    assert found[metric("failed_feeds"), ("kind", "class")] == 1
    assert found[metric("feeds"), ("kind", "user")] == 0
    assert found[metric("failed_feeds"), ("kind", "user")] == 0


def sync(app):
    with app.runtime.unit_of_work() as session:
        enqueue(session, SyncCalendars(), now=app.runtime.now())


def test_sync_is_counted_as_a_job_of_its_queue(job_app):
    sync(job_app)
    run_due(job_app)
    sync(job_app)

    found = samples(render_metrics(job_app.runtime).decode())

    job = (("kind", "calendars.sync"), ("queue", "calendars"))
    counted = {
        state: found[metric("jobs"), *job, ("state", state)]
        for state in ("succeeded", "queued", "failed")
    }
    assert counted == {"succeeded": 1, "queued": 1, "failed": 0}
    at = found[metric("last_success_timestamp_seconds"), ("kind", "calendars.sync")]
    assert abs(at - job_app.runtime.now().timestamp()) < 60


def perform_duty(app):
    [duty] = [one for one in app.composition.duties if one.name == "notice of changes"]
    duty.run(app.runtime)


def test_keeper_enqueues_one_refresh_for_many_changes(job_app):
    add(job_app, ChangeLog(kind="class", key="1"), ChangeLog(kind="class", key="2"))

    perform_duty(job_app)
    perform_duty(job_app)

    with job_app.runtime.read_only() as session:
        assert_enqueued(session, RefreshFeeds)


def test_keeper_enqueues_nothing_without_a_change(job_app):
    perform_duty(job_app)

    with job_app.runtime.read_only() as session:
        assert_enqueued(session, RefreshFeeds, count=0)


def test_rules_are_those_of_the_settings():
    runtime = make_runtime(
        school_name="Kantonsschule Seefeld",
        school_domain="school.example",
        feed_days_past=1,
        feed_days_ahead=2,
    )

    assert runtime[Rules] == Rules(
        school_name="Kantonsschule Seefeld",
        domain="school.example",
        zone=ZONE,
        days_past=1,
        days_ahead=2,
    )


def test_sync_is_started_as_often_as_the_settings_say():
    runtime = make_runtime(sync_every=timedelta(hours=2))
    entries = {entry.name: entry for entry in runtime[Composition].schedule(runtime)}

    entry = entries["calendars.sync"]
    assert (entry.when, entry.overdue_at_start) == (timedelta(hours=2), True)
