"""kombu's Redis transport, made safe for a worker that runs a job when Redis goes away.

In kombu's own, a channel whose connection was closed still creates clients. It has no address to
connect to and raises AttributeError, which neither kombu nor Celery handles: the worker ends, at
once or when it acknowledges the running job's message. They do handle a ConnectionError.
"""

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis


class Channel(redis.Channel):
    """A channel that raises ConnectionError once its connection is closed."""

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection.client is None:
            raise redis.redis.ConnectionError("the connection of this channel was closed")
        return super()._connparams(asynchronous)


class Transport(redis.Transport):
    """The transport of redis:// and rediss://."""

    Channel = Channel


def install() -> None:
    """Use this transport for both schemes."""
    # Not by `broker_transport`: kombu would then not see that rediss:// asks for TLS.
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
