"""Run the components' probes, for `doctor`, `/ready` and the metrics.

Nothing is written, and no secret is shown.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, create_engine, make_url

from nightshift.component import Answer, Composition, Probe, Status
from nightshift.database import Session
from nightshift.errors import first_line
from nightshift.observe.masks import Mask
from nightshift.runtime import Runtime
from nightshift.settings import Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found. `remedy` is empty unless it warns or fails."""

    probe: str
    status: Status
    detail: str
    remedy: str


def examine(runtime: Runtime) -> list[Finding]:
    """Run every probe that fits the settings, on connections that can only read.

    Probes that read the database are skipped while it is away.
    """
    engine = _open_for_reading(runtime)
    scheme = _broker_scheme(runtime.settings)
    probes = [one for one in runtime[Composition].probes if one.broker in ("", scheme)]
    try:
        return run_probes(runtime, probes, lambda: Session(engine))
    finally:
        engine.dispose()


def is_contained(settings: Settings) -> bool:
    """Return whether this is a container in production. A developer's may hold anything."""
    signs = (Path("/.dockerenv"), Path("/run/.containerenv"))
    there = any(sign.exists() for sign in signs) or "KUBERNETES_SERVICE_HOST" in os.environ
    return there and settings.environment == "production"


def run_probes(
    runtime: Runtime,
    probes: Iterable[Probe],
    open_session: Callable[[], AbstractContextManager[Session]],
) -> list[Finding]:
    """Run these probes. One that raises fails; the others still run."""
    found: list[Finding] = []
    contained = is_contained(runtime.settings)
    for probe in probes:
        if probe.ledger and any(
            one.probe == "database" and one.status == Status.FAIL for one in found
        ):
            status, detail = Status.SKIP, "the database cannot be read"
        else:
            status, detail = _run(probe, runtime, open_session)
        remedy = probe.contained if contained and probe.contained else probe.remedy
        if status not in (Status.WARN, Status.FAIL):
            remedy = ""
        found.append(Finding(probe.name, status, detail, remedy))
    return found


def _run(
    probe: Probe,
    runtime: Runtime,
    open_session: Callable[[], AbstractContextManager[Session]],
) -> Answer:
    try:
        with open_session() as session:  # it connects when it is first used
            return probe.run(runtime, session)
    except Exception as error:  # noqa: BLE001 - any exception is this probe's failure
        return Status.FAIL, f"{type(error).__name__}: {Mask(runtime).settings(first_line(error))}"


def _open_for_reading(runtime: Runtime) -> Engine:
    url = make_url(runtime.settings.database_url)
    if url.get_backend_name() == "sqlite":
        path = f"{Path(url.database or '').absolute().as_uri()}?mode=ro"
        connect = lambda: sqlite3.connect(path, uri=True, check_same_thread=False)  # noqa: E731
        return create_engine(url, creator=connect)
    return runtime.make_engine().execution_options(postgresql_readonly=True)


def _broker_scheme(settings: Settings) -> str:
    scheme = settings.broker_url.partition(":")[0]
    # The same brokers over TLS.
    return {"rediss": "redis", "amqps": "amqp"}.get(scheme, scheme)
