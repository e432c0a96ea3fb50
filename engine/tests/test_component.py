"""The components of a project, and the composition that checks them."""

import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import probe_app
import pytest
from nightshift.component import Component, Composition, Duty, Gauge, Probe, Status, load
from nightshift.errors import InvalidInput
from nightshift.jobs import JobArgs, enqueue
from nightshift.jobs.jobs import ActOnJobs, PruneJobs
from nightshift.jobs.schedule import Entry
from nightshift.ledger import ledger
from nightshift.runtime import Runtime
from nightshift.settings import ComponentSettings, ProjectName, Settings
from pydantic import SecretStr
from starlette.routing import Route

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Greet(JobArgs, kind="component.greet", queue="greetings"):
    pass


class GreetAgain(JobArgs, kind="component.greet"):
    """Has the name of another kind."""


class Wave(JobArgs, kind="component.wave", queue="greetings"):
    """Has the queue of another kind."""


class Bow(JobArgs, kind="component.bow"):
    pass


class GreetingSettings(ComponentSettings):
    greeting: str = "Hello"
    greeting_password: SecretStr = SecretStr("")


class OtherSettings(ComponentSettings):
    greeting: str = "Good day"


class DatabaseSettings(ComponentSettings):
    """Has a field of the engine's settings."""

    database_url: str = ""


class ShopSettings(Settings):
    """The engine's settings with the name of a project."""

    project_name: ProjectName = "my-shop"


class Greeter:
    pass


def make_greeter(_runtime):
    return Greeter()


def make_routes(runtime):
    return [Route(f"/greet/{runtime[GreetingSettings].greeting}", lambda _request: None)]


def find_nothing(_runtime, _session):
    return Status.OK, "nothing"


def a_probe(name):
    return Probe(name, find_nothing, "nothing to do")


def a_duty(name):
    return Duty(name, lambda _runtime: None)


DOUBLE_CLAIMS = {
    "kind": ("component.greet", {"kinds": (Greet,)}, {"kinds": (GreetAgain,)}),
    "queue": ("greetings", {"kinds": (Greet,)}, {"kinds": (Wave,)}),
    "setting": ("greeting", {"settings": GreetingSettings}, {"settings": OtherSettings}),
    "command": ("greet", {"commands": {"greet": "a:b"}}, {"commands": {"greet": "c:d"}}),
    "probe": ("greeter", {"probes": (a_probe("greeter"),)}, {"probes": (a_probe("greeter"),)}),
    "duty": ("greet", {"duties": (a_duty("greet"),)}, {"duties": (a_duty("greet"),)}),
    "type": (
        f"{__name__}.Greeter",
        {"provides": {Greeter: make_greeter}},
        {"provides": {Greeter: make_greeter}},
    ),
    "module": ("a.models", {"models": ("a.models",)}, {"tasks": ("a.models",)}),
}


@pytest.mark.parametrize("what", DOUBLE_CLAIMS)
def test_two_components_that_claim_one_name_are_refused_and_named(what):
    name, one, other = DOUBLE_CLAIMS[what]
    components = [Component(name="one", **one), Component(name="other", **other)]

    with pytest.raises(ValueError, match="is claimed by two components") as refused:
        Composition(components)

    assert str(refused.value) == (
        f"the {what} {name!r} is claimed by two components, 'one' and 'other':"
        " rename it in one of them"
    )


def test_two_components_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"^the name 'one' is claimed by two components"):
        Composition([Component(name="one"), Component(name="one")])


def test_engine_settings_cannot_be_claimed_again():
    with pytest.raises(ValueError, match=r"^the setting 'database_url' .* 'ledger' and 'other'"):
        Composition([ledger, Component(name="other", settings=DatabaseSettings)])


def test_every_component_may_use_the_default_queue():
    composition = Composition(
        [Component(name="one", kinds=(Bow,)), Component(name="other", kinds=(PruneJobs,))]
    )

    assert composition.queues == ["default"]


def test_component_may_say_that_it_shares_a_queue_of_another():
    one = Component(name="one", kinds=(Greet,))
    other = Component(name="other", kinds=(Wave,), shared_queues=("greetings",))

    assert Composition([one, other]).queues == ["default", "greetings"]


def test_component_may_have_one_probe_for_each_broker():
    one = Probe("broker", find_nothing, "nothing", broker="redis")
    other = Probe("broker", find_nothing, "nothing", broker="amqp")

    assert Composition([Component(name="one", probes=(one, other))]).probes == [one, other]


def test_queues_are_those_of_the_kinds():
    composition = Composition([ledger, Component(name="greetings", kinds=(Greet, Bow))])

    assert composition.queues == ["default", "greetings"]


def test_composition_collects_what_its_components_contribute_in_their_order():
    probe, duty = a_probe("greeter"), a_duty("greet")

    def read(_runtime, _session):
        return [Gauge("greetings", "Greetings.", (), {(): 1})]

    one = Component(name="one", kinds=(Bow,), tasks=("one.tasks",), probes=(probe,))
    other = Component(name="other", tasks=("other.tasks",), metrics=(read,), duties=(duty,))
    composition = Composition([one, other])

    assert composition.kinds == {"component.bow": Bow}
    assert composition.tasks == ["one.tasks", "other.tasks"]
    assert (composition.probes, composition.metrics, composition.duties) == (
        [probe],
        [read],
        [duty],
    )


def test_schedule_is_that_of_all_components():
    def make_schedule(_runtime):
        return [Entry("greet", Bow(), timedelta(hours=1), UTC)]

    one = Component(name="one", kinds=(Bow,), schedule=make_schedule)
    composition = Composition([ledger, one])
    entries = composition.schedule(composition.runtime(_env_file=None))

    assert [entry.name for entry in entries] == ["jobs.prune", "greet"]


def test_entry_of_a_kind_that_no_component_declares_is_refused_at_start():
    def make_schedule(_runtime):
        return [Entry("greet", Bow(), timedelta(hours=1), UTC)]

    composition = Composition([ledger, Component(name="one", schedule=make_schedule)])

    with pytest.raises(ValueError, match="entry 'greet' of the component 'one'"):
        composition.runtime(_env_file=None)


def test_two_entries_of_one_name_are_refused_at_start():
    def make_schedule(_runtime):
        return [Entry("jobs.prune", Bow(), timedelta(hours=1), UTC)]

    one = Component(name="one", kinds=(Bow,), schedule=make_schedule)

    with pytest.raises(ValueError, match=r"entry 'jobs\.prune' of the component 'one'"):
        Composition([ledger, one]).runtime(_env_file=None)


def test_component_that_is_listed_twice_is_refused():
    with pytest.raises(ValueError, match="the name 'ledger' is claimed"):
        Composition([ledger, ledger])


def test_kind_that_a_component_names_twice_is_refused():
    class BowAgain(JobArgs, kind=Bow.policy.kind):
        pass

    with pytest.raises(ValueError, match=r"the kind 'component\.bow' is claimed"):
        Composition([Component(name="one", kinds=(Bow, BowAgain))])


def test_kind_of_another_composition_is_refused_by_a_runtimes_session(tmp_path):
    Component(name="one", kinds=(Bow,))
    runtime = Composition([ledger]).runtime(
        database_url=f"sqlite:///{tmp_path}/test.db", _env_file=None
    )
    with runtime.unit_of_work() as session, pytest.raises(InvalidInput):
        enqueue(session, Bow(), now=NOW)
    runtime.close()


def test_component_declares_its_kinds(session):
    class Late(JobArgs, kind="component.late", queue="nights"):
        pass

    with pytest.raises(InvalidInput) as refused:
        enqueue(session, Late(), now=NOW)
    Component(name="late", kinds=(Late,))

    assert enqueue(session, Late(), now=NOW) is not None
    assert str(refused.value) == (
        "no component declares the kind 'component.late', so nothing works on its queue 'nights':"
        " add Late to `kinds` of its component"
    )


def test_sections_are_the_settings_of_all_components_once_the_engine_first():
    composition = Composition([Component(name="greetings", settings=GreetingSettings), ledger])

    assert composition.sections == [Settings, GreetingSettings]


def test_defaults_of_the_engines_settings_are_those_of_the_project(monkeypatch):
    composition = Composition([replace(ledger, settings=ShopSettings)])

    assert composition.sections == [ShopSettings]
    runtime = composition.runtime(_env_file=None)
    assert runtime[Settings].project_name == "my-shop"
    assert runtime.sections == [runtime.settings]
    monkeypatch.setenv("PROJECT_NAME", "other-shop")
    assert composition.runtime(_env_file=None).settings.project_name == "other-shop"


def test_entry_points_are_the_commands_of_the_ledger(root):
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))

    assert pyproject["project"]["entry-points"]["celery.commands"] == dict(ledger.commands)


def test_table_branches_name_the_branch_of_every_table_of_the_components():
    composition = Composition([ledger, probe_app.probe])

    assert composition.table_branches() == {
        **dict.fromkeys(
            (
                "job",
                "job_log",
                "job_start",
                "worker",
                "paused_queue",
                "paused_entry",
                "schedule",
                "desk_action",
            ),
            "nightshift",
        ),
        "effect": "project",
    }


def test_runtime_reads_the_settings_of_every_component_and_values_win(monkeypatch):
    monkeypatch.setenv("GREETING", "Good morning")
    monkeypatch.setenv("PUBLIC_URL", "https://school.example")
    composition = Composition([ledger, Component(name="one", settings=GreetingSettings)])

    runtime = composition.runtime(_env_file=None, public_url="https://other.example")

    assert runtime[GreetingSettings].greeting == "Good morning"
    assert runtime[Settings].public_url == "https://other.example"
    assert runtime[Settings] is runtime.settings
    assert [type(section) for section in runtime.sections] == [Settings, GreetingSettings]


def test_runtime_knows_the_composition_its_kinds_and_what_is_given():
    composition, greeter = Composition([ledger]), Greeter()

    runtime = composition.runtime(_env_file=None, given={Greeter: greeter})

    assert runtime[Composition] is composition
    assert runtime.kinds == {"jobs.prune": PruneJobs, "jobs.act": ActOnJobs}
    assert runtime[Greeter] is greeter


def test_runtime_provides_what_the_components_provide():
    composition = Composition([Component(name="one", provides={Greeter: make_greeter})])

    assert isinstance(composition.runtime(_env_file=None)[Greeter], Greeter)


def test_runtime_names_the_setting_that_is_wrong():
    with pytest.raises(InvalidInput, match=r"^RELAY_BUFFER: "):
        Composition([ledger]).runtime(_env_file=None, relay_buffer=0)


def test_routes_are_loaded_and_given_the_runtime():
    component = Component(
        name="one", settings=GreetingSettings, routes=f"{__name__}:{make_routes.__name__}"
    )
    composition = Composition([ledger, component])

    routes = composition.routes(composition.runtime(_env_file=None, greeting="ahoy"))

    assert [route.path for route in routes] == ["/greet/ahoy"]


def show_greeting(runtime):
    return runtime[GreetingSettings].greeting


def test_front_returns_what_the_components_show():
    shown = Component(
        name="one", settings=GreetingSettings, front=f"{__name__}:{show_greeting.__name__}"
    )
    composition = Composition([ledger, shown])

    assert composition.front(composition.runtime(_env_file=None, greeting="ahoy")) == ["ahoy"]


def test_load_returns_what_a_path_names():
    assert load("nightshift.runtime:Runtime") is Runtime
