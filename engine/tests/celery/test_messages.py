"""What a message must be to be handled."""

import json
from types import SimpleNamespace
from uuid import UUID

import pytest
from job_rows import Plain
from nightshift.celery import messages
from nightshift.celery.messages import UnacceptableError

KINDS = {Plain.policy.kind: Plain}
ID = "0e3b7a3c-6f0e-4bd4-8a57-6a6dd1f4f0a1"
OTHER = "3f1b7a3c-6f0e-4bd4-8a57-6a6dd1f4f0a2"


def make(payload=None, properties=None, **headers):
    """Return what a transport makes of a message."""
    return SimpleNamespace(
        headers={"task": "test.plain", "id": ID, **headers},
        properties={"delivery_tag": "1", "correlation_id": ID}
        if properties is None
        else properties,
        payload=[[], {"job_ids": [ID]}, {}] if payload is None else payload,
        body=b"",
        content_type="",
        content_encoding="",
    )


@pytest.mark.parametrize(
    ("kwargs", "ids"),
    [
        ({"job_ids": [ID]}, [ID]),
        ({"job_ids": [ID, OTHER]}, [ID, OTHER]),
        # The release before: the arguments of the job, whatever their names are.
        ({}, [ID]),
        ({"user_id": 7}, [ID]),
        ({"job_ids": [OTHER]}, [ID]),
        ({"job_ids": 7}, [ID]),
        ({"job_ids": [ID], "user_id": 7}, [ID]),
    ],
)
def test_jobs_are_those_of_the_list_or_that_of_the_release_before(kwargs, ids):
    assert messages.read_job_ids(kwargs, ID) == [UUID(one) for one in ids]


def test_id_that_is_no_uuid_is_refused():
    with pytest.raises(ValueError, match="UUID"):
        messages.read_job_ids({"job_ids": [ID, "x"]}, ID)


def test_of_a_message_for_a_job_only_kind_and_ids_stay():
    message = make(
        [[1], {"job_ids": [ID]}, {"callbacks": [{"task": "x"}], "chord": {"task": "x"}}],
        timelimit=[0.001, 0.001],
        eta="2100-01-01T00:00:00",
        expires="2001-01-01T00:00:00",
        stamped_headers=["x"],
        kwargsrepr="{'user_id': 7}",
    )
    messages.prepare(message, KINDS)
    assert message.headers == {
        "task": "test.plain", "id": ID, "root_id": ID, "argsrepr": "()",
        "kwargsrepr": "{'user_id': 7}", "ignore_result": True,
    }  # fmt: skip
    assert json.loads(message.body) == [[], {"job_ids": [ID]}, {}]
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")


def test_broker_can_put_a_prepared_message_back():
    properties = {"delivery_tag": "1", "delivery_info": {}, "body_encoding": "base64", "x": 1}
    message = make(properties=properties)
    messages.prepare(message, KINDS)
    assert message.properties == {name: properties[name] for name in properties if name != "x"}


def test_plain_task_keeps_what_celery_offers():
    message = make(
        [[1], {"a": 2}, {"callbacks": [{"task": "x"}], "chord": None}],
        task="project.plain",
        timelimit=[10, None],
        eta="2100-01-01T00:00:00",
    )
    before = dict(message.headers)
    messages.prepare(message, KINDS)
    assert (message.headers, message.body) == (before, b"")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (make(task=None), "names no task"),
        (make(id=[ID]), "no id"),
        (make(id="x" * 1000), "no id"),
        (make(id="a\nb", task="project.plain"), "no id"),
        (make([[], {}]), "not enough values"),
        (make([{}, {}, {}]), "body is not a task's"),
        (make([[], [], {}]), "body is not a task's"),
        (make(task="project.plain", timelimit=["a", "b"]), "time limits"),
        (make(task="project.plain", timelimit=[0, 1]), "time limits"),
        (make(task="project.plain", timelimit=[float("inf"), 1]), "time limits"),
        (make(task="project.plain", deep=json.loads("[" * 50 + "]" * 50)), "nested too deep"),
        (make([[], {}, {"errbacks": 5}], task="project.plain"), "errbacks"),
        (make([[], {}, {"chord": "x"}], task="project.plain"), "chord"),
    ],
)
def test_message_that_could_harm_is_refused(message, reason):
    with pytest.raises((UnacceptableError, ValueError), match=reason):
        messages.prepare(message, KINDS)


def envelope(**changes):
    whole = {
        "headers": {},
        "body": "",
        "content-encoding": "utf-8",
        "properties": {
            "delivery_tag": "1",
            "delivery_info": {"exchange": "", "routing_key": "default"},
        },
    }
    return {**whole, **changes}


def test_envelope_of_a_right_message_is_accepted():
    messages.require_envelope(envelope())


@pytest.mark.parametrize(
    "raw",
    [
        None, [], "x", 7, {},
        envelope(headers=None),
        envelope(body=7),
        envelope(properties=[]),
        envelope(properties={"delivery_tag": "1"}),
        envelope(properties={"delivery_tag": [], "delivery_info": {}}),
        envelope(headers={"compression": "zlib"}),
        envelope(**{"content-encoding": "bz2"}),
    ],
)  # fmt: skip
def test_envelope_of_a_foreign_item_is_refused(raw):
    with pytest.raises(UnacceptableError):
        messages.require_envelope(raw)


def test_report_is_one_short_line(caplog):
    messages.report_dropped("default", ValueError("x\n" * 1000), {"text": "y\n" * 1000})
    [line] = caplog.messages
    assert len(line) < 1000
    assert "\n" not in line


@pytest.mark.parametrize("tick", ["x", None, [], 10**4000, True])
def test_clock_believes_no_absurd_message(tick):
    clock = messages.Clock()
    assert clock.adjust(tick) == 1


def test_clock_follows_a_message():
    assert messages.Clock().adjust(41) == 42


def test_message_of_several_jobs_has_a_little_more_time():
    one, two = make(), make([[], {"job_ids": [ID, OTHER]}, {}])
    for message in (one, two):
        messages.prepare(message, KINDS)
    limit = Plain.policy.time_limit.total_seconds()
    assert ("timelimit" in one.headers, two.headers["timelimit"]) == (False, [limit + 1, None])


def test_message_of_too_many_jobs_is_refused():
    with pytest.raises(UnacceptableError, match="too many"):
        messages.read_job_ids({"job_ids": [ID] * (messages.MOST_IDS + 1)}, ID)
