"""A job's arguments, and the policy by which jobs of that kind run: declared in one class."""

import hashlib
import json
import math
import random
import re
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError
from pydantic_core import to_jsonable_python

from nightshift.errors import InvalidInput

# The kinds that components of this process have declared. A process without components (a web
# application that only enqueues) has none, so it cannot know which kinds are declared elsewhere.
DECLARED: set[type["JobArgs"]] = set()

# Postgres stores no NUL in a text, and UTF-8 has no lone surrogates.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# Python neither writes nor reads a number of more digits as text.
MOST_DIGITS = 4_300
TOO_LONG = 10**MOST_DIGITS

# What pydantic raises for a value that it cannot write.
NOT_JSON = (ValueError, TypeError, OverflowError, RecursionError)

# Any day: of times of day with a zone, the instants on one day are compared.
DAY = datetime(2000, 1, 1, tzinfo=UTC)

# The widths of the ledger's columns.
LONGEST_KIND, LONGEST_QUEUE = 100, 50
PRIORITIES = range(10)

# Starts are kept for as long as any rate may count them.
LONGEST_RATE = timedelta(days=366)

# Postgres keeps 64 savepoints of a transaction at hand; beyond these it is slow.
LARGEST_BUNDLE = 60


@dataclass(frozen=True, slots=True)
class Backoff:
    """Wait `first`, then twice as long after each attempt, but at most `cap`.

    Jitter shortens each wait by up to a half.
    """

    first: timedelta = timedelta(seconds=5)
    cap: timedelta = timedelta(hours=1)

    def delay(self, attempt: int) -> timedelta:
        """Return how long to wait after attempt number `attempt` (from 1)."""
        # In seconds: a timedelta would overflow, while the caller is recording a failure.
        longest = min(
            self.cap.total_seconds(), self.first.total_seconds() * 2.0 ** min(attempt - 1, 30)
        )
        return timedelta(seconds=longest * random.uniform(0.5, 1))


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` starts in any span of `per`, over all workers."""

    count: int
    per: timedelta


@dataclass(frozen=True, slots=True)
class Policy:
    """How jobs of one kind run. Every field is a keyword of the class statement of a JobArgs.

    `kind`: the stable name in the ledger and in messages. `priority`: 0 runs first, 9 last.
    `time_limit`: when a job runs longer, the worker kills its process. `soft_time_limit`: when a
    job runs longer, the body gets an exception. `unique_by`: jobs that are equal in these fields
    are the same job (`()`: all jobs of the kind are; `None`: no two are). `unique_until`: the same
    job may be enqueued again once the first is `done`, or already once it is `started`.
    `unique_period`: jobs that are enqueued in different periods are not the same. `concurrency` (at
    most so many run at once) and `rate` hold over all workers. `bundle`: where many jobs wait, a
    worker runs up to so many of them in one transaction, each in a savepoint; 1: each job has a
    transaction of its own.
    """

    kind: str
    queue: str = "default"
    priority: int = 5
    max_attempts: int = 5
    backoff: Backoff = Backoff()
    time_limit: timedelta = timedelta(seconds=60)
    soft_time_limit: timedelta | None = None
    unique_by: tuple[str, ...] | None = None
    unique_until: Literal["done", "started"] = "done"
    unique_period: timedelta | None = None
    concurrency: int | None = None
    rate: Rate | None = None
    bundle: int = 50

    def __post_init__(self) -> None:
        """Raise ValueError, which names the kind and the keyword, for a value that is absurd."""
        none, rate = timedelta(), self.rate
        valid = {
            "kind": 0 < len(self.kind) <= LONGEST_KIND,
            "queue": 0 < len(self.queue) <= LONGEST_QUEUE,
            "priority": self.priority in PRIORITIES,
            "max_attempts": self.max_attempts >= 1,
            "time_limit": self.time_limit > none,
            "soft_time_limit": none < (self.soft_time_limit or self.time_limit) <= self.time_limit,
            "unique_until": self.unique_until in ("done", "started"),
            "unique_period": self.unique_period is None or self.unique_period > none,
            "concurrency": self.concurrency is None or self.concurrency >= 1,
            "bundle": 1 <= self.bundle <= LARGEST_BUNDLE,
            "rate": rate is None or (rate.count >= 1 and none < rate.per <= LONGEST_RATE),
        }
        for name, is_valid in valid.items():
            if not is_valid:
                wrong = getattr(self, name)
                raise ValueError(f"the kind {self.kind!r} cannot have {name}={wrong!r}")

    @property
    def limited(self) -> bool:
        """Whether only the relay may send jobs of this kind, because it counts them."""
        return self.concurrency is not None or self.rate is not None

    @property
    def bundled(self) -> int:
        """How many jobs of this kind may run in one transaction."""
        # A death in a bundle is not charged: the job runs once more than its attempts say. A soft
        # limit is Celery's, for a whole message. The key that a start frees cannot be taken back.
        alone = (
            self.limited
            or self.max_attempts == 1
            or self.soft_time_limit is not None
            or (self.unique_by is not None and self.unique_until == "started")
        )
        return 1 if alone else self.bundle


class JobArgs(BaseModel):
    """The arguments of one kind of job: ids and scalars, never rows, bodies or secrets.

        class SendWelcome(JobArgs, kind="mail.send_welcome", queue="mail", unique_by=("user_id",)):
            user_id: int

    The class keywords are the fields of `Policy`. Rows outlive releases, so a later release only
    adds fields, each with a default.
    """

    # A misspelt argument is an error where it is given. A row that newer code wrote is read without
    # the fields that this code does not know (`from_row`).
    # A NaN stays one, so that `to_row` finds it; pydantic would write null.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    policy: ClassVar[Policy]

    def __init_subclass__(cls, **_policy: Any) -> None:
        # `type` passes every class keyword to this method. pydantic passes them to the method
        # below, where the fields are known.
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **policy: Any) -> None:
        cls.policy = Policy(**policy)
        left_out = [name for name, field in cls.model_fields.items() if field.exclude]
        if left_out:
            raise TypeError(
                f"{cls.__name__}: the ledger would lose a field with exclude=True:"
                f" {', '.join(left_out)}"
            )
        unknown = set(cls.policy.unique_by or ()) - set(cls.model_fields)
        if unknown:
            raise TypeError(
                f"{cls.__name__}: unique_by names no field: {', '.join(sorted(unknown))}"
            )

    @classmethod
    def from_row(cls, args: dict[str, Any]) -> "JobArgs":
        """Return the arguments that a row holds.

        Raises pydantic.ValidationError when they are no longer valid.
        """
        # As JSON: a strict model takes a text for a date only there.
        return cls.model_validate_json(
            json.dumps(args), extra="ignore", by_alias=False, by_name=True
        )

    def to_row(self) -> dict[str, Any]:
        """Return the arguments as JSON values.

        Raises InvalidInput, which names the field, for a value that a database cannot store.
        """
        row = self._dump()
        wrong = find_unstorable(row)
        if wrong is not None:
            raise InvalidInput(f"{type(self).__name__} cannot be enqueued: {wrong}")
        self._require_the_same(row)
        return row

    def _require_the_same(self, row: dict[str, Any]) -> None:
        """Raise InvalidInput where the body would get other arguments than these."""
        try:
            again = self.from_row(row)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            self._refuse(first["loc"][0] if first["loc"] else "all fields", first["msg"])
        for name in type(self).model_fields:
            if getattr(self, name) != getattr(again, name):
                self._refuse(name, "its JSON form gives another value back")

    def _refuse(self, name: Any, reason: Any) -> NoReturn:
        raise InvalidInput(f"{type(self).__name__} cannot be enqueued: {name}: {reason}")

    def _dump(self, **which: Any) -> dict[str, Any]:
        # By the fields' own names, as `from_row` reads them, whatever aliases callers use.
        try:
            return self.model_dump(mode="json", by_alias=False, **which)
        except NOT_JSON as error:
            self._refuse(next(filter(self._lacks_json, type(self).model_fields), "all"), error)

    def _lacks_json(self, name: str) -> bool:
        try:
            self.model_dump(mode="json", include={name})
        except NOT_JSON:
            return True
        return False

    def unique_key(self, now: datetime) -> str | None:
        """Return the key that two jobs share when they are the same, or None for a kind without.

        Values that are equal in Python give one key in every process, also sets and instants.
        """
        if self.policy.unique_by is None:
            return None
        row = self._dump(include=set(self.policy.unique_by))
        parts: list[Any] = [
            _normalise(getattr(self, name), row[name]) for name in self.policy.unique_by
        ]
        if self.policy.unique_period is not None:
            parts.append(int(now.timestamp() // self.policy.unique_period.total_seconds()))
        digest = hashlib.blake2b(
            json.dumps(parts, sort_keys=True).encode(), digest_size=16
        ).hexdigest()
        return f"{self.policy.kind}:{digest}"


Kinds = Mapping[str, type[JobArgs]]


def _normalise(value: Any, written: Any) -> Any:
    """Return `written`, the JSON form of a value, in a form that all equal values share."""
    if isinstance(value, RootModel):
        value = value.root
    match written:
        case dict() if not isinstance(value, Mapping):
            return {name: _normalise(getattr(value, name, 0), one) for name, one in written.items()}
        case dict() if len(value) == len(written):
            return {
                str(_normalise(key, name)): _normalise(value[key], written[name])
                for key, name in zip(value, written, strict=True)
            }
        case list() if isinstance(value, Collection) and len(value) == len(written):
            items = [_normalise(*pair) for pair in zip(value, written, strict=True)]
            return sorted(items, key=json.dumps) if isinstance(value, set | frozenset) else items
    return _normalise_scalar(value, written)


def _normalise_scalar(value: Any, written: Any) -> Any:
    match value:
        case float() | Decimal():
            return _normalise_number(value)
        case time() if value.utcoffset() is not None:
            return (datetime.combine(DAY.date(), value) - DAY).total_seconds()
        case datetime() if value.tzinfo is not None:
            with suppress(OverflowError):  # the first and the last day there are
                return to_jsonable_python(value.astimezone(UTC))
    return written


def _normalise_number(value: float | Decimal) -> Any:
    """Return an int where the number is one, else a float where it is one, else a text."""
    if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
        return str(value)
    if abs(value) < TOO_LONG and value == int(value):
        return int(value)
    if isinstance(value, float) or (abs(value) < sys.float_info.max and float(value) == value):
        return float(value)
    sign, digits, _ = value.as_tuple()
    return f"{sign} {''.join(map(str, digits)).rstrip('0')} {value.adjusted()}"


def find_unstorable(value: Any) -> str | None:
    """Return where a value holds what JSON or a database cannot store, and why; or None."""
    try:
        return _search_unstorable(value, "")
    except RecursionError:
        return "it is nested too deeply"


def _search_unstorable(value: Any, path: str) -> str | None:
    if isinstance(value, Mapping):
        keys = [(f".{key!a}", key) for key in value]
        inside = keys + [(f".{key}", inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        inside = [(f"[{number}]", inner) for number, inner in enumerate(value)]
    else:
        reason = _explain_unstorable(value)
        return reason and f"{path}: {reason}".lstrip(".: ")
    found = (_search_unstorable(inner, path + where) for where, inner in inside)
    return next(filter(None, found), None)


def _explain_unstorable(value: Any) -> str | None:
    if isinstance(value, str):
        bad = UNSTORABLE.search(value)
        return bad and f"a database cannot store the character {bad[0]!a}"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"JSON has no {value}"
    if isinstance(value, int):
        return None if abs(value) < TOO_LONG else f"a number may have {MOST_DIGITS} digits at most"
    return None if value is None else f"JSON has no {type(value).__name__}"


def require_declared(kind: type[JobArgs], declared: Kinds | None) -> None:
    """Raise InvalidInput for a kind, and so for a queue, that no component declares.

    `declared` are a Runtime's kinds; None stands for those of all components of this process.
    """
    known = DECLARED if declared is None else declared.values()
    if known and kind not in known:
        raise InvalidInput(
            f"no component declares the kind {kind.policy.kind!r}, so nothing works on its queue"
            f" {kind.policy.queue!r}: add {kind.__name__} to `kinds` of its component"
        )


def find_limited_policies(kinds: Kinds) -> list[Policy]:
    """Return the policies of the kinds whose jobs only the relay may send."""
    return [kind.policy for kind in kinds.values() if kind.policy.limited]
