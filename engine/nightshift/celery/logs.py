"""Logs: one line for each event, for people or for machines.

Every line that is written while a job runs has the task's name and the job's id.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from celery import current_app, signals
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from nightshift.celery import sentry
from nightshift.jobs.claims import LONGEST_TRACEBACK
from nightshift.settings import Settings

# For `extra`, of a line about what is tried again and again: equal ones are logged once in
# SELDOM_SECONDS, with how many there were. A database that is away for a night is no reason for
# 30,000 lines.
SELDOM = {"seldom": True}
SELDOM_SECONDS = 60.0
MOST_SELDOM = 100

_current: ContextVar[tuple[str, str] | None] = ContextVar("current", default=None)


class _Short:
    """A formatter whose lines are cut: an error of 100 MB was logged whole."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        text: str = super().formatException(ei)  # type: ignore[misc]
        return text[-LONGEST_TRACEBACK:]


class _Console(_Short, logging.Formatter):
    # UTC, as in `--json`: lines of several machines are compared.
    converter = staticmethod(time.gmtime)
    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = _cut(record.message)
        return super().formatMessage(record)


class _Json(_Short, JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        log_data["message"] = _cut(str(log_data.get("message", "")))
        return super().process_log_record(log_data)


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST_TRACEBACK else f"{message[:LONGEST_TRACEBACK]}…"


CONSOLE = _Console("%(asctime)s %(levelname)-7s %(process)d %(message)s%(job_suffix)s")
JSON = _Json(
    ["levelname", "name", "process", "message"],
    timestamp="time",
    rename_fields={"levelname": "level", "name": "logger"},
    reserved_attrs=[*RESERVED_ATTRS, "job_suffix", "data", "seldom"],
)


@contextmanager
def job_context(task: str, job: str) -> Iterator[None]:
    """Put the task's name and the job's id on every line that is logged inside."""
    token = _current.set((task, job))
    try:
        yield
    finally:
        _current.reset(token)


def install(settings: Settings) -> None:
    """Let `setup` configure the logs of worker and beat. Celery configures other commands' logs.

    Of several apps in a process, the settings of the newest count.
    """
    signals.setup_logging.disconnect(dispatch_uid=__name__)
    signals.setup_logging.connect(partial(_setup, settings), weak=False, dispatch_uid=__name__)


def setup(log_format: str, level: int | str) -> None:
    """Log to standard error in the given format."""
    handler = logging.StreamHandler()
    handler.addFilter(_add_job)
    handler.addFilter(_drop_repeated)
    handler.addFilter(_Seldom())
    handler.setFormatter(JSON if log_format == "json" else CONSOLE)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Only warnings of these: they log every message.
    for noisy in ("celery.worker.strategy", "celery.beat", "kombu", "amqp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _setup(settings: Settings, loglevel: int | str | None = None, **_: Any) -> None:
    # The command line's level, where it is given. Celery passes WARNING where it is not.
    chosen = (
        loglevel
        if loglevel and loglevel not in ("WARNING", logging.WARNING)
        else settings.log_level
    )
    setup(settings.log_format, chosen)
    sentry.start(settings)


def _add_job(record: logging.LogRecord) -> bool:
    current = _current.get()
    record.job_suffix = ""
    if current is not None:
        record.task, record.job = current
        record.job_suffix = f" task={current[0]} job={current[1]}"
    return True


class _Seldom:
    """Drops a line with SELDOM while an equal one is not SELDOM_SECONDS old."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}

    def __call__(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "seldom"):
            return True
        line, now = record.getMessage(), time.monotonic()
        key = (record.name, line)
        logged_at, dropped = self._logged.get(key, (-SELDOM_SECONDS, 0))
        if now - logged_at < SELDOM_SECONDS:
            self._logged[key] = (logged_at, dropped + 1)
            return False
        if len(self._logged) >= MOST_SELDOM:
            self._logged.clear()
        self._logged[key] = (now, 0)
        if dropped:
            record.msg, record.args = f"{line} ({dropped} times more since then)", ()
        return True


def _drop_repeated(record: logging.LogRecord) -> bool:
    # task.py logs a job's start and end, so Celery's lines would repeat it. Those of plain tasks
    # stay.
    if record.name != "celery.app.trace":
        return True
    return getattr(record, "data", {}).get("name") not in current_app.composition.kinds
