"""One line per happening, for people or for machines, with the task's name and the job's id on every line written while it runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import signals
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from services.jobs.args import KINDS

_current: ContextVar[tuple[str, str] | None] = ContextVar("current", default=None)

CONSOLE = "%(asctime)s %(levelname)-7s %(process)d %(message)s%(job_suffix)s"
JSON = ("levelname", "name", "process", "message")


@contextmanager
def job_context(task: str, job: str) -> Iterator[None]:
    """Put the task's name and the job's id on every line that is logged inside."""
    token = _current.set((task, job))
    try:
        yield
    finally:
        _current.reset(token)


def install() -> None:
    """Make Celery leave logging to us. Commands other than worker and beat log as their own output says."""
    signals.setup_logging.connect(_setup, weak=False)


def setup(log_format: str, level: int | str) -> None:
    """Log to standard error in the given format."""
    handler = logging.StreamHandler()
    handler.addFilter(_add_job)
    handler.addFilter(_said_by_the_job)
    if log_format == "json":
        handler.setFormatter(_json())
    else:
        handler.setFormatter(logging.Formatter(CONSOLE))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line each is enough of these.
    for noisy in ("celery.worker.strategy", "celery.beat", "kombu", "amqp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _json() -> JsonFormatter:
    reserved = [*RESERVED_ATTRS, "job_suffix", "data"]
    return JsonFormatter(
        list(JSON), timestamp="time", rename_fields={"levelname": "level", "name": "logger"}, reserved_attrs=reserved
    )


def _setup(loglevel: int | str | None = None, **_: Any) -> None:
    from project.settings import Settings  # noqa: PLC0415 - read when logging begins, not when this module is imported

    settings = Settings()
    # The command line's level, where it was given: Celery's default for it is WARNING.
    chosen = loglevel if loglevel and loglevel not in ("WARNING", logging.WARNING) else settings.log_level
    setup(settings.log_format, chosen)


def _add_job(record: logging.LogRecord) -> bool:
    current = _current.get()
    record.job_suffix = ""
    if current is not None:
        record.task, record.job = current
        record.job_suffix = f" task={current[0]} job={current[1]}"
    return True


def _said_by_the_job(record: logging.LogRecord) -> bool:
    # project/task.py writes a job's own lines; Celery's would say the same again. Plain tasks keep Celery's.
    return not (record.name == "celery.app.trace" and getattr(record, "data", {}).get("name") in KINDS)
