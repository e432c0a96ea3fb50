"""kombu's RabbitMQ transport, made safe for a broker that is silent and for foreign messages.

In py-amqp a wait for an answer has no limit, and a message whose headers cannot be parsed ends the
worker, again and again: RabbitMQ delivers it to the next one.
"""

import struct
from typing import Any

import amqp
from amqp import transport
from amqp.exceptions import FrameSyntaxError, UnexpectedFrame
from amqp.method_framing import frame_handler
from kombu.transport import TRANSPORT_ALIASES, pyamqp

from nightshift.celery import messages
from nightshift.celery.patience import LONGEST_CALL, PatientSocket, patience

# What parsing a frame from outside may raise: of text that is not UTF-8, an instant that Python
# does not have, deep nesting.
UNREADABLE = (ValueError, OverflowError, RecursionError, struct.error, FrameSyntaxError)
HEADER_FRAME = 2

# The exchanges of events and of answers to remote control, which may be lost.
UNCONFIRMED = ("celeryev", "reply.celery.pidbox")


class _Patient:
    """A transport whose socket is patient. TLS has been set up by then."""

    sock: Any
    _write: Any
    _quick_recv: Any

    def _setup_transport(self) -> None:
        super()._setup_transport()  # type: ignore[misc]
        self.sock = PatientSocket(self.sock)
        self._quick_recv = self.sock.recv
        self._write = self.sock.sendall


class _Tcp(_Patient, transport.TCPTransport):
    pass


class _Tls(_Patient, transport.SSLTransport):
    pass


def _handle_frames(connection: Any, callback: Any) -> Any:
    """Return py-amqp's handler of frames, for which unreadable headers are no headers."""
    handle = frame_handler(connection, callback)

    def on_frame(frame: Any) -> Any:
        kind, channel, content = frame
        try:
            return handle(frame)
        except UNREADABLE as error:
            if kind != HEADER_FRAME:
                # Nothing tells where the next message begins: connect again.
                raise UnexpectedFrame(f"unreadable frame: {error}") from error
            # Class, weight and size of the body stay; no properties follow. The consumer drops the
            # message for its missing properties.
            return handle((kind, channel, bytes(content[:12]) + b"\0\0"))

    return on_frame


class Channel(pyamqp.Channel):
    """A channel on which a message that its consumer cannot handle is dropped."""

    def message_to_python(self, raw_message: Any) -> Any:
        messages.refuse_expanding(
            raw_message.properties.get("application_headers") or {},
            raw_message.properties.get("content_encoding"),
        )
        return super().message_to_python(raw_message)

    def basic_publish_confirm(self, msg: Any, exchange: str = "", *args: Any, **how: Any) -> Any:
        # A broker that blocks publishers confirms nothing: the worker's main loop would wait for
        # the confirmation of each heartbeat.
        if exchange in UNCONFIRMED:
            return self._basic_publish(msg, exchange, *args, **how)
        return super().basic_publish_confirm(msg, exchange, *args, **how)

    def _on_basic_deliver(
        self, consumer_tag: str, delivery_tag: int, redelivered: Any, *where: Any
    ) -> None:
        *_, queue, message = where
        try:
            super()._on_basic_deliver(consumer_tag, delivery_tag, redelivered, *where)
        except (amqp.exceptions.AMQPError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - a message must not end the worker
            messages.report_dropped(queue, error, message.properties)
            if consumer_tag not in (self.no_ack_consumers or ()):
                self.basic_reject(delivery_tag, requeue=False)


class Connection(pyamqp.Connection):
    """A connection on which no wait is without a limit.

    `blocked`: the broker does not read from publishers, because of its memory or disk alarm.
    """

    Channel = Channel

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, frame_handler=_handle_frames)
        self.blocked = False

    def Transport(self, host: str, connect_timeout: Any, ssl: Any, *_: Any, **settings: Any) -> Any:  # noqa: N802 - py-amqp's
        # The two that are left out are read and write timeouts, which the patience replaces.
        kind = _Tls if ssl else _Tcp
        return kind(host, connect_timeout=connect_timeout, ssl=ssl, **settings)

    def blocking_read(self, timeout: Any = None) -> Any:
        # A frame of which only a part has arrived holds the worker's main loop no longer than this.
        with patience(LONGEST_CALL):
            return super().blocking_read(timeout)

    def _on_blocked(self) -> None:
        self.blocked = True

    def _on_unblocked(self) -> None:
        self.blocked = False


class Transport(pyamqp.Transport):
    """The transport of amqp://."""

    Connection = Connection

    def establish_connection(self) -> Any:
        with patience(LONGEST_CALL):
            return super().establish_connection()


class SSLTransport(Transport, pyamqp.SSLTransport):
    """The transport of amqps://."""


def install() -> None:
    """Use these transports for both schemes."""
    # Not by `broker_transport`: kombu would then not see that amqps:// asks for TLS.
    TRANSPORT_ALIASES["amqp"] = f"{__name__}:Transport"
    TRANSPORT_ALIASES["amqps"] = f"{__name__}:SSLTransport"
