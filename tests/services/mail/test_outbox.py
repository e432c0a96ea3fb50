"""What may be queued, what a person may do to it, and how long it is kept, on both databases."""

from contextlib import contextmanager
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP, default

import pytest
from nightshift.errors import Conflict, InvalidInput
from nightshift.jobs.models import Job
from sqlalchemy import select, update

from services.mail import outbox
from services.mail.models import Mail, MailState, Suppression
from tests.conftest import NOW
from tests.messages import ENCODED, NAMES, make_content, make_message, put, read_row


def parsed(session, mail_id):
    return message_from_bytes(read_row(session, mail_id).body, policy=default)


def set_state(session, mail_id, state, **values):
    session.execute(update(Mail).where(Mail.id == mail_id).values(state=state, **values))


def test_queued_message_is_finished(session):
    mail_id = put(session, name="Anna Müller", content=make_content("Grüezi"))
    mail, sent = read_row(session, mail_id), parsed(session, mail_id)
    assert (mail.state, mail.attempt, mail.repeats, mail.due_at) == (MailState.QUEUED, 0, 0, NOW)
    assert (sent["To"], sent["Subject"], sent["Message-ID"]) == (
        "Anna Müller <person1@school.example>",
        "Grüezi",
        mail.message_id,
    )
    assert (sent["Date"].datetime, sent["Auto-Submitted"]) == (NOW, "auto-generated")
    assert mail.message_id.endswith("@school.example>")
    assert mail.body.isascii()
    assert mail.body.count(b"\n") == mail.body.count(b"\r\n")


def test_same_key_is_the_same_message(session):
    first = put(session)
    assert put(session, content=make_content("Another")) == first
    assert (read_row(session, first).subject, len(outbox.find_mails(session))) == ("Hello", 1)


def test_many_are_queued_at_once_and_wake_one_job(session):
    ids = outbox.queue_many(session, [make_message(number) for number in range(600)], now=NOW)
    assert [read_row(session, mail_id).recipient for mail_id in ids] == [
        f"person{number}@school.example" for number in range(600)
    ]
    jobs = session.execute(select(Job.kind, Job.args)).all()
    assert [tuple(job) for job in jobs] == [("mail.deliver", {"lane": 0})]


def test_nothing_is_queued_for_nobody(session):
    assert outbox.queue_many(session, [], now=NOW) == []
    assert session.execute(select(Job.id)).all() == []


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nobody",
        "a b@school.example",
        "a@school.example\r\nBcc: b@school.example",
        "Anna <a@school.example>",
    ],
)
def test_malformed_address_fails_alone(session, address):
    good, bad = outbox.queue_many(
        session, [make_message(1), make_message(2, recipient=address)], now=NOW
    )
    assert (
        read_row(session, good).state,
        read_row(session, bad).state,
        read_row(session, bad).body,
    ) == (
        MailState.QUEUED,
        MailState.FAILED,
        None,
    )
    assert read_row(session, bad).reply.startswith("malformed address: ")


def test_line_break_in_a_header_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match=r"newline|linefeed"):
        make_content("Hello\r\nBcc: b@school.example")


def with_header(name, text):
    content = make_content()
    content[name] = text
    return content


@pytest.mark.parametrize("text", [ENCODED[0], ENCODED[1], "=?utf-8?q?a=0Ab?=", "=?utf-8?q?a=00b?="])
@pytest.mark.parametrize(
    "write",
    [
        make_content,
        lambda text: make_content(sender=f"{text} <noreply@school.example>"),
        lambda text: with_header("X-Other", text),
    ],
    ids=["Subject", "From", "another"],
)
def test_control_character_that_a_header_decodes_to_is_refused(session, write, text):
    try:
        content = write(text)
    except ValueError:  # Some releases of Python refuse it here.
        return
    with pytest.raises(InvalidInput, match="the header"):
        put(session, content=content)
    assert outbox.find_mails(session) == []


def test_content_without_sender_or_subject_is_refused(session):
    with pytest.raises(InvalidInput, match="From and Subject"):
        put(session, content=EmailMessage())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('Anna "the boss" Müller', "Anna the boss Müller"),
        ("Müller, Anna", "Müller Anna"),
        ("a@b.example: <c@d.example>", "a b.example c d.example"),
        ("Anna\r\nBcc: b@school.example", "Anna Bcc b school.example"),
        ("Anna\u202eanna", "Anna anna"),
        ("王秀英 🎓", "王秀英 🎓"),
        ("", ""),
        ("x" * 300, "x" * 300),
    ],
)
def test_display_name_is_cleaned(session, name, shown):
    sent = parsed(session, put(session, name=name))
    assert [(address.display_name, address.addr_spec) for address in sent["To"].addresses] == [
        (shown, "person1@school.example")
    ]
    assert sent["Bcc"] is None


@pytest.mark.parametrize(
    "name",
    [*NAMES, *ENCODED, 'a" <b@school.example>, "c', "Bcc:\r\nall@school.example", "=?utf-8?q?x?="],
)
def test_any_name_makes_one_recipient(session, name):
    content = make_content()
    put(session, recipient="anna@school.example", name=name, content=content)

    (address,) = content["To"].addresses
    read = message_from_bytes(content.as_bytes(policy=SMTP), policy=default)

    assert (address.addr_spec, len(read["To"].addresses)) == ("anna@school.example", 1)
    assert read["Bcc"] is None


def test_domain_becomes_ascii_and_local_part_stays(session):
    assert (
        read_row(session, put(session, 1, recipient="anna@bücher.example")).recipient
        == "anna@xn--bcher-kva.example"
    )
    mail_id = put(session, 2, recipient="jörg@bücher.example")
    assert read_row(session, mail_id).recipient == "jörg@xn--bcher-kva.example"
    assert "To: jörg@xn--bcher-kva.example".encode() in read_row(session, mail_id).body


def test_suppressed_address_gets_nothing(session):
    waiting = put(session, 1)
    other = put(session, 2)
    outbox.suppress(session, "Person1@School.example", now=NOW)
    later = put(session, 3, recipient="person1@school.EXAMPLE")
    states = [read_row(session, mail_id).state for mail_id in (waiting, other, later)]
    assert states == [MailState.SUPPRESSED, MailState.QUEUED, MailState.SUPPRESSED]
    assert outbox.unsuppress(session, "PERSON1@school.example")
    assert not outbox.unsuppress(session, "person1@school.example")
    assert (
        read_row(session, put(session, 4, recipient="person1@school.example")).state
        == MailState.QUEUED
    )


@pytest.mark.parametrize(
    "address", ["anna@bücher.example", "Anna@Bücher.Example", " anna@xn--bcher-kva.example\n"]
)
def test_address_is_suppressed_however_it_is_written(session, address):
    mail_id = put(session, 1, recipient="anna@bücher.example")
    outbox.suppress(session, address, now=NOW)
    later = put(session, 2, recipient="anna@bücher.example")
    assert [read_row(session, number).state for number in (mail_id, later)] == [
        MailState.SUPPRESSED
    ] * 2
    assert outbox.unsuppress(session, address)


def test_third_refusal_suppresses(session):
    waiting = put(session)
    for _ in range(outbox.SUPPRESSED_AFTER - 1):
        outbox.record_refusal(session, "person1@school.example", now=NOW)
    assert read_row(session, waiting).state == MailState.QUEUED
    outbox.record_refusal(session, "person1@school.example", now=NOW)
    assert read_row(session, waiting).state == MailState.SUPPRESSED


def test_held_message_waits_for_its_release(session):
    mail_id = put(session)
    outbox.hold(session, mail_id)
    assert read_row(session, mail_id).state == MailState.HELD
    with pytest.raises(Conflict, match="is held, not queued"):
        outbox.hold(session, mail_id)
    outbox.release(session, mail_id, now=NOW)
    assert read_row(session, mail_id).state == MailState.QUEUED


@pytest.mark.parametrize(("state", "repeats"), [(MailState.FAILED, 0), (MailState.UNKNOWN, 1)])
def test_retry_sends_once_more(session, state, repeats):
    mail_id = put(session)
    set_state(session, mail_id, state, attempt=12, ended_at=NOW)
    outbox.retry(session, mail_id, now=NOW)
    mail = read_row(session, mail_id)
    assert (mail.state, mail.attempt, mail.repeats, mail.ended_at) == (
        MailState.QUEUED,
        0,
        repeats,
        None,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"state": MailState.SENT}, "is sent"),
        ({"state": MailState.SENDING}, "is sending"),
        ({"state": MailState.FAILED, "expires_at": NOW}, "past its deadline"),
        ({"state": MailState.FAILED, "body": None}, "was erased"),
    ],
)
def test_retry_is_refused(session, values, message):
    mail_id = put(session)
    set_state(session, mail_id, **values)
    with pytest.raises(Conflict, match=message):
        outbox.retry(session, mail_id, now=NOW)


def test_retry_of_a_suppressed_address_is_refused(session):
    mail_id = put(session)
    set_state(session, mail_id, MailState.FAILED)
    outbox.suppress(session, "person1@school.example", now=NOW)
    with pytest.raises(Conflict, match="suppressed"):
        outbox.retry(session, mail_id, now=NOW)


def test_unknown_id_is_refused(session):
    with pytest.raises(Conflict, match="no mail 4711"):
        outbox.hold(session, 4711)


def test_deadline_ends_what_waits_and_erases_secrets(session):
    past = NOW - timedelta(days=1000)
    plain, secret = (
        put(session, 1, expires_at=past),
        put(session, 2, expires_at=past, sensitive=True),
    )
    held, in_time = put(session, 3, expires_at=past), put(session, 4)
    outbox.hold(session, held)
    assert outbox.fail_expired(session) == 3
    assert [read_row(session, mail_id).state for mail_id in (plain, secret, held, in_time)] == [
        MailState.FAILED
    ] * 3 + [MailState.QUEUED]
    assert (read_row(session, secret).body, read_row(session, plain).body is None) == (None, False)


def test_deadline_ends_a_bounded_number_of_messages_the_oldest_first(session, monkeypatch):
    monkeypatch.setattr(outbox, "BATCH", 2)
    past = NOW - timedelta(days=1000)
    ids = [put(session, n, expires_at=past - timedelta(days=n)) for n in range(3)]
    assert outbox.fail_expired(session) == 2
    assert [read_row(session, mail_id).state for mail_id in ids] == [
        MailState.QUEUED,
        MailState.FAILED,
        MailState.FAILED,
    ]
    assert [outbox.fail_expired(session) for _ in range(2)] == [1, 0]


def test_prune_keeps_what_is_young_or_open(session):
    @contextmanager
    def unit_of_work():
        yield session

    old = NOW - timedelta(days=1000)
    ids = {}
    for number, state in enumerate(MailState):
        ids[state] = put(session, number)
        ended = old if state in outbox.ENDED else None
        set_state(session, ids[state], state, ended_at=ended)
    young = put(session, 99)
    set_state(session, young, MailState.SENT, ended_at=NOW + timedelta(days=3650))
    secret = put(session, 100, sensitive=True, expires_at=old)
    set_state(session, secret, MailState.UNKNOWN, ended_at=NOW + timedelta(days=3650))
    outbox.record_refusal(session, "once@school.example", now=old)
    outbox.suppress(session, "never@school.example", now=old)
    assert (
        outbox.prune(unit_of_work, keep_sent=timedelta(days=30), keep_others=timedelta(days=90))
        == 5
    )
    left = set(session.execute(select(Mail.id)).scalars())
    assert left == {
        ids[MailState.QUEUED],
        ids[MailState.HELD],
        ids[MailState.SENDING],
        young,
        secret,
    }
    assert read_row(session, secret).body is None
    assert session.execute(select(Suppression.address)).scalars().all() == ["never@school.example"]


def test_counts(session):
    put(session, 1), put(session, 2)
    held = put(session, 3, kind="digest")
    outbox.hold(session, held)
    assert outbox.count_mails(session) == {("notice", "queued"): 2, ("digest", "held"): 1}
    long_ago = NOW - timedelta(days=1000)
    session.execute(update(Mail).values(due_at=long_ago))
    assert (
        outbox.find_oldest_due(session),
        outbox.count_repeats(session),
        outbox.find_failing_servers(session),
    ) == (
        long_ago,
        0,
        [],
    )
