"""A job's arguments, and the policy by which jobs of that kind run: declared in one class."""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nightshift.errors import InvalidInput

# The kinds that components of this process have declared. A process without components (a web
# application that only enqueues) has none, so it cannot know which kinds are declared elsewhere.
DECLARED: set[type["JobArgs"]] = set()


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
    most so many run at once) and `rate` hold over all workers.
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
        """Whether only the relay may send jobs of this kind, because it counts them."""
        return self.concurrency is not None or self.rate is not None


class JobArgs(BaseModel):
    """The arguments of one kind of job: ids and scalars, never rows, bodies or secrets.

        class SendWelcome(JobArgs, kind="mail.send_welcome", queue="mail", unique_by=("user_id",)):
            user_id: int

    The class keywords are the fields of `Policy`. Rows outlive releases, so a later release only
    adds fields, each with a default.
    """

    # A misspelt argument is an error where it is given. A row that newer code wrote is read without
    # the fields that this code does not know (`from_row`).
    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: ClassVar[Policy]

    def __init_subclass__(cls, **_policy: Any) -> None:
        # `type` passes every class keyword to this method. pydantic passes them to the method
        # below, where the fields are known.
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **policy: Any) -> None:
        cls.policy = Policy(**policy)
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
        return cls.model_validate(args, extra="ignore")

    def to_row(self) -> dict[str, Any]:
        """Return the arguments as JSON values."""
        return self.model_dump(mode="json")

    def unique_key(self, now: datetime) -> str | None:
        """Return the key that two jobs share when they are the same, or None for a kind without."""
        if self.policy.unique_by is None:
            return None
        row = self.to_row()
        parts = [row[name] for name in self.policy.unique_by]
        if self.policy.unique_period is not None:
            parts.append(int(now.timestamp() // self.policy.unique_period.total_seconds()))
        digest = hashlib.blake2b(
            json.dumps(parts, sort_keys=True).encode(), digest_size=16
        ).hexdigest()
        return f"{self.policy.kind}:{digest}"


Kinds = Mapping[str, type[JobArgs]]


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
