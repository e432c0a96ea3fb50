"""Every error a service raises, in one tree. The type decides what a job does with it.

    ServiceError
    ├── TransientError            may pass by itself: the job is retried with backoff
    └── PermanentError            will not pass by itself: the job fails at once
        ├── InvalidInput          the input is wrong; the message says where and how to fix it
        ├── NotFound              the thing that was named does not exist
        └── Conflict              the request contradicts the present state

Any other exception is a fault of the code or of the machine, and the job is retried like after a
TransientError: an exception does not tell a restarted database from a bug. `max_attempts` ends the
retries of a bug.
"""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message. Drivers add the statement in the next ones."""
    try:
        return str(error).partition("\n")[0]
    except Exception:  # noqa: BLE001 - the first exception is the one to name
        return type(error).__name__


class ServiceError(Exception):
    """A service could not do its work. The message is for a person and holds no secret."""


class TransientError(ServiceError):
    """The work may succeed later: the job is retried."""


class PermanentError(ServiceError):
    """The work will not succeed later: the job is not retried."""


class InvalidInput(PermanentError):
    """The input is wrong; the message says where and how to fix it."""


class NotFound(PermanentError):
    """The thing that was named does not exist."""


class Conflict(PermanentError):
    """The request contradicts the present state."""
