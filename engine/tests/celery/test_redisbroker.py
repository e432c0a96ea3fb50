"""kombu's Redis transport, made safe."""

import pytest
import redis
from kombu import Connection
from nightshift.celery import redisbroker
from servers import redis_database


@pytest.mark.parametrize(
    ("url", "tls"),
    [("redis://127.0.0.1:1/0", False), ("rediss://127.0.0.1:1/0?ssl_cert_reqs=required", True)],
)
def test_redis_is_spoken_to_by_our_transport(url, tls):
    redisbroker.install()

    connection = Connection(url)

    assert (connection.get_transport_cls(), bool(connection.ssl)) == (redisbroker.Transport, tls)


def test_channel_makes_one_client_for_each_pool():
    with redis_database() as url, Connection(url, transport=redisbroker.Transport) as connection:
        channel = connection.channel()
        first = channel._create_client()
        assert channel._create_client() is first
        channel._disconnect_pools()
        second = channel._create_client()
        assert second.connection_pool is channel.pool is not first.connection_pool


def test_silent_redis_fails_a_workers_further_calls_at_once(monkeypatch):
    monkeypatch.setattr(redisbroker.Transport, "in_worker", True)
    monkeypatch.setattr(redisbroker.Transport, "silent", False)

    with pytest.raises(redis.TimeoutError), redisbroker._listening():
        raise redis.TimeoutError("no answer")

    with pytest.raises(redis.ConnectionError, match="did not answer"):
        redisbroker._require_answers()


def test_silent_redis_is_asked_again_where_no_worker_waits(monkeypatch):
    monkeypatch.setattr(redisbroker.Transport, "silent", False)

    with pytest.raises(redis.TimeoutError), redisbroker._listening():
        raise redis.TimeoutError("no answer")

    redisbroker._require_answers()
