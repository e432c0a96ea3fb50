"""kombu's Redis transport, made safe for a worker that runs a job when Redis goes away.

In kombu's own, a channel whose connection was closed still creates clients. It has no address to
connect to and raises AttributeError, which neither kombu nor Celery handles: the worker ends, at
once or when it acknowledges the running job's message. They do handle a ConnectionError.

An item that is not a message ends the worker too: kombu parses it in the worker's main loop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any, ClassVar

import redis
from kombu.transport import TRANSPORT_ALIASES, redis as kombu_redis

from nightshift.celery import messages
from nightshift.celery.patience import LONGEST_CALL, PatientSocket, patience


class _Tcp(redis.Connection):
    def _connect(self) -> Any:
        return PatientSocket(super()._connect())  # type: ignore[no-untyped-call]


class _Tls(redis.SSLConnection):
    def _connect(self) -> Any:
        return PatientSocket(super()._connect())  # type: ignore[no-untyped-call]


class QoS(kombu_redis.QoS):
    """What is not acknowledged. Kombu's own ends the worker at an entry that is no message."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client, leftmost)
        except messages.UNPARSABLE as error:
            messages.report_dropped("the unacknowledged messages of Redis", error, tag)
            self._remove_from_indices(tag).execute()


class Channel(kombu_redis.Channel):
    """A channel that raises ConnectionError once its connection is closed, and drops bad items."""

    QoS = QoS

    connection_class = _Tcp
    connection_class_ssl = _Tls

    # The client of kombu's present pool: to make one takes longer than what it is then used for.
    _client: redis.Redis | None = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous)
        if self._client is None or self._client.connection_pool is not self.pool:
            self._client = super()._create_client()
        return self._client

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except messages.UNPARSABLE as error:
            # Redis has handed the item over, and kombu could not parse it. The transport below
            # checks each message that it could.
            messages.report_dropped("a queue of Redis", error, "")
            raise Empty from error

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        with _listening(), super().conn_or_acquire(client) as acquired:
            yield acquired

    def basic_ack(self, *args: Any, **options: Any) -> None:
        with _listening():
            super().basic_ack(*args, **options)

    def basic_reject(self, *args: Any, **options: Any) -> None:
        with _listening():
            super().basic_reject(*args, **options)

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection.client is None:
            raise redis.ConnectionError("the connection of this channel was closed")
        return super()._connparams(asynchronous)


class Transport(messages.DroppingTransport, kombu_redis.Transport):
    """The transport of redis:// and rediss://.

    `in_worker`: a worker's main loop uses it. `silent`: Redis did not answer that loop in time.
    Then each further call fails at once until the worker has connected again: a main loop that
    waits for one call after the other would look hung.
    """

    Channel = Channel

    in_worker: ClassVar[bool] = False
    silent: ClassVar[bool] = False

    def establish_connection(self) -> Any:
        with patience(LONGEST_CALL):
            established = super().establish_connection()
        Transport.silent = False
        return established

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        Transport.in_worker = True
        # kombu and Celery hide some errors; this ends the loop, and the worker connects again.
        loop.on_tick.add(_require_answers)

    def on_readable(self, fileno: int) -> None:
        with _listening():
            super().on_readable(fileno)


def _require_answers() -> None:
    if Transport.silent:
        raise redis.ConnectionError("Redis did not answer in time")


@contextmanager
def _listening() -> Iterator[None]:
    """Limit a call, and note when Redis does not answer a worker's main loop."""
    _require_answers()
    try:
        with patience(LONGEST_CALL):
            yield
    except (TimeoutError, redis.TimeoutError):
        Transport.silent = Transport.in_worker
        raise


def install() -> None:
    """Use this transport for both schemes."""
    # Not by `broker_transport`: kombu would then not see that rediss:// asks for TLS.
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
