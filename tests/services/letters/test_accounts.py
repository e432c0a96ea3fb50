"""The mails about an account, and their keys: made once, redeemed once, written nowhere else."""

import hashlib
import re
import threading
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from uuid import uuid4

import pytest
from nightshift.database import Base, Session, make_engine
from nightshift.errors import NotFound
from nightshift.jobs import Discard
from nightshift.jobs.claims import describe
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DBAPIError

from services.calendars import feeds
from services.calendars.models import Feed
from services.letters import accounts
from services.letters.rules import LetterRules
from services.mail import outbox
from services.mail.models import Mail
from services.school.models import KeyPurpose, Role, Subscription, User, UserKey
from services.translation import Locale
from tests.conftest import NOW, ZONE

RULES = LetterRules(
    "School <noreply@school.example>", "School", "https://calendar.school.example", ZONE
)
VERIFY, RESET = KeyPurpose.VERIFY_ADDRESS, KeyPurpose.RESET_PASSWORD


def add_user(session, email="anna@school.example", **values):
    given = {
        "first_name": "Anna",
        "last_name": "Müller",
        "role": Role.TEACHER,
        "locale": Locale.ENGLISH,
        "created_at": NOW,
    }
    user = User(email=email, **given | values)
    session.add(user)
    session.flush()
    return user


def mails(session):
    return list(session.scalars(select(Mail).order_by(Mail.id)))


def said(mail):
    return message_from_bytes(mail.body, policy=default).get_body(("plain",)).get_content()


def send(session, user, purpose, request_id=None, now=NOW):
    return accounts.queue_key(
        session, user.id, purpose, RULES, request_id=request_id or uuid4(), now=now
    )


def key_in(mail):
    return re.search(r"\?key=(\S+)", said(mail))[1]


def columns(session, table):
    return session.execute(select(Base.metadata.tables[table])).all()


@pytest.mark.parametrize(
    ("purpose", "path", "lasts"),
    [(VERIFY, "/u/verify", timedelta(days=1)), (RESET, "/u/reset", timedelta(hours=1))],
)
def test_key_mail_carries_a_link_and_its_deadline(session, purpose, path, lasts):
    user = add_user(session)

    result = send(session, user, purpose)

    (mail,) = mails(session)
    assert (mail.kind, mail.recipient, mail.expires_at) == (
        purpose,
        "anna@school.example",
        NOW + lasts,
    )
    assert (mail.sensitive, mail.resend, mail.state) == (True, False, "queued")
    assert f"{RULES.public_url}{path}?key={key_in(mail)}" in said(mail).splitlines()
    assert result == {"mail_id": mail.id}


def test_key_is_stored_as_a_hash_only(session):
    send(session, add_user(session), RESET)
    key = key_in(mails(session)[0])

    row = session.scalars(select(UserKey)).one()

    assert (len(key), row.hash) == (43, hashlib.sha256(key.encode()).digest())
    everything = [columns(session, name) for name in Base.metadata.tables if name != "mail"]
    assert key not in repr(everything)


def test_request_that_is_run_twice_makes_one_mail_whose_key_works(session):
    user, request_id = add_user(session), uuid4()

    results = [send(session, user, RESET, request_id) for _ in range(2)]

    (mail,) = mails(session)
    assert results == [{"mail_id": mail.id}] * 2
    assert accounts.redeem(session, key_in(mail), RESET, now=NOW) == user.id


def test_key_is_redeemed_once(session):
    user = add_user(session)
    key, _ = accounts.issue(session, user, RESET, now=NOW)

    assert accounts.redeem(session, key, RESET, now=NOW + timedelta(minutes=59)) == user.id
    with pytest.raises(NotFound):
        accounts.redeem(session, key, RESET, now=NOW + timedelta(minutes=59))


def test_another_key_works_after_the_first_was_used(session):
    user = add_user(session)
    redeemed = [
        accounts.redeem(session, accounts.issue(session, user, RESET, now=NOW)[0], RESET, now=NOW)
        for _ in range(2)
    ]
    assert redeemed == [user.id, user.id]


def use(session, user, key):
    accounts.redeem(session, key, RESET, now=NOW)


def issue_another(session, user, key):
    accounts.issue(session, user, RESET, now=NOW)


def change_address(session, user, key):
    session.execute(update(User).values(email="anna.meier@school.example"))


def delete_user(session, user, key):
    session.execute(delete(User).where(User.id == user.id))


@pytest.mark.parametrize(
    ("before", "change"),
    [
        (use, {}),
        (issue_another, {}),
        (change_address, {}),
        (delete_user, {}),
        (None, {"now": NOW + timedelta(hours=1)}),
        (None, {"now": NOW + timedelta(hours=2)}),
        (None, {"purpose": VERIFY}),
        (None, {"key": ""}),
        (None, {"key": "x" * 43}),
        (None, {"key": "\udcff"}),
    ],
)
def test_every_key_that_does_not_work_gives_the_same_error(session, before, change):
    user = add_user(session)
    key, expires_at = accounts.issue(session, user, RESET, now=NOW)
    assert expires_at == NOW + timedelta(hours=1)
    if before:
        before(session, user, key)

    given = {"key": key, "purpose": RESET, "now": NOW} | change
    with pytest.raises(NotFound) as raised:
        accounts.redeem(session, given["key"], given["purpose"], now=given["now"])

    assert str(raised.value) == "this key does not work, or does not any more: ask for a new one"


def test_new_key_leaves_those_for_other_purposes_and_people_alone(session):
    anna, beat = add_user(session), add_user(session, "beat@school.example")
    keys = [
        accounts.issue(session, user, purpose, now=NOW)[0]
        for user, purpose in ((anna, VERIFY), (anna, RESET), (beat, RESET))
    ]

    redeemed = [
        accounts.redeem(session, key, purpose, now=NOW)
        for key, purpose in zip(keys, (VERIFY, RESET, RESET), strict=True)
    ]

    assert redeemed == [anna.id, anna.id, beat.id]


@pytest.mark.parametrize(("purpose", "verified_at"), [(VERIFY, NOW), (RESET, None)])
def test_only_a_verifying_key_marks_the_address(session, purpose, verified_at):
    anna, beat = add_user(session), add_user(session, "beat@school.example")
    accounts.redeem(session, accounts.issue(session, anna, purpose, now=NOW)[0], purpose, now=NOW)

    session.expire_all()

    assert (anna.email_verified_at, beat.email_verified_at) == (verified_at, None)


def test_two_at_the_same_time_redeem_a_key_once(postgres_url):
    engine = make_engine(postgres_url)
    with Session(engine) as session:
        user = add_user(session, f"{uuid4()}@school.example")
        key, _ = accounts.issue(session, user, RESET, now=NOW)
        session.commit()
        user_id = user.id
    answers, start = [], threading.Barrier(8)

    def redeem():
        with Session(engine) as session:
            start.wait()
            try:
                answers.append(accounts.redeem(session, key, RESET, now=NOW))
            except NotFound:
                answers.append(None)
            session.commit()

    threads = [threading.Thread(target=redeem) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Session(engine) as session:
        session.execute(delete(User).where(User.id == user_id))
        session.commit()
    engine.dispose()

    assert sorted(answers, key=str) == sorted([user_id] + [None] * 7, key=str)


def test_failing_job_tells_neither_key_nor_address(session):
    user = add_user(session)
    session.execute(text("alter table mail rename column body to elsewhere"))

    with pytest.raises(DBAPIError) as raised:
        send(session, user, RESET)

    told = describe(raised.value)
    assert "INSERT INTO mail" in told["message"]
    assert "anna@school.example" not in repr(told)
    assert "key=" not in repr(told)


def test_welcome_carries_the_address_of_the_calendar(session):
    user = add_user(session)
    session.add(Subscription(user_id=user.id))
    session.flush()
    feeds.add_missing(session)

    accounts.queue_welcome(session, user.id, RULES, request_id=uuid4(), now=NOW)

    (mail,) = mails(session)
    token = session.scalar(select(Feed.token).where(Feed.owner_id == user.id))
    assert f"{RULES.public_url}/f/{token}.ics" in said(mail).splitlines()
    assert (mail.subject, mail.sensitive, mail.resend, mail.expires_at) == (
        "Welcome to School",
        True,
        True,
        NOW + timedelta(days=7),
    )


def test_welcome_of_somebody_without_a_calendar_is_not_sent(session):
    user = add_user(session)

    result = accounts.queue_welcome(session, user.id, RULES, request_id=uuid4(), now=NOW)

    assert (result, mails(session)) == (
        Discard("the user has no calendar, or its address was revoked"),
        [],
    )


def test_mail_speaks_the_users_language(session):
    send(session, add_user(session, locale=Locale.FRENCH), RESET)
    assert mails(session)[0].subject == "Choisir un nouveau mot de passe"


def test_job_whose_user_is_gone_is_discarded(session):
    assert accounts.queue_key(session, 4711, RESET, RULES, request_id=uuid4(), now=NOW) == Discard(
        "the user is gone"
    )
    assert accounts.queue_welcome(session, 4711, RULES, request_id=uuid4(), now=NOW) == Discard(
        "the user is gone"
    )


def test_key_mail_to_a_suppressed_address_keeps_no_key(session):
    send(session, add_user(session), RESET)
    (mail,) = mails(session)

    outbox.suppress(session, mail.recipient, now=NOW)

    session.expire_all()
    assert (mail.state, mail.body) == ("suppressed", None)
