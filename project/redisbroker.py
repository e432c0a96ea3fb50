"""kombu's Redis transport, made safe for a worker with a job under way when Redis goes away.

As shipped, a channel whose connection was closed still makes itself clients, and finds no address to connect to: an AttributeError that
nobody expects. It ends the worker when Redis goes while one process is busy and another waits, or later, when the busy one's message is
acknowledged. An error that says what it is, kombu and Celery know to deal with.
"""

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis


class Channel(redis.Channel):
    """A channel that says when its connection is gone."""

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection.client is None:
            raise redis.redis.ConnectionError("the connection of this channel was closed")
        return super()._connparams(asynchronous)


class Transport(redis.Transport):
    """The transport of redis:// and rediss://."""

    Channel = Channel


def install() -> None:
    """Use it for both. Not as `broker_transport`: kombu would then no longer see that an address asks for TLS."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
