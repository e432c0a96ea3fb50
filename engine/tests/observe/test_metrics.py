"""The numbers for Prometheus."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from exposed import samples
from installations import create_tables
from job_rows import beat
from nightshift.celery.app import App
from nightshift.component import Component, Composition, Gauge, Probe, Status
from nightshift.jobs import enqueue
from nightshift.jobs.jobs import PruneJobs
from nightshift.ledger import ledger
from nightshift.observe.metrics import render_metrics
from nightshift.testing import run_due
from probe_app import Fail, Leave, probe
from sqlalchemy.exc import SQLAlchemyError


def read_greetings(runtime, _session):
    yield Gauge("greetings", "Greetings.", ("language",), {("de",): 2, ("fr",): 1})
    yield Gauge("kinds", "Kinds.", (), {(): len(runtime.kinds)})


def answer(status):
    return lambda _runtime, _session: (status, "as it is")


greetings = Component(
    name="greetings",
    metrics=(read_greetings,),
    probes=(
        Probe("good", answer(Status.OK), "nothing"),
        Probe("doubtful", answer(Status.WARN), "look at it"),
        Probe("bad", answer(Status.FAIL), "repair it"),
        Probe("slow broker", answer(Status.FAIL), "start it", ledger=False),
    ),
)


@pytest.fixture(scope="session")
def project_app():
    return App("probe_app", Composition([ledger, probe, greetings]), _env_file=None)


def put(app, *jobs):
    with app.runtime.unit_of_work() as session:
        for job in jobs:
            enqueue(session, job, now=app.runtime.now())


@pytest.fixture
def found(job_app):
    """Return the samples of an installation where some jobs ended and others wait."""
    put(job_app, PruneJobs(), Fail(permanent=True))
    run_due(job_app)
    put(job_app, PruneJobs(), Leave(), Leave())
    with job_app.runtime.unit_of_work() as session:
        beat(session, name="one", queues="default,other", pid=1)
    return samples(render_metrics(job_app.runtime).decode())


@pytest.mark.parametrize(
    ("kind", "state", "number"),
    [
        ("jobs.prune", "succeeded", 1),
        ("jobs.prune", "queued", 1),
        ("jobs.prune", "failed", 0),
        ("probe.fail", "failed", 1),
        ("probe.leave", "queued", 2),
        ("probe.die", "failed", 0),
    ],
)
def test_jobs_are_counted_by_kind_queue_and_state(found, kind, state, number):
    labels = ("kind", kind), ("queue", "default"), ("state", state)

    assert found["nightshift_jobs", *labels] == number


def test_metrics_begin_with_the_name_of_the_project(project_app, tmp_path):
    own = {"database_url": f"sqlite:///{tmp_path}/shop.db", "project_name": "my-shop"}
    app = App("probe_app", project_app.composition, _env_file=None, **own)
    create_tables(app)

    names = [name for name, *_ in samples(render_metrics(app.runtime).decode())]

    app.runtime.close()
    assert "my_shop_jobs" in names
    assert [name for name in names if not name.startswith("my_shop_")] == []


def test_workers_are_counted_by_queue(found):
    assert found["nightshift_workers", ("queue", "default")] == 1
    assert found["nightshift_workers", ("queue", "other")] == 1


def test_oldest_due_job_is_shown_by_queue(found):
    assert 0 < found["nightshift_oldest_due_job_seconds", ("queue", "default")] < 60


def test_last_success_of_a_recurring_job_is_an_instant(found):
    at = found["nightshift_last_success_timestamp_seconds", ("kind", "jobs.prune")]

    assert abs(at - datetime.now(UTC).timestamp()) < 60


@pytest.mark.parametrize("name", ["wait", "run"])
def test_times_of_the_jobs_that_ended_are_a_histogram(found, name):
    kind = ("kind", "jobs.prune")

    assert found[f"nightshift_job_{name}_seconds_bucket", kind, ("le", "+Inf")] == 1
    assert found[f"nightshift_job_{name}_seconds_gcount", kind] == 1


def test_gauges_of_the_components_are_shown(found, project_app):
    assert found["nightshift_greetings", ("language", "de")] == 2
    assert found["nightshift_greetings", ("language", "fr")] == 1
    assert found["nightshift_kinds",] == len(project_app.composition.kinds)


def test_probes_of_the_ledger_are_shown_by_how_bad_it_is(found):
    severities = {
        name: found["nightshift_probe", ("probe", name)] for name in ("good", "doubtful", "bad")
    }

    assert severities == {"good": 0, "doubtful": 1, "bad": 2}
    assert found["nightshift_probe", ("probe", "workers")] == 0


def test_scrape_does_not_wait_for_a_broker(found):
    assert ("nightshift_probe", ("probe", "slow broker")) not in found
    assert ("nightshift_probe", ("probe", "broker")) not in found


def test_scrape_fails_while_the_database_is_away(job_app):
    job_app.runtime.disconnect()
    Path(job_app.runtime.engine.url.database).unlink()

    with pytest.raises(SQLAlchemyError, match="no such table"):
        render_metrics(job_app.runtime)
