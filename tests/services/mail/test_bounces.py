"""What reports of other servers say, and what follows from them, on both databases."""

from dataclasses import replace
from datetime import timedelta

import pytest
from nightshift.database import Session
from sqlalchemy import select, update

from services.mail import bounces, outbox
from services.mail.bounces import Complaints, read_report, settle
from services.mail.models import BounceKind, Mail, MailState, Suppression
from tests import reports
from tests.conftest import NOW
from tests.messages import put, read_row
from tests.one_session import OneSession
from tests.reports import Sent

SECRET = "a secret of the test's own"
RETURN = "bounces@school.example"

K = BounceKind
# Name: what the server writes, and what it means.
REPORTS = {
    "postfix": (reports.postfix, K.FAILED, "5.1.1"),
    "postfix, the headers only": (lambda s: reports.postfix(s, headers=True), K.FAILED, "5.1.1"),
    "postfix, no such domain": (lambda s: reports.postfix(s, status="5.1.2"), K.FAILED, "5.1.2"),
    "postfix, mailbox full": (lambda s: reports.postfix(s, status="5.2.2"), K.FAILED, "5.2.2"),
    "postfix, policy": (lambda s: reports.postfix(s, status="5.7.1"), K.FAILED, "5.7.1"),
    "postfix, our address": (lambda s: reports.postfix(s, status="5.1.8"), K.FAILED, "5.1.8"),
    "postfix, late": (
        lambda s: reports.postfix(s, status="4.4.1", action="delayed"), K.DELAYED, "4.4.1",
    ),
    "postfix, gave up": (lambda s: reports.postfix(s, status="4.4.7"), K.FAILED, "4.4.7"),
    "postfix, delivered": (
        lambda s: reports.postfix(s, status="2.0.0", action="delivered"), K.DELIVERED, "2.0.0",
    ),
    "postfix, relayed": (
        lambda s: reports.postfix(s, status="2.1.9", action="relayed"), K.DELIVERED, "2.1.9",
    ),
    "exchange": (reports.exchange, K.FAILED, "5.1.10"),
    "exchange, utf-16": (lambda s: reports.exchange(s, charset="utf-16"), K.FAILED, "5.1.10"),
    "exchange, windows-1252": (
        lambda s: reports.exchange(s, charset="windows-1252"), K.FAILED, "5.1.10",
    ),
    "exchange, restricted": (lambda s: reports.exchange(s, status="5.7.133"), K.FAILED, "5.7.133"),
    "gmail": (reports.gmail, K.FAILED, "5.1.1"),
    "gmail, full": (lambda s: reports.gmail(s, status="5.2.2"), K.FAILED, "5.2.2"),
    "gmail, late": (
        lambda s: reports.gmail(s, status="4.2.1", action="delayed"), K.DELAYED, "4.2.1",
    ),
    "qmail": (reports.qmail, K.FAILED, "5.1.1"),
    "qmail, without a code": (lambda s: reports.qmail(s, said="It is gone."), K.FAILED, ""),
    "qmail, full": (lambda s: reports.qmail(s, said="Over quota. (#5.2.2)"), K.FAILED, "5.2.2"),
    "exim": (reports.exim, K.FAILED, "5.1.1"),
    "exim, without a status": (lambda s: reports.exim(s, said="550 No such user"), K.FAILED, ""),
    "exim 4.83": (reports.new_exim, K.FAILED, "5.1.1"),
    "encoded fields": (reports.encoded_status, K.FAILED, "5.1.1"),
    "an address that is not ASCII": (reports.international, K.FAILED, "5.1.1"),
    "a complaint": (reports.complaint, K.COMPLAINT, ""),
    "a complaint of fraud": (lambda s: reports.complaint(s, kind="fraud"), K.COMPLAINT, ""),
    "no complaint": (lambda s: reports.complaint(s, kind="not-spam"), K.OTHER, ""),
    "away": (reports.vacation, K.OTHER, ""),
}  # fmt: skip


def send(session: Session, number: int = 1, **changes: object) -> Sent:
    """Queue a message that a server has taken."""
    mail_id = put(session, number, **changes)
    session.execute(
        update(Mail).where(Mail.id == mail_id).values(state=MailState.SENT, ended_at=NOW)
    )
    row = read_row(session, mail_id)
    return Sent(row.message_id, row.recipient, RETURN, mail_id)


def refusals(session: Session) -> dict[str, int]:
    return dict(session.execute(select(Suppression.address, Suppression.refusals)).all())


@pytest.mark.parametrize("name", REPORTS)
def test_report_is_settled(session: Session, name: str) -> None:
    write, kind, status = REPORTS[name]
    sent = send(session)

    settled = settle(session, write(sent), secret=SECRET, now=NOW)

    assert (settled.kind, settled.mail_id, settled.status) == (kind, sent.mail_id, status)
    assert sent.recipient not in settled.reply
    counted = kind is K.FAILED and status in ("5.1.1", "5.1.2", "5.1.10")
    assert refusals(session) == ({sent.recipient: 1} if counted else {})
    assert read_row(session, sent.mail_id).state is MailState.SENT


@pytest.mark.parametrize("name", REPORTS)
def test_forged_report_changes_nothing(session: Session, name: str) -> None:
    write, kind, _ = REPORTS[name]
    sent = send(session)
    calls: list[Mail] = []
    forged_path = bounces.make_return_path(RETURN, "another secret", sent.mail_id)
    forged = replace(sent, message_id="<guessed@school.example>", return_path=forged_path)

    settled = settle(
        session,
        write(forged),
        secret=SECRET,
        complaints=Complaints(lambda _session, mail: calls.append(mail)),
        now=NOW,
    )

    assert (settled.kind, settled.mail_id) == (kind, None)
    assert (refusals(session), calls) == ({}, [])
    (row,) = bounces.find_bounces(session)
    assert (row.mail_id, row.kind) == (None, kind)


def test_report_without_the_message_is_matched_by_the_return_path(session: Session) -> None:
    sent = send(session)
    path = bounces.make_return_path(RETURN, SECRET, sent.mail_id).upper()
    stripped = replace(sent, message_id="<rewritten@mx.example>", return_path=path)

    settled = settle(session, reports.postfix(stripped), secret=SECRET, now=NOW)

    assert (settled.mail_id, refusals(session)) == (sent.mail_id, {sent.recipient: 1})


@pytest.mark.parametrize(
    "path",
    [
        "bounces@school.example",
        "bounces+1.@school.example",
        "bounces+2.{sign}@school.example",
        "bounces+1.{sign}0@school.example",
        "bounces+99999999999999999999.{sign}@school.example",
        "bounces+1.\x00@school.example",
        "",
    ],
)
def test_return_path_that_we_did_not_sign_is_nobodys(path: str) -> None:
    sign = bounces.make_return_path(RETURN, SECRET, 1).partition(".")[2].partition("@")[0]

    assert bounces.read_return_path(path.format(sign=sign), SECRET) is None
    assert bounces.read_return_path(bounces.make_return_path(RETURN, "", 1), "") is None


def test_return_path_fits_a_mail_server(session: Session) -> None:
    path = bounces.make_return_path("a" * 24 + "@school.example", SECRET, 10**18 - 1)

    assert len(path.partition("@")[0]) <= 64
    assert bounces.read_return_path(path, SECRET) == 10**18 - 1


def test_third_message_that_comes_back_suppresses_the_address(session: Session) -> None:
    to = {"recipient": "gone@school.example"}
    sents = [send(session, number, **to) for number in range(1, 4)]
    waiting = put(session, 9, **to)

    for number, sent in enumerate(sents, 1):
        settle(session, reports.postfix(sent), secret=SECRET, now=NOW)
        state = read_row(session, waiting).state
        assert state is (MailState.SUPPRESSED if number == 3 else MailState.QUEUED)


def test_reports_on_one_message_count_once(session: Session) -> None:
    sent = send(session)
    same = reports.postfix(sent)

    first = settle(session, same, secret=SECRET, now=NOW)
    again = settle(session, same, secret=SECRET, now=NOW + timedelta(days=1))
    other = settle(session, reports.gmail(sent), secret=SECRET, now=NOW)

    assert [one.is_new for one in (first, again, other)] == [True, False, True]
    assert replace(again, is_new=True) == first
    assert refusals(session) == {sent.recipient: 1}
    assert len(bounces.find_bounces(session)) == 2


def test_report_on_a_late_message_and_then_on_its_end(session: Session) -> None:
    sent = send(session)
    for status, action in (("4.4.1", "delayed"), ("5.1.1", "failed")):
        raw = reports.postfix(sent, status=status, action=action)
        settle(session, raw, secret=SECRET, now=NOW)

    assert refusals(session) == {sent.recipient: 1}
    assert bounces.find_of(session, [sent.mail_id])[sent.mail_id].status == "5.1.1"
    assert bounces.count_bounces(session) == {("delayed", "yes"): 1, ("failed", "yes"): 1}


def test_failure_of_another_address_is_shown_and_does_not_count(session: Session) -> None:
    sent = send(session)
    # The message was sent to a list, or on to another mailbox.
    raw = reports.postfix(replace(sent, recipient="member@elsewhere.example"))

    settled = settle(session, raw, secret=SECRET, now=NOW)

    assert (settled.kind, settled.mail_id, refusals(session)) == (K.FAILED, sent.mail_id, {})


def test_complaint_is_given_to_the_noun(session: Session) -> None:
    sent = send(session)
    told: list[int] = []
    complaints = Complaints(lambda _session, mail: told.append(mail.id))

    settle(session, reports.complaint(sent), secret=SECRET, complaints=complaints, now=NOW)

    assert (told, refusals(session)) == ([sent.mail_id], {})


HOSTILE = {
    "nothing": b"",
    "no mail": b"\xff\xfe\x00" * 100,
    "deep": b"".join(
        b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n)
        for n in range(3000)
    ),
    "many parts": b'Content-Type: multipart/report; boundary="x"\r\n\r\n'
    + b"--x\r\nContent-Type: text/plain\r\n\r\na\r\n" * 20_000,
    "a charset that does not exist": b"Content-Type: text/plain; charset=klingon\r\n\r\n\xff",
    "NUL": b"Message-ID: <a\x00b@c>\r\nReferences: <a\x00b@c>\r\nTo: b+1.\x00@a\r\n\r\nx\x00",
    "a long line": b"Subject: " + b"a" * 500_000 + b"\r\n\r\n" + b"<" * 500_000,
    "a header of bytes": b"Subject: \xff\xfe\r\nTo: \xff <\xfe@\xfd>\r\n\r\n",
    "an endless code": b"Subject: x\r\n\r\n" + b"5." * 400_000,
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_no_report(session: Session, raw: bytes) -> None:
    settled = settle(session, raw, secret=SECRET, now=NOW)

    assert (settled.kind, settled.mail_id) == (K.OTHER, None)
    assert len(settled.reply) <= 500


def test_status_is_bounded() -> None:
    raw = reports.postfix(Sent("<a@b>", "c@d.example"), status="5.1.1").replace(
        b"Status: 5.1.1", b"Status: 5." + b"1" * 200
    )

    assert len(read_report(raw).status) <= 20


def test_old_reports_are_deleted_with_their_messages(session: Session) -> None:
    """A report of no message is kept as long as a message that failed."""
    month, old = timedelta(days=30), NOW - timedelta(days=3650)
    sent = send(session)
    settle(session, reports.postfix(sent), secret=SECRET, now=NOW)
    settle(session, b"Subject: nothing\r\n\r\n", secret=SECRET, now=old)
    session.execute(update(Mail).values(ended_at=old))

    outbox.prune(OneSession(session).unit_of_work, keep_sent=month, keep_others=month)

    assert bounces.find_bounces(session) == []
