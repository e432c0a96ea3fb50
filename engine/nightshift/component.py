"""Component: what one part of a project contributes. Composition: all parts, checked.

A component names its models, kinds of job, task modules, settings, schedule, probes, metrics,
keeper duties, routes and commands. No other file names them: one line in the project's list of
components adds or removes a part.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from importlib import import_module
from typing import Any

from nightshift.database import Base, Session
from nightshift.errors import InvalidInput
from nightshift.jobs.args import DECLARED, JobArgs, Kinds
from nightshift.jobs.schedule import Entry
from nightshift.runtime import Provider, Publisher, Runtime
from nightshift.settings import ComponentSettings, Settings, read_sections

DEFAULT_QUEUE = "default"


class Status(StrEnum):
    """What a probe answers: each is worse than the one before."""

    OK = "ok"
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


# An exit code and a metric say the same by numbers.
SEVERITY = {Status.OK: 0, Status.SKIP: 0, Status.WARN: 1, Status.FAIL: 2}

Answer = tuple[Status, str]


@dataclass(frozen=True, slots=True)
class Probe:
    """One question about an installation, which `doctor`, `/ready` and the metrics ask.

    `run` gets a session for reading, and returns a status and what it found; when it raises, this
    probe fails. `remedy`: what to do when it warns or fails; `contained`: the same for an
    installation in containers, where that differs. `ready`: the web server cannot serve
    while it fails, so a load balancer sends requests elsewhere. `told`: `/ready` tells its status,
    and decides nothing by it. `broker`: the scheme of the only broker that it is for. `ledger`: it
    reads the database, so it is skipped while the database is away.
    """

    name: str
    run: Callable[[Runtime, Session], Answer]
    remedy: str
    ready: bool = False
    told: bool = False
    broker: str = ""
    ledger: bool = True
    contained: str = ""


@dataclass(frozen=True, slots=True)
class Gauge:
    """One metric. A key of `values` is a tuple of the labels' values, in the order of `labels`."""

    name: str
    text: str
    labels: tuple[str, ...]
    values: Mapping[Any, float]


@dataclass(frozen=True, slots=True)
class Duty:
    """A function that every keeper calls every `every`; where that is None, as often as the relay.

    Several keepers may run it at once. When it raises, the keeper logs that, and calls it again.
    """

    name: str
    run: Callable[[Runtime], None]
    every: timedelta | None = None


def _no_entries(_runtime: Runtime) -> Sequence[Entry]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Component:
    """What one part of a project contributes.

    `models`: the modules of its tables. `migrations`: the label of the Alembic branch that holds
    them. `shared_queues`: queues of other components that its kinds use too. `tasks`: the modules
    with its jobs' bodies. `provides`: by type, a function of the runtime that makes what
    `runtime[Type]` returns. `routes`: `module:function`, which takes the runtime and returns
    Starlette's routes. `front`: `module:function`, which takes the runtime and returns what the
    component shows on the web server's first page in development. `desk`: `module:function`, which
    takes a `nightshift.desk.Desk` and returns the `Part` of it that is the component's.
    `commands`: by name, `module:command`; the project's pyproject.toml has the same lines as entry
    points, by which Celery finds them. `after_restore`: commands that make again what the component
    keeps outside of the database, run when a backup was restored; `{replaced}` in one stands for
    the name of the database that was replaced (of SQLite, its file), which is still there. `needs`:
    by what a process is (`worker`, `web` or `desk`), the secrets among its settings without which
    that process cannot work.
    """

    name: str
    models: tuple[str, ...] = ()
    migrations: str = "project"
    kinds: tuple[type[JobArgs], ...] = ()
    shared_queues: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    settings: type[ComponentSettings] | None = None
    schedule: Callable[[Runtime], Sequence[Entry]] = _no_entries
    provides: Mapping[type, Provider] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    metrics: tuple[Callable[[Runtime, Session], Iterable[Gauge]], ...] = ()
    duties: tuple[Duty, ...] = ()
    routes: str = ""
    front: str = ""
    desk: str = ""
    commands: Mapping[str, str] = field(default_factory=dict)
    after_restore: tuple[str, ...] = ()
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Let `enqueue` accept this component's kinds."""
        DECLARED.update(self.kinds)


class Composition:
    """The components of a project. Raises ValueError when two of them claim the same name.

    A kind, setting, command, probe, duty, provided type, or module of models or tasks belongs to
    one component. A queue belongs to the component whose kinds use it; other components that use
    it list it in their `shared_queues`.
    """

    def __init__(self, components: Iterable[Component]) -> None:
        self.components = tuple(components)
        for what, claims in _CLAIMS.items():
            self._refuse_double_claims(what, claims)
        self.kinds: Kinds = {kind.policy.kind: kind for kind in self._all("kinds")}
        self.queues = sorted({DEFAULT_QUEUE, *(kind.policy.queue for kind in self.kinds.values())})
        self.tasks: list[str] = self._all("tasks")
        self.probes: list[Probe] = self._all("probes")
        self.metrics: list[Any] = self._all("metrics")
        self.duties: list[Duty] = self._all("duties")
        self.after_restore: list[str] = self._all("after_restore")

    def _all(self, field_name: str) -> list[Any]:
        return [one for component in self.components for one in getattr(component, field_name)]

    def _refuse_double_claims(
        self, what: str, claims: Callable[[Component], Iterable[str]]
    ) -> None:
        owners: dict[str, str] = {}
        for component in self.components:
            for name in claims(component):
                if name in owners:
                    raise ValueError(
                        f"the {what} {name!r} is claimed by two components, {owners[name]!r} and"
                        f" {component.name!r}: rename it in one of them"
                    )
                owners[name] = component.name

    @property
    def sections(self) -> list[type[ComponentSettings]]:
        """The classes of settings, the engine's first.

        That is `Settings`, or a subclass of it, with other defaults, that a component declares.
        """
        own = [one.settings for one in self.components if one.settings is not None]
        engine = next((one for one in own if issubclass(one, Settings)), Settings)
        return list(dict.fromkeys([engine, *own]))

    def schedule(self, runtime: Runtime) -> list[Entry]:
        """Return the recurring jobs.

        Raises ValueError for an entry whose name is taken, or whose kind no component declares:
        it would stop the others.
        """
        entries: dict[str, Entry] = {}
        for component in self.components:
            for entry in component.schedule(runtime):
                if entry.job.policy.kind not in self.kinds or entry.name in entries:
                    raise ValueError(
                        f"the schedule's entry {entry.name!r} of the component {component.name!r}"
                        " needs a name of its own, and a kind that a component declares; its kind"
                        f" is {entry.job.policy.kind!r}"
                    )
                entries[entry.name] = entry
        return list(entries.values())

    def routes(self, runtime: Runtime) -> list[Any]:
        """Import and return the web server's routes."""
        return [
            route
            for component in self.components
            if component.routes
            for route in load(component.routes)(runtime)
        ]

    def require_secrets(self, runtime: Runtime, process: str) -> None:
        """Raise InvalidInput for a secret that this process needs and was not given."""
        for component in self.components:
            for name in component.needs.get(process, ()):
                section = next(one for one in runtime.sections if name in type(one).model_fields)
                if not getattr(section, name).get_secret_value():
                    raise InvalidInput(
                        f"{name.upper()}: is missing, and the {process} needs it"
                        f" ({type(section).model_fields[name].description})"
                    )

    def front(self, runtime: Runtime) -> list[Any]:
        """Import the functions that show something on the first page; return what they return."""
        return [load(one.front)(runtime) for one in self.components if one.front]

    def table_branches(self) -> dict[str, str]:
        """Import the models and return, by table, the Alembic branch that holds it."""
        branches = {}
        for component in self.components:
            for module in component.models:
                import_module(module)
                for mapper in Base.registry.mappers:
                    if mapper.class_.__module__ == module:
                        branches[mapper.class_.__tablename__] = component.migrations
        return branches

    def runtime(
        self,
        *,
        publisher: Publisher | None = None,
        trace: Callable[[], dict[str, str] | None] | None = None,
        given: Mapping[type, Any] | None = None,
        **values: Any,
    ) -> Runtime:
        """Read every component's settings and return a runtime with them.

        `runtime[Composition]` is this object; `given` adds others, by their types. `values` are
        settings that override the environment's; a test passes them, with `_env_file=None`. Raises
        InvalidInput, which names each setting that is wrong.
        """
        sections = read_sections(self.sections, **values)
        settings = sections[self.sections[0]]
        assert isinstance(settings, Settings)
        runtime = Runtime(
            settings,
            kinds=self.kinds,
            sections=sections,
            given={Composition: self, **(given or {})},
            providers={of: how for one in self.components for of, how in one.provides.items()},
            publisher=publisher,
            trace=trace,
        )
        self.schedule(runtime)  # refuses what beat could not start
        return runtime


def load(path: str) -> Any:
    """Import a module and return its attribute, both named by `module:attribute`."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _own_settings(component: Component) -> Iterator[str]:
    if component.settings is not None:
        yield from component.settings.model_fields.keys() - ComponentSettings.model_fields.keys()


def _queues(component: Component) -> set[str]:
    used = {kind.policy.queue for kind in component.kinds}
    return used - {DEFAULT_QUEUE, *component.shared_queues}


_CLAIMS: dict[str, Callable[[Component], Iterable[str]]] = {
    "name": lambda one: [one.name],
    "kind": lambda one: [kind.policy.kind for kind in one.kinds],
    "queue": _queues,
    "setting": _own_settings,
    "command": lambda one: one.commands,
    "probe": lambda one: {probe.name for probe in one.probes},
    "duty": lambda one: [duty.name for duty in one.duties],
    "type": lambda one: [f"{of.__module__}.{of.__qualname__}" for of in one.provides],
    "module": lambda one: {*one.models, *one.tasks},
}
