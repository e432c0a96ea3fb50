"""`school import-ics` and the nightly jobs, with a server on loopback."""

import json
from pathlib import Path

import pytest
from nightshift.jobs import enqueue
from nightshift.jobs.models import JobState
from nightshift.testing import run_due
from sqlalchemy import select

from services.school.import_jobs import ImportSources
from services.school.importing import Order, keep
from services.school.models import Event
from services.school.source_models import SourceRun
from tests.services.school.test_downloads import say, serving
from tests.services.school.test_importing import TWO, calendar, vevent


@pytest.fixture
def job_environment():
    """Let sources be on this machine."""
    return {"SCHOOL_SOURCE_NETWORKS": "127.0.0.0/8"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "there.ics"
    path.write_bytes(calendar(*TWO, vevent("c", "Arzt", 4, "CLASS:PRIVATE")))
    return path


def titles(job_app):
    with job_app.runtime.read_only() as session:
        return sorted(session.scalars(select(Event.title)))


def test_import_says_what_it_did_and_a_second_one_that_nothing_changed(run, job_app, file):
    _, first = run("import-ics", str(file), "--audience", "all")
    _, again = run("import-ics", str(file))
    _, listed = run("sources")

    assert first == "there.ics: 2 new\n  not taken over: c: is private\n"
    assert again == "there.ics: has not changed since the last import; 2 unchanged\n"
    assert titles(job_app) == ["Apéro", "Basar"]
    assert "there.ics" in listed
    assert "by hand" in listed


def test_dry_run_writes_nothing(run, job_app, file):
    code, said = run("import-ics", str(file), "--dry-run", "--json")
    report = json.loads(said)
    assert (code, report["new"], report["dry_run"]) == (0, 2, True)
    assert report["troubles"] == [{"uid": "c", "title": "", "reason": "is private"}]
    assert titles(job_app) == []
    assert json.loads(run("sources", "--json")[1]) == []


def test_a_source_that_is_refused_leaves_a_record(run, job_app, file):
    run("import-ics", str(file))
    file.write_bytes(calendar())
    code, said = run("import-ics", str(file))
    assert (code, said.partition(":")[0]) == (1, "it has no event, and had 2")
    [source] = json.loads(run("sources", "--json")[1])
    assert source["error"].startswith("it has no event")
    assert titles(job_app) == ["Apéro", "Basar"]


def test_wrong_options_are_named(run, file):
    for words, message in (
        ((str(file), "--audience", "parents"), "audience: must be"),
        ((str(file), "--nightly"), "nightly: a file is imported by hand"),
        (("absent.ics",), "there is no such file"),
    ):
        code, said = run("import-ics", *words)
        assert code == 2
        assert message in said


def start_nightly_imports(app):
    with app.runtime.unit_of_work() as session:
        enqueue(session, ImportSources(), now=app.runtime.now())
    return {job.kind: job.state for job in run_due(app)}


def test_nightly_sources_are_imported_by_jobs(run, job_app):
    with serving(say('ETag: "1"', body=calendar(*TWO))) as server:
        run("import-ics", server.url, "--name", "club", "--nightly")
        states = start_nightly_imports(job_app)
    assert states["school.import_source"] == JobState.SUCCEEDED
    assert titles(job_app) == ["Apéro", "Basar"]
    with job_app.runtime.read_only() as session:
        runs = session.scalars(select(SourceRun).order_by(SourceRun.ended_at)).all()
    assert [one.report["new"] for one in runs] == [2, 0]


def test_a_nightly_source_that_is_refused_fails_its_job_and_says_why(run, job_app):
    with serving(say(status="404 Not Found")) as server:
        with job_app.runtime.unit_of_work() as session:
            order = Order("club", server.url, None, nightly=True)
            keep(session, order, now=job_app.runtime.now())
        states = start_nightly_imports(job_app)
    assert states["school.import_source"] == JobState.FAILED
    [source] = json.loads(run("sources", "--json")[1])
    assert "answers 404" in source["error"]


def test_another_network_of_one_s_own_is_not_asked(run):
    code, said = run("import-ics", "http://10.0.0.1/a.ics")
    assert code == 1
    assert "add its network to SCHOOL_SOURCE_NETWORKS" in said
