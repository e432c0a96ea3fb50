"""`school user`, on an installation of the test's own; what is enqueued stays in the ledger."""

import pytest
from nightshift.jobs.models import Job
from sqlalchemy import select

from services.letters import accounts
from services.school.models import KeyPurpose, User

ADD = (
    "user",
    "add",
    "anna@school.example",
    "--first",
    "Anna",
    "--last",
    "Müller",
    "--role",
    "teacher",
)


@pytest.fixture
def runtime(job_app):
    return job_app.runtime


def read_jobs(runtime):
    with runtime.read_only() as session:
        return [
            (job.kind, job.args)
            for job in session.scalars(select(Job).order_by(Job.kind, Job.created_at))
        ]


def test_user_is_added_once(runtime, run):
    assert run(*ADD) == (0, "user 1 added; the welcome is on its way\n")
    assert run(*ADD) == (1, "somebody has this address or this untis_id already\n")
    assert read_jobs(runtime) == [("mail.send_welcome", {"user_id": 1})]


@pytest.mark.parametrize(
    ("command", "purpose"), [("verify", "verify_address"), ("reset", "reset_password")]
)
def test_key_is_asked_for(runtime, run, command, purpose):
    run(*ADD)
    assert run("user", command, "Anna@school.example") == (0, "on its way\n")
    assert read_jobs(runtime)[0] == ("mail.send_key", {"user_id": 1, "purpose": purpose})


def test_all_are_welcomed_or_nobody(runtime, run):
    with runtime.unit_of_work() as session:
        for name in ("anna", "beat"):
            values = {
                "first_name": name,
                "last_name": "",
                "role": "teacher",
                "locale": "de",
                "created_at": runtime.now(),
            }
            session.add(User(email=f"{name}@school.example", **values))
    assert run("user", "welcome", "anna@school.example", "nobody@school.example") == (
        1,
        "nobody has this address\n",
    )
    assert read_jobs(runtime) == []
    assert run("user", "welcome", "anna@school.example", "beat@school.example") == (
        0,
        "on their way: 2\n",
    )
    assert read_jobs(runtime) == [("mail.send_welcome", {"user_id": number}) for number in (1, 2)]


def test_key_is_redeemed_from_standard_input(runtime, run):
    run(*ADD)
    with runtime.unit_of_work() as session:
        key, _ = accounts.issue(
            session, session.get(User, 1), KeyPurpose.RESET_PASSWORD, now=runtime.now()
        )
    assert run("user", "redeem", "verify", given=key)[0] == 1
    assert run("user", "redeem", "reset", given=f"{key}\n") == (0, "anna@school.example\n")
    assert run("user", "redeem", "reset", given=key) == (
        1,
        "this key does not work, or does not any more: ask for a new one\n",
    )
