"""What is declared in one place of the project and used in another."""

import json
import os
import re
import tomllib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from forking import run_forked
from health import make_healthy, troubles
from nightshift.celery.app import App
from nightshift.celery.configuration import build_configuration
from nightshift.component import Composition, load
from nightshift.jobs.models import Job, ScheduleEntry, Worker
from nightshift.ledger import ledger
from sqlalchemy import delete

from project.app import COMPONENTS
from project.celery import app
from project.settings import ProjectSettings
from tests.conftest import make_runtime

ROOT = Path(__file__).parent.parent.parent
COMPOSITION = Composition(COMPONENTS)
NOUNS = [component for component in COMPONENTS if component.name != ledger.name]

every_noun = pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.name)


@pytest.fixture(scope="module")
def bodies():
    """Return the tasks of ours, by the kinds that they run: tests have some of their own."""
    app.loader.import_default_modules()
    packages = ("tasks.", "nightshift.")
    return {
        name: task
        for name, task in app.tasks.items()
        if hasattr(task, "args_type") and task.body.__module__.startswith(packages)
    }


def entry_points():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["entry-points"]["celery.commands"]


def modules(folder):
    """Return the names of the modules in a folder of the repository."""
    paths = (ROOT / folder).glob("*.py")
    return {f"{folder}.{path.stem}" for path in paths if path.stem != "__init__"}


def test_first_component_is_the_engine_with_the_name_of_the_project():
    assert COMPONENTS[0] == replace(ledger, settings=ProjectSettings)


def test_app_has_the_components_of_the_project():
    assert app.composition.components == COMPONENTS


@every_noun
def test_component_stands_in_the_folder_of_its_name(noun):
    assert load(f"project.{noun.name}.component:{noun.name}") is noun


def test_every_folder_of_the_project_is_a_component():
    folders = {path.parent.name for path in (ROOT / "project").glob("*/component.py")}

    assert folders == {noun.name for noun in NOUNS}


def test_entry_points_of_the_project_are_the_commands_of_its_components():
    commands = {}
    for noun in NOUNS:
        commands |= noun.commands

    assert entry_points() == commands


@pytest.mark.parametrize(
    "path", [path for component in COMPONENTS for path in component.commands.values()]
)
def test_every_command_is_there_and_says_what_it_does(path):
    assert load(path).help


def test_every_kind_has_a_body_and_every_body_a_declared_kind(bodies):
    assert {name: task.args_type for name, task in bodies.items()} == COMPOSITION.kinds


def test_every_body_has_the_limits_of_its_kind(bodies):
    limits = {name: task.time_limit for name, task in bodies.items()}

    assert limits == {
        name: kind.policy.time_limit.total_seconds() for name, kind in COMPOSITION.kinds.items()
    }


def test_every_module_of_tasks_belongs_to_a_component():
    named = [module for noun in NOUNS for module in noun.tasks]

    assert sorted(named) == sorted(modules("tasks"))


@every_noun
def test_kinds_of_a_component_have_bodies_in_its_own_modules(noun, bodies):
    homes = {bodies[kind.policy.kind].body.__module__ for kind in noun.kinds}

    assert homes <= set(noun.tasks)


def test_every_module_with_tables_belongs_to_a_component():
    paths = (ROOT / "services").rglob("*models.py")
    models = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}

    assert {module for noun in NOUNS for module in noun.models} == models


def test_every_recurring_job_has_a_body(bodies):
    entries = COMPOSITION.schedule(make_runtime())

    assert {entry.job.policy.kind for entry in entries} <= set(bodies)
    assert len({entry.name for entry in entries}) == len(entries)


def test_every_probe_has_a_name_of_its_own_and_a_remedy():
    names = [(probe.name, probe.broker) for probe in COMPOSITION.probes]

    assert len(set(names)) == len(names)
    assert [probe.name for probe in COMPOSITION.probes if not probe.remedy] == []


@pytest.mark.parametrize(
    "of", [of for component in COMPONENTS for of in component.provides], ids=lambda of: of.__name__
)
def test_what_a_component_provides_can_be_made(of, tmp_path):
    runtime = make_runtime(database_url=f"sqlite:///{tmp_path}/none.db")

    assert isinstance(runtime[of], of)
    runtime.close()


@pytest.mark.parametrize("url", ["redis://127.0.0.1/0", "amqp://guest:guest@127.0.0.1//"])
def test_configuration_holds_for_every_job_on_every_broker(url):
    configured = build_configuration(make_runtime(broker_url=url).settings, COMPOSITION)
    longest = max(kind.policy.time_limit for kind in COMPOSITION.kinds.values())

    assert {queue.name for queue in configured["task_queues"]} == set(COMPOSITION.queues)
    if url.startswith("redis"):
        options = configured["broker_transport_options"]
        assert timedelta(seconds=options["visibility_timeout"]) > longest


def test_healthy_installation_has_nothing_to_say(healthy):
    assert troubles(healthy) == {}


def test_healthy_installation_on_postgres_has_nothing_to_say(
    postgres_url, job_environment, record_good_sync, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    (tmp_path / "feeds").mkdir()
    for name, value in job_environment.items():
        monkeypatch.setenv(name, value)
    broker = f"filesystem://{tmp_path}/broker"
    own = App(
        "project.celery", COMPOSITION, _env_file=None, database_url=postgres_url, broker_url=broker
    )
    make_healthy(own)
    record_good_sync(own)
    try:
        assert troubles(own) == {}
    finally:
        with own.runtime.unit_of_work() as session:
            for table in (Job, Worker, ScheduleEntry):
                session.execute(delete(table))
        own.runtime.close()


def test_commands_are_celerys_own(tmp_path):
    environment = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{tmp_path}/none.db",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
    }
    words = ["-A", "project", "doctor", "--json"]

    ran = run_forked("celery", *words, environment=environment, folder=ROOT)

    assert (ran.returncode, json.loads(ran.stdout)["status"]) == (2, "fail"), ran.stderr


def files_that_name_no_noun():
    """Return the Python files of this repository that any project could have as they are."""
    engine = (ROOT / "engine/nightshift").rglob("*.py")
    project = [path for path in (ROOT / "project").glob("*.py") if path.name != "app.py"]
    return [*engine, *project, ROOT / "migrations/env.py", ROOT / "tests/conftest.py"]


def test_no_other_file_names_a_noun():
    names = "|".join(noun.name for noun in NOUNS)
    path_of_a_noun = re.compile(rf"\b(services|tasks|project|migrations)[./]({names})\b")

    naming = {
        str(path.relative_to(ROOT)): found.group()
        for path in files_that_name_no_noun()
        if (found := path_of_a_noun.search(path.read_text(encoding="utf-8")))
    }

    assert naming == {}


def test_tests_of_the_engine_import_nothing_of_the_project():
    imported = re.compile(r"^\s*(?:from|import) (?:services|tasks|project|tests)\b", re.MULTILINE)

    importing = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "engine/tests").rglob("*.py")
        if imported.search(path.read_text(encoding="utf-8"))
    ]

    assert importing == []
