"""The Celery app of a project: `App("project.celery", Composition([...]))`.

`celery -A project worker|beat|flower` and the commands beside them find it in the project's
celery.py. It holds what a process of this project needs: the components and the runtime.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from celery.app.amqp import AMQP

from nightshift.celery import flower, logs, messages, rabbitbroker, redisbroker, steps, telemetry
from nightshift.celery.configuration import build_configuration
from nightshift.celery.link import Link
from nightshift.celery.patience import Connection
from nightshift.celery.publisher import CALLER_PATIENCE, Publisher
from nightshift.component import Composition
from nightshift.errors import InvalidInput
from nightshift.runtime import Runtime


class _Amqp(AMQP):
    Connection = Connection


def _require_the_folder(name: str, runtime: Runtime) -> None:
    """Raise InvalidInput where the settings' relative paths would lead to other, new files.

    A project's folder is the one with `alembic.ini`. An installed project without it has none.
    """
    spec = None if name == "__main__" else find_spec(name)
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).resolve().parents[name.count(".")]
    if folder == Path.cwd() or not (folder / "alembic.ini").exists():
        return
    if names := [one for section in runtime.sections for one in section.relative_paths()]:
        raise InvalidInput(
            f"{Path.cwd()} is not the folder of this project, in which {', '.join(names)} name"
            f" files: cd {folder}, or name them by absolute paths"
        )


class App(Celery):
    """A Celery app with a ledger.

    `name` is the module that holds the app; a worker's keeper imports it. `values` are settings
    that override the environment's. Raises ValueError when two components claim the same name, and
    InvalidInput when a setting is wrong, or names files of another folder than this one.
    """

    amqp_cls = _Amqp

    def __init__(self, name: str, composition: Composition, **values: Any) -> None:
        super().__init__(name)
        self.clock = messages.Clock()
        self.composition = composition
        # Whether a worker may run without prefork, with half of the promises. Only a test's may.
        self.any_pool = False
        # The id of the worker that this process is, or was forked from.
        self.worker_id: UUID = uuid4()
        # To the keeper of that worker; other processes have none.
        self.keeper: Link | None = None
        self.runtime: Runtime = composition.runtime(
            publisher=Publisher(self, CALLER_PATIENCE),
            trace=telemetry.read_trace_headers,
            given={App: self},
            **values,
        )
        _require_the_folder(name, self.runtime)
        self.conf.update(build_configuration(self.runtime.settings, composition))
        # Celery's own ends the worker at a foreign message or a refused queue.
        self.conf.worker_consumer = "nightshift.celery.consumer:Consumer"
        logs.install(self.runtime.settings)
        redisbroker.install()
        rabbitbroker.install()
        steps.install(self)
        flower.install(self.runtime.settings)
