"""What there is to see of jobs."""

from datetime import timedelta
from uuid import uuid4

import pytest
from job_rows import (
    FAR_AHEAD,
    LONG_AGO,
    NOW,
    Parent,
    Plain,
    Side,
    batch,
    change,
    finish,
    put,
    spawn,
    take,
)
from nightshift.errors import NotFound
from nightshift.jobs import care, claims, enqueue, insight
from nightshift.jobs.models import JobState


def found(session, **filters):
    return [job.id for job in insight.find_jobs(session, **filters)]


# --- find ---


def test_find_filters_and_gives_the_newest_first(session):
    ids = [enqueue(session, Side(), now=NOW + timedelta(seconds=n)) for n in range(3)]
    finish(session, ids[0])
    assert found(session, kind="test.side") == ids[::-1]
    assert found(session, queue="side", state=JobState.SUCCEEDED) == ids[:1]
    assert found(session, kind="test.side", limit=1) == ids[2:]


def test_find_without_a_filter_returns_the_newest_fifty(session):
    ids = [enqueue(session, Plain(), now=NOW + timedelta(seconds=n)) for n in range(51)]
    assert found(session) == ids[:0:-1]


def test_find_by_parent_returns_its_children(session):
    parent, children = batch(session, 2)
    put(session)
    assert set(found(session, parent_id=parent)) == set(children)


def test_find_of_nothing_is_empty(session):
    put(session)
    assert found(session, kind="test.none") == []


# --- show ---


def test_show_tells_everything(session):
    parent, children = batch(session, 3)
    claims.write_notes(
        session, take(session, children[0]), claims.Notes(1, 4, [(NOW, "first"), (NOW, "second")])
    )
    shown = insight.read_details(session, children[0])
    assert ([line.line for line in shown.lines], shown.parent.id, shown.job.progress_total) == (
        ["first", "second"],
        parent,
        4,
    )
    shown = insight.read_details(session, parent, limit=2)
    assert (len(shown.children), shown.children_by_state) == (2, {"queued": 2, "running": 1})


def test_show_of_a_job_alone_has_neither_parent_nor_children(session):
    job_id = put(session)
    shown = insight.read_details(session, job_id)
    assert (shown.job.id, shown.lines, shown.parent) == (job_id, [], None)
    assert (shown.children, shown.children_by_state) == ([], {})


def test_show_of_no_job_is_refused(session):
    missing = uuid4()
    with pytest.raises(NotFound, match=str(missing)):
        insight.read_details(session, missing)


def test_show_sees_what_others_have_written(runtime):
    with runtime.unit_of_work() as session:
        job_id = put(session)
    with runtime.read_only() as session:
        assert insight.read_details(session, job_id).job.state == JobState.QUEUED
        session.rollback()
        with runtime.unit_of_work() as other:
            finish(other, job_id)
        assert insight.read_details(session, job_id).job.state == JobState.SUCCEEDED


# --- for the person for whom a job runs ---


def test_status_has_progress_and_result_and_no_arguments(session):
    job_id = put(session)
    claims.write_notes(session, take(session, job_id), claims.Notes(1, 4, []))

    status = insight.read_status(session, job_id)

    assert status == insight.JobStatus(job_id, "test.plain", JobState.RUNNING, 1, 4, None, None)


def test_status_of_no_job_is_refused(session):
    with pytest.raises(NotFound, match="there is no job"):
        insight.read_status(session, uuid4())


# --- in numbers ---


def test_stats_count_and_time(session):
    done, due = put(session, Side()), put(session, Side())
    finish(session, done)
    change(session, due, run_at=LONG_AGO)
    care.pause(session, "side", now=NOW)
    stats = insight.read_stats(session)
    assert {"kind": "test.side", "queue": "side", "state": "queued", "jobs": 1} in stats["counts"]
    side = next(queue for queue in stats["queues"] if queue["queue"] == "side")
    assert (side["oldest_due_seconds"] > 0, side["paused_at"]) == (True, NOW)
    lately = next(kind for kind in stats["lately"] if kind["kind"] == "test.side")
    assert (lately["ended"], lately["per_minute"], lately["run_seconds"] < 5) == (1, 1 / 15, True)


def test_stats_of_nothing_are_empty(session):
    assert insight.read_stats(session) == {
        "counts": [],
        "queues": [],
        "lately": [],
        "over_seconds": 900.0,
    }


def test_stats_name_a_paused_queue_without_jobs_and_a_queue_where_nothing_is_due(session):
    care.pause(session, "side", now=NOW)
    put(session, run_at=FAR_AHEAD)
    assert insight.read_stats(session)["queues"] == [
        {"queue": "default", "oldest_due_seconds": None, "paused_at": None},
        {"queue": "side", "oldest_due_seconds": None, "paused_at": NOW},
    ]


def test_stats_count_a_batch_by_state(session):
    parent = put(session, Parent())
    spawn(session, parent, [Plain(), Plain()])
    assert insight.read_stats(session)["counts"] == [
        {"kind": "test.parent", "queue": "default", "state": "waiting", "jobs": 1},
        {"kind": "test.plain", "queue": "default", "state": "queued", "jobs": 2},
    ]
