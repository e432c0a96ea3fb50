"""What an alert says and when there is one, on both databases."""

from datetime import timedelta
from uuid import uuid4

import pytest
from nightshift.jobs.models import Job, JobState

from services.alerts import news
from services.alerts.jobs import SendAlert
from tests.conftest import NOW

FAILS = {"beat": "it is gone", "mail": "no answer"}


def add_job(session, kind="mail.deliver", state=JobState.FAILED, ended=NOW, **values):
    job = Job(
        id=uuid4(),
        kind=kind,
        queue="default",
        priority=0,
        state=state,
        created_at=ended,
        run_at=ended,
        finished_at=ended,
        max_attempts=1,
        time_limit=60,
        **{"args": {}} | values,
    )
    session.add(job)
    session.flush()
    return job


def tell(session, alert, at):
    """Let an alert be the newest."""
    done = {"args": alert.to_row(), "started_at": at}
    return add_job(session, "alerts.send", JobState.SUCCEEDED, at, **done)


def test_nothing_is_told_where_nothing_fails(session):
    assert news.find(session, {}, now=NOW) is None


def test_what_turns_is_told_once_and_together(session):
    first = news.find(session, FAILS, now=NOW)
    assert (first.lines, first.failing) == (
        ("beat fails: it is gone", "mail fails: no answer"),
        ("beat", "mail"),
    )
    told = tell(session, first, NOW)

    later = NOW + news.AT_MOST_EVERY
    assert news.find(session, FAILS, now=later) is None
    second = news.find(session, {"beat": "it is gone", "clock": "40 s"}, now=later)
    assert (second.lines, second.after) == (
        ("clock fails: 40 s", "mail does not fail any more"),
        str(told.id),
    )


def test_alerts_are_limited(session):
    tell(session, news.find(session, FAILS, now=NOW), NOW)

    soon = NOW + news.AT_MOST_EVERY - timedelta(seconds=1)
    assert news.find(session, {}, now=soon) is None
    assert news.find(session, {}, now=NOW + news.AT_MOST_EVERY).lines == (
        "beat does not fail any more",
        "mail does not fail any more",
    )


@pytest.mark.parametrize(
    ("state", "kind", "ago", "told"),
    [
        (JobState.FAILED, "mail.deliver", timedelta(minutes=1), True),
        (JobState.DISCARDED, "mail.deliver", timedelta(minutes=1), True),
        (JobState.SUCCEEDED, "mail.deliver", timedelta(minutes=1), False),
        (JobState.CANCELLED, "mail.deliver", timedelta(minutes=1), False),
        (JobState.FAILED, "mail.deliver", timedelta(hours=1), False),
        # Its end may not be committed yet: the next look tells it.
        (JobState.FAILED, "mail.deliver", timedelta(seconds=1), False),
        (JobState.FAILED, "alerts.send", timedelta(minutes=1), False),
    ],
)
def test_jobs_that_failed_for_good_are_told(session, state, kind, ago, told):
    add_job(session, kind, state, NOW - ago)

    found = news.find(session, {}, now=NOW)

    assert (found is not None) is told
    if found:
        said = "1 jobs mail.deliver failed for good: celery -A project jobs list"
        assert found.lines == (f"{said} --kind mail.deliver",)


def test_no_failed_job_is_told_twice_and_none_is_forgotten(session):
    told = []
    for minute in range(0, 60, 3):
        now = NOW + timedelta(minutes=minute)
        add_job(session, ended=now - timedelta(seconds=90))
        add_job(session, ended=now - timedelta(seconds=1))
        if found := news.find(session, {}, now=now):
            tell(session, found, now)
            told += [int(line.partition(" ")[0]) for line in found.lines]

    # All but the last one, and those after the last alert.
    last = news.find(session, {}, now=NOW + timedelta(hours=2))
    told += [int(line.partition(" ")[0]) for line in last.lines]
    assert sum(told) == 40
    assert len(told) == 60 // 6 + 1


def test_message_that_says_much_can_be_stored(session):
    found = news.find(session, {"beat": "x" * 5000}, now=NOW)

    assert len(found.lines[0]) == news.LONGEST_LINE
    assert SendAlert.from_row(found.to_row()) == found
