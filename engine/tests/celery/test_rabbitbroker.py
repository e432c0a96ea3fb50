"""kombu's RabbitMQ transport, made safe."""

import struct
from types import SimpleNamespace

import pytest
from amqp import spec
from amqp.exceptions import UnexpectedFrame
from kombu import Connection
from nightshift.celery import rabbitbroker
from nightshift.celery.patience import patience
from proxies import proxy
from servers import RABBITMQ_URL, require

METHOD, HEADER, BODY = 1, 2, 3


@pytest.mark.parametrize(("scheme", "tls"), [("amqp", False), ("amqps", True)])
def test_rabbitmq_is_spoken_to_by_our_transport(scheme, tls):
    rabbitbroker.install()
    connection = Connection(f"{scheme}://127.0.0.1:1//")
    kind = connection.get_transport_cls()
    made = kind(connection)
    assert (kind.__module__, bool(made.client.ssl)) == ("nightshift.celery.rabbitbroker", tls)


def receive(properties):
    """Return the message that is delivered with these properties, as RabbitMQ sends it."""
    received = []
    handle = rabbitbroker._handle_frames(
        SimpleNamespace(bytes_recv=0), lambda *parts: received.append(parts[-1])
    )
    handle((METHOD, 1, struct.pack(">HH", *spec.Basic.Deliver)))
    handle((HEADER, 1, struct.pack(">HHQ", 60, 0, 4) + properties))
    handle((BODY, 1, b"body"))
    return received[0]


def test_properties_are_read():
    message = receive(struct.pack(">H", 1 << 15) + b"\4text")
    assert (message.properties, message.body) == ({"content_type": "text"}, b"body")


@pytest.mark.parametrize(
    "properties",
    [
        struct.pack(">H", 1 << 15) + b"\2\xff\xfe",
        struct.pack(">HI", 1 << 13, 11) + b"\1tT" + b"\xff" * 8,
        struct.pack(">HI", 1 << 13, 3) + b"\1x?",
    ],
    ids=["text that is not UTF-8", "instant that does not exist", "unknown type"],
)
def test_message_with_unreadable_properties_has_none(properties):
    message = receive(properties)
    assert (message.properties, message.body) == ({}, b"body")


def test_frame_that_cannot_be_understood_ends_the_connection():
    def refuse(*_):
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "as asked")

    handle = rabbitbroker._handle_frames(SimpleNamespace(bytes_recv=0), refuse)
    with pytest.raises(UnexpectedFrame, match="as asked"):
        handle((METHOD, 1, struct.pack(">HH", *spec.Basic.Ack)))


@pytest.mark.parametrize("behaviour", ["silent", "trickle"])
def test_no_wait_for_an_answer_is_without_a_limit(behaviour):
    require(RABBITMQ_URL, "rabbitmq")
    rabbitbroker.install()
    with proxy(5672) as between:
        url = RABBITMQ_URL.replace(":5672", f":{between.port}")
        connection = Connection(url)
        channel = connection.channel()
        setattr(between, behaviour, True)
        with patience(0.3), pytest.raises(TimeoutError):
            channel.queue_declare("nightshift-test-silent", auto_delete=True)
        connection.collect()
