"""Every error a service raises, in one tree. The type decides what a job does with it.

    ServiceError
    ├── TransientError            may pass by itself: the job is retried with backoff
    │   └── StoreUnavailable      the feed store is full, read-only or gone
    └── PermanentError            will not pass by itself: the job fails at once
        ├── InvalidInput          what somebody gave us is wrong; says where and how to mend it
        ├── NotFound              what was named does not exist
        └── Conflict              what was asked contradicts the present state

Anything else that a job raises is a fault of the code or the machine; it is retried like a TransientError, because a restarted
database and a bug cannot be told apart by their exceptions, and `max_attempts` stops the second.
"""


class ServiceError(Exception):
    """Something a service could not do. The message is written for a person and holds no secret."""


class TransientError(ServiceError):
    """It may work later: retried."""


class StoreUnavailable(TransientError):
    """The feed store cannot be written: full, read-only, or gone."""


class PermanentError(ServiceError):
    """It will not work later: not retried."""


class InvalidInput(PermanentError):
    """What was given is wrong; the message says where and how to mend it."""


class NotFound(PermanentError):
    """What was named does not exist."""


class Conflict(PermanentError):
    """What was asked contradicts the present state."""
