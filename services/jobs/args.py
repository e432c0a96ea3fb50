"""What a job is given, and how it wants to be run: declared once, beside its arguments."""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

KINDS: dict[str, type["JobArgs"]] = {}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Wait `first`, then twice as long each time, never over `cap`; jitter takes up to half of it away."""

    first: timedelta = timedelta(seconds=5)
    cap: timedelta = timedelta(hours=1)

    def delay(self, attempt: int) -> timedelta:
        """Return how long to wait after attempt number `attempt` (from 1)."""
        # In seconds: a timedelta overflows, and whoever asks is about to record a failure.
        longest = min(self.cap.total_seconds(), self.first.total_seconds() * 2.0 ** min(attempt - 1, 30))
        return timedelta(seconds=longest * random.uniform(0.5, 1))


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` starts in any `per`, over all workers."""

    count: int
    per: timedelta


@dataclass(frozen=True, slots=True)
class Policy:
    """How jobs of one kind are run. Every field is a keyword of the class statement of a JobArgs.

    `kind`: the stable wire name. `priority`: 0 first, 9 last. `time_limit`: the worker kills the child then; `soft_time_limit`: it
    raises in the body before. `unique_by`: the fields that make two jobs the same (`()`: there is only one of the kind; `None`: not
    unique). `unique_until`: a second one may come when the first is `done`, or already `started`. `unique_period`: the same job is also the
    same only within one period. `concurrency` and `rate` hold over all workers.
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

    @property
    def limited(self) -> bool:
        """Say whether only the relay may send jobs of this kind, because it counts them."""
        return self.concurrency is not None or self.rate is not None


class JobArgs(BaseModel):
    """The arguments of one kind of job: ids and scalars, never rows, bodies or secrets. Fields are only ever added, with defaults.

        class SendWelcome(JobArgs, kind="mail.send_welcome", queue="mail", unique_by=("user_id",)):
            user_id: int

    The class keywords are the fields of `Policy`.
    """

    # A misspelt argument is an error at the call site; a row that newer code wrote is read without what we do not know (`from_row`).
    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: ClassVar[Policy]

    def __init_subclass__(cls, **_policy: Any) -> None:
        # `type` hands every class keyword here; pydantic hands them on below, when the fields are known.
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **policy: Any) -> None:
        cls.policy = Policy(**policy)
        unknown = set(cls.policy.unique_by or ()) - set(cls.model_fields)
        if unknown:
            raise TypeError(f"{cls.__name__}: unique_by names no field: {', '.join(sorted(unknown))}")
        other = KINDS.setdefault(cls.policy.kind, cls)
        if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"the kind {cls.policy.kind!r} is taken by {other.__module__}.{other.__qualname__}")
        KINDS[cls.policy.kind] = cls

    @classmethod
    def from_row(cls, args: dict[str, Any]) -> "JobArgs":
        """Validate what a row holds. Raises pydantic.ValidationError when it no longer fits."""
        return cls.model_validate(args, extra="ignore")

    def to_row(self) -> dict[str, Any]:
        """Return the arguments as JSON values."""
        return self.model_dump(mode="json")

    def unique_key(self, now: datetime) -> str | None:
        """Return what two equal jobs have in common, or None when this kind may run any number of times."""
        if self.policy.unique_by is None:
            return None
        row = self.to_row()
        parts = [row[name] for name in self.policy.unique_by]
        if self.policy.unique_period is not None:
            parts.append(int(now.timestamp() // self.policy.unique_period.total_seconds()))
        digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
        return f"{self.policy.kind}:{digest}"


def limited_kinds(kinds: Iterable[type[JobArgs]]) -> list[Policy]:
    """Return the policies among `kinds` that only the relay may admit."""
    return [kind.policy for kind in kinds if kind.policy.limited]
