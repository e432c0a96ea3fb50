"""The app: two of them in one process share nothing."""

import probe_app as probe
import pytest
from nightshift.celery.app import App
from nightshift.component import Component, Composition
from nightshift.errors import InvalidInput
from nightshift.jobs.models import JobState
from nightshift.testing import run_due
from probing import count_effects, put


def test_job_of_one_app_writes_only_there(make_app):
    first, second = make_app(), make_app()
    job_id = put(first.runtime, probe.Leave(number=1))
    assert [row.id for row in run_due(first)] == [job_id]
    assert run_due(second) == []
    assert [count_effects(app.runtime) for app in (first, second)] == [1, 0]


def test_jobs_of_two_apps_run_in_turn_each_at_home(make_app):
    first, second = make_app(), make_app()
    for app, number in ((first, 1), (second, 2), (first, 3)):
        put(app.runtime, probe.Leave(number=number))
    results = [[row.result for row in run_due(app)] for app in (first, second)]
    assert results == [[1, 3], [2]]
    assert [count_effects(app.runtime) for app in (first, second)] == [2, 1]


def test_message_of_one_app_reaches_only_its_broker(make_app, count_messages):
    first, second = make_app(), make_app()
    put(first.runtime, probe.Leave())
    assert [count_messages(app) for app in (first, second)] == [1, 0]


def test_each_app_is_a_worker_of_its_own(make_app):
    first, second = make_app(), make_app()
    assert first.worker_id != second.worker_id
    assert first.runtime[App] is first
    assert second.runtime[App] is second


def test_values_win_over_the_environment(make_app, monkeypatch):
    monkeypatch.setenv("RELAY_BUFFER", "5")
    assert make_app(relay_buffer=7).runtime.settings.relay_buffer == 7
    assert make_app().runtime.settings.relay_buffer == 5


def test_setting_that_is_wrong_is_named(make_app):
    with pytest.raises(InvalidInput, match=r"^RELAY_BUFFER: "):
        make_app(relay_buffer=0)


def test_two_components_that_claim_one_kind_are_refused():
    one, two = (Component(name=name, kinds=(probe.Leave,)) for name in ("one", "two"))
    message = "the kind 'probe.leave' is claimed by two components, 'one' and 'two'"
    with pytest.raises(ValueError, match=message):
        App("twice", Composition([one, two]), _env_file=None)


def test_every_body_of_the_components_is_a_task(make_app):
    app = make_app()
    app.loader.import_default_modules()
    assert set(app.composition.kinds) - set(app.tasks) == set()


def test_job_whose_worker_runs_in_the_test_succeeds(job_worker):
    job_id = put(job_worker.app.runtime, probe.Leave(number=4))
    job = job_worker.ended(job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, 4)
