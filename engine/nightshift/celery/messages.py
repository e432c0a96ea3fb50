"""What a message must be to be handled. A queue may hold anything: it is input from outside.

A message that is not ours is reported in one line and dropped. The row in the ledger decides what
runs; a message only says which row.
"""

import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from kombu.clocks import LamportClock
from kombu.utils.json import dumps

from nightshift.jobs.args import Kinds, Policy

logger = logging.getLogger(__name__)

LONGEST_SHOWN = 200
LONGEST_ID = 200
LONGEST_REPRESENTATION = 2_000
LONGEST_TIME_LIMIT = 366 * 86_400

# What the parsing of JSON raises: invalid UTF-8 is a ValueError too; kombu's own decoding of dates
# and the like raises the rest.
UNPARSABLE = (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)

# Levels of lists and mappings in a message's headers. Deeper ones cannot be given to a child.
DEEPEST = 10

# The header of a message that was compressed, and the encodings that do not expand: a small message
# would fill the worker's memory.
COMPRESSION = "compression"
ENCODINGS = (None, "", "utf-8", "utf8", "us-ascii", "binary")

KEPT_PROPERTIES = ("correlation_id", "delivery_info", "delivery_tag", "body_encoding", "priority")

MOST_TICKS = 2**53

IDS = "job_ids"

# Jobs that a message may name. And the seconds after which, of several, no other is started: the
# message's time limit is so much longer than the kind's.
MOST_IDS = 1_000
BUNDLE_SECONDS = 1.0


class UnacceptableError(Exception):
    """The message is not one that this software sends."""


def report_dropped(where: str, error: BaseException, what: Any) -> None:
    """Log in one line that a message was dropped, and why."""
    reason = f"{type(error).__name__}: {str(error)[:LONGEST_SHOWN]!r}"
    try:
        shown = repr(what)[:LONGEST_SHOWN]
    except RecursionError:
        shown = "(nested too deep to be shown)"
    logger.error("a message on %.100r was dropped: %s: %s", where, reason, shown)


def read_job_ids(kwargs: Mapping[str, Any], task_id: str) -> list[UUID]:
    """Return the jobs that a message names.

    A message of the release before names its job only as the task's id, and its `kwargs` are the
    job's arguments, which may have any names. Raises ValueError for an invalid id.
    """
    ids = kwargs.get(IDS)
    if len(kwargs) == 1 and isinstance(ids, list) and task_id in ids:
        if len(ids) > MOST_IDS:
            raise UnacceptableError("it names too many jobs")
        return [UUID(one) for one in ids]
    return [UUID(task_id)]


class Clock(LamportClock):
    """The logical clock of remote control and events, which a message cannot break.

    A message may set it ahead; a number of 4,000 digits could be sent in no message.
    """

    def adjust(self, other: Any) -> int:
        believable = type(other) is int and other < MOST_TICKS
        return int(super().adjust(other) if believable else self.forward())


class DroppingTransport:
    """The part of a virtual transport that drops a message which its consumer cannot handle."""

    connection_errors: tuple[type[BaseException], ...]
    channel_errors: tuple[type[BaseException], ...]

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            require_envelope(message)
            super()._deliver(message, queue)  # type: ignore[misc]
        except Exception as error:
            if is_lost(error, self):
                raise
            report_dropped(queue, error, message)


def is_lost(error: BaseException, transport: Any) -> bool:
    """Return True for an error of the connection, which only another connection can end."""
    # kombu counts every KeyError as a lost connection to Redis; here it is one of a bad message.
    errors = (*transport.connection_errors, *transport.channel_errors)
    return isinstance(error, errors) and not isinstance(error, KeyError)


def require_envelope(raw: Any) -> None:
    """Raise UnacceptableError unless a broker's item has the form that kombu gives a message."""
    if not isinstance(raw, dict) or not isinstance(raw.get("properties"), dict):
        raise UnacceptableError("it has no properties")
    properties, headers = raw["properties"], raw.get("headers")
    delivery = properties.get("delivery_info")
    if not isinstance(headers, dict):
        raise UnacceptableError("it has no headers")
    if not isinstance(delivery, dict) or not all(
        isinstance(text, str)
        for text in (
            properties.get("delivery_tag"), delivery.get("exchange"), delivery.get("routing_key")
        )
    ):  # fmt: skip
        raise UnacceptableError("it does not say how it was sent")
    if not isinstance(raw.get("body"), str):
        raise UnacceptableError("its body is not text")
    refuse_expanding(headers, raw.get("content-encoding"))


def refuse_expanding(headers: Mapping[str, Any], encoding: Any) -> None:
    """Raise UnacceptableError for a message that is larger once it is decoded."""
    if COMPRESSION in headers or encoding not in ENCODINGS:
        raise UnacceptableError("it is compressed")


def prepare(message: Any, kinds: Kinds) -> None:
    """Make a received message safe to handle.

    Of a message for a job only the kind and the ids stay: not its time limits, ETA, callbacks or
    chord. Raises UnacceptableError for a message that cannot be handled, and what its decoding
    raises.
    """
    headers = message.headers
    if not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        raise UnacceptableError("it names no task")
    task_id = headers.get("id")
    if not isinstance(task_id, str) or len(task_id) > LONGEST_ID or not task_id.isprintable():
        raise UnacceptableError("it has no id")
    args, kwargs, embedded = message.payload
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embedded, dict):
        raise UnacceptableError("its body is not a task's")
    if headers["task"] in kinds:
        _reduce(message, kinds[headers["task"]].policy, read_job_ids(kwargs, task_id))
        return
    limits = headers.get("timelimit") or (None, None)
    if not isinstance(limits, list | tuple) or len(limits) != 2 or not all(map(_is_limit, limits)):  # noqa: PLR2004 - hard and soft
        raise UnacceptableError("its time limits are not numbers of seconds")
    if not _is_shallow([headers, message.properties], DEEPEST):
        raise UnacceptableError("its headers are nested too deep")
    for name in ("callbacks", "errbacks", "chain"):
        signatures = embedded.get(name) or []
        if not isinstance(signatures, list) or not all(isinstance(s, dict) for s in signatures):
            raise UnacceptableError(f"its {name} are not tasks")
    if not isinstance(embedded.get("chord"), dict | None):
        raise UnacceptableError("its chord is not a task")


def _reduce(message: Any, policy: Policy, job_ids: list[UUID]) -> None:
    """Replace the headers and the body of a message for jobs by the least that Celery needs."""
    task_id = str(UUID(message.headers["id"]))
    shown = message.headers.get("kwargsrepr")
    message.headers = {
        "task": policy.kind,
        "id": task_id,
        "root_id": task_id,
        "argsrepr": "()",
        "kwargsrepr": shown[:LONGEST_REPRESENTATION] if isinstance(shown, str) else "",
        "ignore_result": True,
    }
    if len(job_ids) > 1:
        message.headers["timelimit"] = [policy.time_limit.total_seconds() + BUNDLE_SECONDS, None]
    # What a broker needs to put the message back stays.
    message.properties = {
        name: value for name, value in message.properties.items() if name in KEPT_PROPERTIES
    }
    if not _is_shallow(message.properties, DEEPEST):
        raise UnacceptableError("its properties are nested too deep")
    payload = [[], {IDS: list(map(str, job_ids))}, {}]
    message.body, message._decoded_cache = dumps(payload), payload  # noqa: SLF001 - kombu has no other way
    message.content_type, message.content_encoding = "application/json", "utf-8"


def _is_limit(value: Any) -> bool:
    if value is None:
        return True
    return type(value) in (int, float) and 0 < value <= LONGEST_TIME_LIMIT


def _is_shallow(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return True
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in value)
