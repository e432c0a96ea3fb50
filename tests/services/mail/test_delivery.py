"""What becomes of messages, answer by answer, on both databases."""

import logging
from datetime import timedelta
from uuid import uuid4

import pytest
from nightshift.database import utc_now
from nightshift.jobs import Backoff, Run, claims, enqueue, relay
from nightshift.jobs.models import Job, JobState
from nightshift.testing import assert_enqueued
from sqlalchemy import delete, select, update

from services.mail import delivery, outbox
from services.mail.jobs import DeliverMail, PruneMail
from services.mail.models import Mail, MailServer, MailState
from services.mail.transport import Answer, Verdict
from tests.conftest import NOW
from tests.memory_transport import MemoryTransport
from tests.messages import put as put_by_now, read_row
from tests.one_session import OneSession

LONG_AGO = NOW - timedelta(days=1000)
OK = Answer(Verdict.SENT, "250 OK")
LATER = Answer(Verdict.LATER, "451 later")
TOO_MANY = Answer(Verdict.LATER, "432 too many", pause=True)
REFUSED = Answer(Verdict.REFUSED, "550 no")
DEAD = Answer(Verdict.REFUSED, "550 5.1.1 nobody", dead_address=True)
UNKNOWN = Answer(Verdict.UNKNOWN, "the connection was lost")
AWAY = Answer(Verdict.AWAY, "refused", pause=True)


def terms(**changes):
    given = {
        "server": "memory",
        "sender": "noreply@school.example",
        "concurrency": 2,
        "rate": 0,
        "backoff": Backoff(first=timedelta(minutes=1)),
        "away": Backoff(first=timedelta(seconds=10)),
        "work_for": timedelta(),
    }
    return delivery.Terms(**given | changes)


def put(session, number=1, **changes):
    """Queue a message that the database's clock finds due."""
    mail_id = put_by_now(session, number, **changes)
    session.execute(update(Mail).where(Mail.id == mail_id).values(due_at=LONG_AGO))
    return mail_id


def start(session, lane=0):
    """Claim a job as a worker would, and return its run."""
    session.execute(delete(Job).where(Job.state != JobState.RUNNING))
    job_id = enqueue(session, DeliverMail(lane=lane), now=LONG_AGO)
    relay.queue_due(session)
    (claim,) = claims.claim(
        session.connection(),
        [job_id],
        claim_id=uuid4(),
        kind=DeliverMail.policy.kind,
        worker_id=uuid4(),
        pid=1,
    )
    return Run(claim, OneSession(session))


def deliver(session, *answers, lane=0, transport=None, **changes):
    transport = transport or MemoryTransport(iter(answers))
    run = start(session, lane)
    delivery.deliver(run, lane, transport, terms(**changes))
    return transport, session.get_one(Job, run.id).result


def waiting(session):
    """Return the lanes that are to run, and whether at once."""
    rows = session.execute(
        select(Job.args, Job.state).where(Job.state.in_([JobState.QUEUED, JobState.SCHEDULED]))
    ).all()
    return sorted((args["lane"], state == JobState.QUEUED) for args, state in rows)


def server(session):
    return session.execute(
        select(MailServer).execution_options(populate_existing=True)
    ).scalar_one()


def soon(session, **span):
    return session.execute(select(utc_now())).scalar_one() + timedelta(**span)


def until_due(session, mail_id):
    return read_row(session, mail_id).due_at - session.execute(select(utc_now())).scalar_one()


def test_sent_message_is_sent_once(session):
    mail_id = put(session)
    transport, result = deliver(session)
    mail = read_row(session, mail_id)
    assert (mail.state, mail.attempt, mail.repeats, mail.reply, mail.body is None) == (
        MailState.SENT,
        1,
        0,
        "250 kept",
        False,
    )
    assert transport.taken == [("noreply@school.example", "person1@school.example", mail.body)]
    assert (result, waiting(session)) == ({"sent": 1}, [])
    assert deliver(session, transport=transport)[0].taken == transport.taken


@pytest.mark.parametrize(("answer", "state"), [(None, MailState.SENT), (REFUSED, MailState.FAILED)])
def test_sensitive_body_is_erased_at_the_end(session, answer, state):
    mail_id = put(session, sensitive=True)
    deliver(session, answer)
    assert (read_row(session, mail_id).state, read_row(session, mail_id).body) == (state, None)


def test_sensitive_body_is_kept_while_it_is_needed(session):
    mail_id = put(session, sensitive=True)
    deliver(session, LATER)
    assert (read_row(session, mail_id).state, read_row(session, mail_id).body is None) == (
        MailState.QUEUED,
        False,
    )


def test_put_off_message_is_tried_later(session):
    mail_id = put(session)
    deliver(session, LATER)
    mail = read_row(session, mail_id)
    assert (mail.state, mail.attempt, mail.repeats, mail.claim_id, mail.reply) == (
        MailState.QUEUED,
        1,
        0,
        None,
        "451 later",
    )
    assert timedelta(seconds=29) < until_due(session, mail_id) <= timedelta(minutes=1)
    assert waiting(session) == [(0, False)]


def test_attempts_are_used_up(session):
    mail_id = put(session)
    session.execute(update(Mail).values(attempt=delivery.MAX_ATTEMPTS - 1))
    deliver(session, LATER)
    assert (read_row(session, mail_id).state, read_row(session, mail_id).reply) == (
        MailState.FAILED,
        "451 later",
    )


def test_refused_message_fails_and_touches_no_other(session):
    bad, good = put(session, 1), put(session, 2)
    _, result = deliver(session, REFUSED)
    assert (read_row(session, bad).state, read_row(session, good).state) == (
        MailState.FAILED,
        MailState.SENT,
    )
    assert result == {"failed": 1, "sent": 1}


def test_dead_address_is_suppressed_in_the_end(session):
    ids = [put(session, number, recipient="gone@school.example") for number in range(5)]
    deliver(session, *[DEAD] * outbox.SUPPRESSED_AFTER)
    states = [read_row(session, mail_id).state for mail_id in ids]
    assert states == [MailState.FAILED] * 3 + [MailState.SUPPRESSED] * 2


@pytest.mark.parametrize(
    ("resend", "state", "repeats"), [(True, MailState.QUEUED, 1), (False, MailState.UNKNOWN, 0)]
)
def test_unknown_message_follows_its_policy(session, resend, state, repeats):
    mail_id = put(session, resend=resend)
    message_id = read_row(session, mail_id).message_id
    deliver(session, UNKNOWN)
    mail = read_row(session, mail_id)
    assert (mail.state, mail.repeats, mail.message_id, mail.ended_at is None) == (
        state,
        repeats,
        message_id,
        resend,
    )


def test_unknown_message_is_not_sent_again_past_its_deadline(session):
    mail_id = put(session)
    session.execute(update(Mail).values(expires_at=soon(session, seconds=20)))
    deliver(session, UNKNOWN)
    assert (read_row(session, mail_id).state, read_row(session, mail_id).repeats) == (
        MailState.UNKNOWN,
        0,
    )


def test_nothing_is_sent_past_its_deadline(session):
    mail_id = put(session, expires_at=LONG_AGO)
    transport, _ = deliver(session)
    assert (
        read_row(session, mail_id).state,
        read_row(session, mail_id).reply,
        transport.taken,
    ) == (
        MailState.FAILED,
        "its deadline passed",
        [],
    )


def test_message_that_is_not_due_waits(session):
    mail_id = put(session)
    session.execute(update(Mail).values(due_at=soon(session, hours=1)))
    transport, _ = deliver(session)
    assert (read_row(session, mail_id).state, transport.taken, waiting(session)) == (
        MailState.QUEUED,
        [],
        [(0, False)],
    )


def test_urgent_message_goes_first(session):
    put(session, 1), put(session, 2, priority=0)
    transport, _ = deliver(session)
    assert [taken[1] for taken in transport.taken] == [
        "person2@school.example",
        "person1@school.example",
    ]


def test_server_that_is_away_costs_no_attempt_and_is_left_alone(session, caplog):
    ids = [put(session, number) for number in range(3)]
    with caplog.at_level(logging.ERROR):
        transport, result = deliver(session, AWAY)
    assert [
        (read_row(session, mail_id).state, read_row(session, mail_id).attempt) for mail_id in ids
    ] == [(MailState.QUEUED, 0)] * 3
    assert (result, transport.taken, waiting(session)) == ({"queued": 1}, [], [(0, False)])
    assert (
        server(session).failures,
        server(session).error,
        server(session).failing_since is None,
    ) == (1, "refused", False)
    assert [record.getMessage() for record in caplog.records] == [
        "the mail server memory does not take our mail: refused"
    ]
    # While it is to be left alone, nobody asks it.
    assert deliver(session)[0].taken == []


def test_server_that_is_back_is_asked_by_one_lane_first(session):
    ids = [put(session, number) for number in range(120)]
    deliver(session, AWAY)
    session.execute(update(MailServer).values(paused_until=LONG_AGO))
    assert deliver(session, lane=1)[0].taken == []
    assert waiting(session) == [(0, False)]
    deliver(session, AWAY)
    assert server(session).failures == 2
    session.execute(update(MailServer).values(paused_until=LONG_AGO))
    transport, _ = deliver(session)
    assert (len(transport.taken), server(session).failures, server(session).error) == (
        delivery.SLICE,
        0,
        None,
    )
    assert waiting(session) == [(0, True)]
    deliver(session)
    assert [read_row(session, mail_id).state for mail_id in ids].count(MailState.SENT) == 100


def test_too_many_connections_pause_the_server(session):
    put(session, 1), put(session, 2)
    transport, _ = deliver(session, TOO_MANY)
    assert (transport.taken, server(session).failures) == ([], 1)
    assert sorted(session.execute(select(Mail.attempt)).scalars()) == [0, 1]


def test_slice_ends_and_the_next_begins(session):
    for number in range(delivery.SLICE + 1):
        put(session, number)
    transport, result = deliver(session)
    assert (len(transport.taken), result) == (delivery.SLICE, {"sent": delivery.SLICE})
    assert waiting(session) == [(0, True), (1, True)]


def test_job_goes_on_with_the_next_slice_for_a_while(session):
    for number in range(2 * delivery.SLICE + 1):
        put(session, number)
    transport, result = deliver(session, work_for=timedelta(days=1))
    assert (len(transport.taken), result) == (
        2 * delivery.SLICE + 1,
        {"sent": 2 * delivery.SLICE + 1},
    )
    assert len({recipient for _, recipient, _ in transport.taken}) == len(transport.taken)


def test_lane_beyond_the_limit_does_not_go_on(session):
    for number in range(delivery.SLICE + 1):
        put(session, number)
    deliver(session, lane=1, concurrency=1)
    assert waiting(session) == [(0, False)]


def test_message_that_another_lane_puts_off_is_not_forgotten(session):
    put(session)
    # Lane 0 has ended meanwhile: there was nothing queued for it.
    deliver(session, LATER, lane=1)
    assert waiting(session) == [(0, False)]


def test_rate_holds(session):
    for number in range(20):
        put(session, number)
    transport, _ = deliver(session, rate=60)
    # A tenth of a minute's messages at once; the rest one by one.
    assert len(transport.taken) == 6
    assert deliver(session, rate=60, transport=transport)[0].taken == transport.taken
    assert waiting(session) == [(0, False)]
    a_minute_ago = server(session).rate_at - timedelta(minutes=1)
    session.execute(update(MailServer).values(rate_at=a_minute_ago))
    assert len(deliver(session, rate=60, transport=transport)[0].taken) == 12


@pytest.mark.parametrize("rate", [1, 7, 30, 100, 6000])
def test_rate_is_no_more_in_any_minute(rate):
    burst, gap = delivery._compute_pace(rate)
    # The burst at the beginning of a minute, and what follows within it.
    assert burst + int((timedelta(minutes=1) - timedelta(microseconds=1)) / gap) <= rate


@pytest.mark.parametrize("answer", [LATER, AWAY, UNKNOWN])
def test_address_that_is_suppressed_during_a_try_is_not_tried_again(session, answer):
    class Suppressing(MemoryTransport):
        def send(self, sender, recipient, content):
            outbox.suppress(session, recipient, now=NOW)
            return answer

    mail_id, other = (
        put(session, 1, recipient="Anna@school.example", sensitive=True),
        put(session, 2),
    )
    _, result = deliver(session, transport=Suppressing())
    assert (read_row(session, mail_id).state, read_row(session, mail_id).body) == (
        MailState.SUPPRESSED,
        None,
    )
    assert (result["suppressed"], read_row(session, other).ended_at is None) == (
        (1, True) if answer is AWAY else (2, False)
    )


def test_address_that_is_suppressed_while_its_sender_dies_is_not_tried_again(session):
    mail_id = put(session)
    run, _ = die(session)
    fail_job(session, run)
    outbox.suppress(session, "person1@school.example", now=NOW)
    delivery.release_orphans(session, terms())
    assert read_row(session, mail_id).state == MailState.SUPPRESSED


class Dying(MemoryTransport):
    """Takes the message and dies before anybody hears of it."""

    def send(self, sender, recipient, content):
        super().send(sender, recipient, content)
        raise KeyboardInterrupt


def die(session):
    """Let a job die between the server's taking a message and the record of it."""
    run, transport = start(session), Dying()
    with pytest.raises(KeyboardInterrupt):
        delivery.deliver(run, 0, transport, terms())
    return run, transport


def fail_job(session, run):
    run.fail(
        session, claims.describe(RuntimeError("its worker was killed")), retry_after=timedelta()
    )


def test_message_of_a_living_sender_is_left_alone(session):
    mail_id = put(session)
    die(session)
    delivery.release_orphans(session, terms())
    assert read_row(session, mail_id).state == MailState.SENDING


@pytest.mark.parametrize(
    ("resend", "state", "repeats"), [(True, MailState.QUEUED, 1), (False, MailState.UNKNOWN, 0)]
)
def test_message_of_a_dead_sender_is_unknown(session, resend, state, repeats):
    mail_id = put(session, resend=resend)
    run, _ = die(session)
    fail_job(session, run)
    delivery.release_orphans(session, terms())
    mail = read_row(session, mail_id)
    assert (mail.state, mail.repeats, mail.reply) == (state, repeats, "its sender died")


def test_bounded_number_of_messages_is_released_the_oldest_first(session, monkeypatch):
    monkeypatch.setattr(outbox, "BATCH", 1)
    ids = [put(session, number) for number in (1, 2)]
    for minutes, mail_id in enumerate(ids):
        lost = {"state": MailState.SENDING, "claim_id": uuid4()}
        claimed_at = LONG_AGO - timedelta(minutes=minutes)
        session.execute(
            update(Mail).where(Mail.id == mail_id).values(**lost, claimed_at=claimed_at)
        )
    for released in (1, 2, 2):
        delivery.release_orphans(session, terms())
        states = [read_row(session, mail_id).state for mail_id in reversed(ids)]
        assert states == ["queued"] * released + ["sending"] * (2 - released)


def test_repeat_carries_the_same_bytes(session):
    put(session)
    run, transport = die(session)
    fail_job(session, run)
    delivery.release_orphans(session, terms())
    session.execute(update(Mail).values(due_at=LONG_AGO))
    assert deliver(session)[0].taken == transport.taken


def record(session, run, mail_id, answer):
    mail = read_row(session, mail_id)
    taken = outbox.Claimed(
        mail.id, mail.kind, mail.dedupe_key, mail.recipient, None, None, None, 1, mail.body, NOW
    )
    return delivery._record(session, run.claim_id, taken, answer, terms())


def test_sender_that_was_presumed_dead_overrules_nobody(session):
    mail_id = put(session)
    stalled, _ = die(session)
    fail_job(session, stalled)
    delivery.release_orphans(session, terms())
    session.execute(update(Mail).values(due_at=LONG_AGO))
    deliver(session, LATER)
    assert record(session, stalled, mail_id, REFUSED) == "lost"
    assert read_row(session, mail_id).state == MailState.QUEUED
    # Nor does it take another one: its job is not its own any more.
    assert delivery._claim(session, stalled.claim_id, terms()) is None


def test_sender_whose_message_was_taken_from_it_records_and_claims_nothing(session):
    mail_id = put(session)
    stalled, _ = die(session)
    taken = outbox.Claimed(
        mail_id, "notice", "notice:1", "anna@school.example", None, None, None, 1, b"", NOW
    )
    fail_job(session, stalled)
    delivery.release_orphans(session, terms())
    put(session, 2)
    step = delivery._record_and_claim(
        stalled, taken, OK, terms(), session, failing=False, going_on=True
    )
    assert (step, read_row(session, mail_id).state) == (("lost", None), MailState.QUEUED)


def test_sender_that_was_presumed_dead_may_still_tell_what_nobody_knows(session):
    mail_id = put(session, resend=False)
    stalled, _ = die(session)
    fail_job(session, stalled)
    delivery.release_orphans(session, terms())
    assert record(session, stalled, mail_id, OK) == "sent"


def test_message_that_was_given_up_and_is_put_off_after_all_has_not_ended(session):
    mail_id = put(session, resend=False)
    stalled, _ = die(session)
    fail_job(session, stalled)
    delivery.release_orphans(session, terms())
    assert (record(session, stalled, mail_id, LATER), read_row(session, mail_id).ended_at) == (
        "queued",
        None,
    )
    # Or its deadline would not end it, and the lane would be called for it again and again.
    session.execute(update(Mail).values(due_at=LONG_AGO, expires_at=LONG_AGO))
    deliver(session)
    assert (read_row(session, mail_id).state, waiting(session)) == (MailState.FAILED, [])


def test_message_that_is_queued_while_the_lane_ends_is_not_forgotten(session):
    run = start(session)
    put(session)
    # The lane found nothing and is about to end; the message's own call met the running job.
    delivery._finish(run, 0, {}, terms(), session)
    assert waiting(session) == [(0, True)]


# --- the look before a message is sent ---


def deliver_checked(session, check):
    transport, run = MemoryTransport(), start(session)
    checked = outbox.MailCheck(frozenset({"notice"}), lambda: check)
    delivery.deliver(run, 0, transport, terms(), checked)
    return transport, session.get_one(Job, run.id).result


def test_message_that_is_not_wanted_any_more_is_cancelled_with_the_reason(session):
    unwanted, wanted = put(session, 1, sensitive=True), put(session, 2)

    def check(_, mail):
        return outbox.Halt("nobody wants it") if mail.id == unwanted else None

    transport, result = deliver_checked(session, check)
    mail = read_row(session, unwanted)
    assert (mail.state, mail.reply, mail.attempt, mail.body) == (
        MailState.CANCELLED,
        "nobody wants it",
        0,
        None,
    )
    assert mail.ended_at is not None
    assert read_row(session, wanted).state == MailState.SENT
    assert (len(transport.taken), result) == (1, {"cancelled": 1, "sent": 1})


def test_message_that_waits_is_looked_at_again_and_its_job_runs(session):
    mail_id = put(session)
    halt = outbox.Halt("not yet", wait=timedelta(minutes=3), job=PruneMail())
    transport, result = deliver_checked(session, lambda *_: halt)
    mail = read_row(session, mail_id)
    assert (mail.state, mail.reply, mail.attempt, mail.claim_id, mail.ended_at) == (
        MailState.QUEUED,
        "not yet",
        0,
        None,
        None,
    )
    assert timedelta(minutes=2) < until_due(session, mail_id) <= timedelta(minutes=3)
    assert (transport.taken, result) == ([], {"put off": 1})
    assert_enqueued(session, PruneMail)


def test_message_that_cannot_be_checked_waits_and_the_others_go(session):
    bad, good = put(session, 1), put(session, 2)

    def check(_, mail):
        if mail.id == bad:
            raise ValueError("what is this?")

    deliver_checked(session, check)
    assert [read_row(session, one).state for one in (bad, good)] == ["queued", "sent"]
    assert until_due(session, bad) > timedelta(minutes=4)


def test_sender_that_lost_its_claim_halts_nothing(session):
    mail_id = put(session)

    def check(*_):
        session.execute(update(Mail).values(state=MailState.QUEUED, claim_id=None))
        return outbox.Halt("nobody wants it")

    _, result = deliver_checked(session, check)
    assert result["lost"] >= 1
    assert read_row(session, mail_id).state != MailState.CANCELLED
