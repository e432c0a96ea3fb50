"""Messages that are not ours: 50 made by hand, and any number of random ones.

Each is a `Forged`: the headers, properties and body of a message, as every broker can carry them;
or `raw`: an item that is no message at all, for the brokers whose items kombu parses.
"""

import base64
import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import amqp
import probe_app as probe
import redis
from installations import Installation
from kombu import Connection
from nightshift.jobs.models import JobState
from probing import count_effects, put

KIND = "probe.leave"


@dataclass
class Forged:
    """A message. Without changes, it is a right one for a job that does not exist."""

    name: str
    headers: Any = None
    body: Any = None
    content_type: Any = "application/json"
    content_encoding: Any = "utf-8"
    properties: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    # The properties of a message on RabbitMQ, as bytes.
    frame: bytes | None = None


def headers(**changes: Any) -> dict[str, Any]:
    """Return the headers of a message for a job, with changes; `...` leaves one out."""
    job_id = str(uuid4())
    whole = {
        "lang": "py", "task": KIND, "id": job_id, "shadow": None, "eta": None, "expires": None,
        "group": None, "group_index": None, "retries": 0, "timelimit": [60, None],
        "root_id": job_id, "parent_id": None, "argsrepr": "()", "kwargsrepr": "{}",
        "origin": "test", "ignore_result": True, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    whole |= changes
    return {name: value for name, value in whole.items() if value is not ...}


def body(args: Any = (), kwargs: Any = None, embedded: Any = None) -> str:
    return json.dumps([args, kwargs if kwargs is not None else {}, embedded or {}])


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def bomb() -> bytes:
    """Return a few kilobytes that are 200 MB once they are decompressed."""
    import zlib

    return zlib.compress(b" " * 200_000_000, 9)


FOREIGN_TASK = {"task": "celery.accumulate"}
SIGNATURE = {"task": KIND, "args": [], "kwargs": {}, "options": {}, "subtask_type": None}

BY_HAND = [
    Forged("no headers", headers={}),
    Forged("task is a list", headers(task=[KIND])),
    Forged("task is a mapping", headers(task={"name": KIND})),
    Forged("task is null", headers(task=None)),
    Forged("task is a number", headers(task=7)),
    Forged("unknown task", headers(task="no.such.task")),
    Forged("unknown task without an id", headers(task="no.such.task", id=...)),
    Forged("task's name of 100 kB", headers(task="x" * 100_000)),
    Forged("no id", headers(id=...)),
    Forged("id is a list", headers(id=[str(uuid4())])),
    Forged("id is a mapping", headers(id={})),
    Forged("id is null", headers(id=None)),
    Forged("id is a number", headers(id=5)),
    Forged("id is no UUID", headers(id="../../etc/passwd")),
    Forged("id of 100 kB", headers(id="f" * 100_000)),
    Forged("time limit is text", headers(timelimit="soon")),
    Forged("time limits are texts", headers(timelimit=["a", "b"])),
    Forged("time limit is negative", headers(timelimit=[-1, -1])),
    Forged("time limit is 10 to the 300", headers(timelimit=[1e300, 1e300])),
    Forged("three time limits", headers(timelimit=[1, 2, 3])),
    Forged("time limit of a plain task is text", headers(**FOREIGN_TASK, timelimit=["a", "b"])),
    Forged("time limit of a plain task is 0", headers(**FOREIGN_TASK, timelimit=[0, 0])),
    Forged("time limit of a plain task is true", headers(**FOREIGN_TASK, timelimit=[True, True])),
    Forged("ETA is text", headers(eta="tomorrow")),
    Forged("ETA is a list", headers(eta=[])),
    Forged("ETA in the year 9999", headers(eta="9999-12-31T23:59:59+00:00")),
    Forged("ETA of a plain task is text", headers(**FOREIGN_TASK, eta="tomorrow")),
    Forged("ETA of a plain task out of range", headers(**FOREIGN_TASK, eta="0001-01-01T00:00:00")),
    Forged("expires is text", headers(expires="yesterday")),
    Forged("expired", headers(expires="2001-01-01T00:00:00+00:00")),
    Forged("expires of a plain task is a mapping", headers(**FOREIGN_TASK, expires={})),
    Forged("shadow is a list", headers(shadow=[1])),
    Forged("stamps are numbers", headers(**FOREIGN_TASK, stamped_headers=5, stamps=7)),
    Forged("kwargsrepr is a mapping", headers(kwargsrepr={"a": 1})),
    Forged("headers nested deep", headers(**FOREIGN_TASK, deep=json.loads(nested(60)))),
    Forged("body is an empty list", headers(), "[]"),
    Forged("body is a mapping", headers(), "{}"),
    Forged("body is a number", headers(), "7"),
    Forged("body is not JSON", headers(), "not JSON"),
    Forged("body is empty", headers(), ""),
    Forged("body is nested deep", headers(), nested(100_000)),
    Forged("args are a mapping", headers(), body(args={"a": 1})),
    Forged("kwargs are a list", headers(), json.dumps([[], [1], {}])),
    Forged("kwargs of a plain task are a list", headers(**FOREIGN_TASK), json.dumps([[], [1], {}])),
    Forged("ids are no UUIDs", headers(id="x"), body(kwargs={"job_ids": ["x"]})),
    Forged("ids are numbers", headers(), body(kwargs={"job_ids": [1, 2]})),
    Forged("a type that JSON does not have", headers(),
           '[[], {"__type__": "decimal", "__value__": "x"}, {}]'),
    Forged("callbacks and a chord", headers(), body(embedded={
        "callbacks": [SIGNATURE], "errbacks": [SIGNATURE], "chain": [SIGNATURE], "chord": SIGNATURE,
    })),
    Forged("garbage as callbacks of a plain task", headers(**FOREIGN_TASK),
           body(embedded={"callbacks": 5, "errbacks": "x", "chord": [], "chain": {}})),
    Forged("pickled", headers(), "gASVCgAAAAAAAACMBmEuYi5jlC4=", "application/x-python-serialize",
           "binary"),
    Forged("unknown content type", headers(), content_type="text/of-no-kind"),
    Forged("no content type", headers(**FOREIGN_TASK), content_type=None, content_encoding=None),
    Forged("unknown encoding", headers(), content_encoding="no-such-codec"),
    Forged("compressed", headers(compression="application/x-gzip"), bomb()),
    Forged("compressed by its encoding", headers(), bomb(), content_encoding="zip"),
]  # fmt: skip

# Items that Redis or a file may hold, where kombu expects a message.
ITEMS = [
    b"", b"not JSON", b"\xff\xfe\x00", b"null", b"[]", b"7", b'"text"', b"{}",
    b'{"body": "", "properties": null}', b'{"body": "", "headers": [], "properties": {}}',
    b'{"body": "", "headers": {}, "properties": {"delivery_tag": "x"}}',
    (b'{"headers": {}, "properties": {"delivery_tag": [], "delivery_info": {"exchange": "",'
    b' "routing_key": "default"}}, "body": ""}'),
    (b'{"headers": {}, "properties": {"delivery_tag": "t", "delivery_info": {"exchange": [],'
    b' "routing_key": {}}}, "body": ""}'),
    (b'{"headers": {}, "properties": {"delivery_tag": "t", "delivery_info": {"exchange": "",'
    b' "routing_key": "default"}, "body_encoding": "no such"}, "body": "x"}'),
    (b'{"headers": {}, "properties": {"delivery_tag": "t", "delivery_info": {"exchange": "",'
    b' "routing_key": "default"}, "body_encoding": "base64"}, "body": "?"}'),
    (b'{"headers": {}, "properties": {"delivery_tag": "t", "delivery_info": {"exchange": "",'
    b' "routing_key": "default"}}, "body": [1]}'),
    b'{"__type__": "uuid", "__value__": 5}', b'{"__type__": "datetime", "__value__": []}',
    nested(100_000).encode(), b"1" * 5000,
]  # fmt: skip


def _table(content: bytes) -> bytes:
    """Return the properties of a message whose only property is a table of headers."""
    return struct.pack(">HI", 1 << 13, len(content)) + content


def _nested_arrays(levels: int) -> bytes:
    content = b""
    for _ in range(levels):
        content = b"A" + struct.pack(">I", len(content)) + content
    return content


FRAMES = [
    Forged("instant that Python does not have", frame=_table(b"\1tT" + b"\xff" * 8)),
    Forged("2,000 nested arrays", frame=_table(b"\1n" + _nested_arrays(2000))),
    Forged("content type that is not UTF-8", frame=struct.pack(">H", 1 << 15) + b"\2\xff\xfe"),
    Forged("header's name that is not UTF-8", frame=_table(b"\2\xff\xfeV")),
    Forged("no properties", frame=b"\0\0"),
]


def make_random(number: int, seed: int) -> Iterator[Forged]:
    """Yield messages with something wrong at a random place."""
    chance = random.Random(seed)
    for index in range(number):
        name = f"random {seed}-{index}"
        whole = headers(**(FOREIGN_TASK if chance.random() < 0.3 else {}))
        for key in chance.sample(list(whole), chance.randrange(1, 4)):
            if key == "task" and chance.random() < 0.5:
                continue
            whole[key] = _any_value(chance, 3)
        text = body(_any_value(chance, 2), _any_value(chance, 2), _any_value(chance, 2))
        yield Forged(
            name,
            whole if chance.random() < 0.9 else {"junk": _any_value(chance, 3)},
            chance.choice(
                [text, text[: chance.randrange(len(text) + 1)], body(), chance.randbytes(50)]
            ),
            chance.choice(["application/json"] * 5 + ["application/x-yaml", "x", None]),
            chance.choice(["utf-8"] * 5 + ["binary", "rot13", None]),
        )


def _any_value(chance: random.Random, depth: int) -> Any:
    plain = [
        None,
        True,
        0,
        -1,
        2**62,
        1e300,
        "",
        "x",
        "é\n",
        str(UUID(int=chance.getrandbits(128))),
    ]
    if depth == 0 or chance.random() < 0.5:
        return chance.choice(plain)
    some = [_any_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return some if chance.random() < 0.5 else {str(index): one for index, one in enumerate(some)}


def to_bytes(content: Any) -> bytes:
    if content is None:
        return body().encode()
    return content if isinstance(content, bytes) else content.encode()


def to_item(forged: Forged) -> bytes:
    """Return the message as kombu's virtual transports keep it."""
    if forged.raw is not None:
        return forged.raw
    if forged.frame is not None:
        return forged.frame
    properties = {
        "correlation_id": "x", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": "default"}, "delivery_tag": str(uuid4()),
        **forged.properties,
    }  # fmt: skip
    message = {
        "body": base64.b64encode(to_bytes(forged.body)).decode(),
        "content-type": forged.content_type,
        "content-encoding": forged.content_encoding,
        "headers": forged.headers if forged.headers is not None else headers(),
        "properties": properties,
    }
    return json.dumps(message).encode()


Put = Callable[[Forged], None]


@contextmanager
def open_door(installation: Installation) -> Iterator[Put]:
    """Yield what puts a message on the installation's queue, past all of our code."""
    url = installation.environment["BROKER_URL"]
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            yield lambda forged: client.lpush("nightshift:default", to_item(forged)) and None
        return
    if url.startswith("amqp"):
        with Connection(url) as connection:
            yield _publish_to(connection.channel())
        return
    folder = Path(installation.app.conf.broker_transport_options["data_folder_in"])

    def write(forged: Forged) -> None:
        name = f"{time.time_ns() // 1_000_000}_{uuid4().hex}.default.msg"
        (folder / f".{name}.part").write_bytes(to_item(forged))
        (folder / f".{name}.part").rename(folder / name)

    yield write


class _RawProperties(amqp.Message):
    frame = b""

    def _serialize_properties(self) -> bytes:
        return self.frame


def _publish_to(channel: Any) -> Put:
    def publish(forged: Forged) -> None:
        if forged.raw is not None:
            return
        if forged.frame is not None:
            raw = _RawProperties("[[], {}, {}]")
            raw.frame = forged.frame
            channel.basic_publish(raw, exchange="", routing_key="default")
            return
        properties = {"content_type": forged.content_type, **forged.properties}
        if forged.content_encoding is not None:
            properties["content_encoding"] = forged.content_encoding
        message = amqp.Message(
            to_bytes(forged.body),
            application_headers=forged.headers if forged.headers is not None else headers(),
            **{name: value for name, value in properties.items() if value is not None},
        )
        # What the client cannot even send is no danger.
        with suppress(amqp.exceptions.FrameSyntaxError, ValueError, TypeError, RecursionError):
            channel.basic_publish(message, exchange="", routing_key="default")

    return publish


def all_by_hand() -> list[Forged]:
    return [*BY_HAND, *FRAMES, *(Forged(f"item {item[:40]!r}", raw=item) for item in ITEMS)]


def drown(installation: Installation, *, random_messages: int, every: int) -> None:
    """Put messages that are not ours on the queue, and a job after each `every` of them.

    Wait until all jobs have ended, and assert that each ran once.
    """
    runtime = installation.runtime
    ids = []
    with open_door(installation) as send:
        for index, forged in enumerate([*all_by_hand(), *make_random(random_messages, seed=11)]):
            send(forged)
            if index % every == 0:
                job_id = put(runtime, probe.Leave(number=index))
                ids.append(job_id)
                # It would kill the process that ran it.
                named = headers(task=probe.Die.policy.kind, id=str(job_id))
                send(Forged("another kind", named, body(kwargs={"job_ids": [str(job_id)]})))
    ids.append(put(runtime, probe.Leave()))
    installation.until(lambda: installation.open_jobs() == 0, seconds=100 + random_messages / 10)
    jobs = [installation.job(job_id) for job_id in ids]
    assert [(job.state, job.attempt) for job in jobs] == [(JobState.SUCCEEDED, 1)] * len(ids)
    assert [count_effects(runtime, job_id) for job_id in ids] == [1] * len(ids)


def read_worker_log(installation: Installation) -> str:
    return (installation.folder / "worker-0.log").read_text(errors="replace")
