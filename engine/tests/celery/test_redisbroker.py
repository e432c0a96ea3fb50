"""kombu's Redis transport, made safe."""

import pytest
from kombu import Connection
from nightshift.celery import redisbroker


@pytest.mark.parametrize(
    ("url", "tls"),
    [("redis://127.0.0.1:1/0", False), ("rediss://127.0.0.1:1/0?ssl_cert_reqs=required", True)],
)
def test_redis_is_spoken_to_by_our_transport(url, tls):
    redisbroker.install()

    connection = Connection(url)

    assert (connection.get_transport_cls(), bool(connection.ssl)) == (redisbroker.Transport, tls)
