"""Links that turn a kind of mail off, on both databases."""

from dataclasses import replace
from datetime import timedelta

import pytest
from itsdangerous import URLSafeSerializer
from nightshift.errors import InvalidInput

from services.letters import unsubscribe
from services.mail.models import Mail
from services.school.models import User
from services.translation import Locale
from tests.conftest import NOW
from tests.services.letters.conftest import RULES


def token(user_id, flag="mail_events", *, rules=RULES, at=NOW):
    address, _, value = unsubscribe.make_link(rules, user_id, flag, now=at).partition("?t=")
    assert address == "https://calendar.school.example/u/unsubscribe"
    return value


def redeem(session, value, *, now=NOW):
    return unsubscribe.unsubscribe(session, value, secret=RULES.link_secret, now=now)


def flags(session, user_id):
    user = session.get_one(User, user_id, populate_existing=True)
    return {flag: getattr(user, flag) for flag in unsubscribe.FLAGS}


@pytest.mark.parametrize("flag", unsubscribe.FLAGS)
def test_link_turns_off_just_one_kind_of_one_user(session, school, flag):
    fred, everything = school.ids["fred"], dict.fromkeys(unsubscribe.FLAGS, True)
    for user_id in (fred, school.ids["ann"]):
        session.get_one(User, user_id).mail_digest = True
    session.flush()
    assert [redeem(session, token(fred, flag)) for _ in range(2)] == [Locale.FRENCH] * 2
    assert flags(session, fred) == everything | {flag: False}
    assert flags(session, school.ids["ann"]) == everything


def test_flags_are_those_of_users():
    columns = [column.key for column in User.__table__.columns]
    assert set(unsubscribe.FLAGS) == {name for name in columns if name.startswith("mail_")}


def bad(user_id):
    good = token(user_id)
    payload = [user_id, 0, int((NOW + timedelta(days=1)).timestamp())]
    return {
        "empty": "",
        # Not at the end: the last character may hold bits that mean nothing.
        "changed": ("A" if good[0] != "A" else "B") + good[1:],
        "another's": token(user_id + 1).partition(".")[0] + "." + good.partition(".")[2],
        "other secret": token(user_id, rules=replace(RULES, link_secret="another")),
        "other purpose": URLSafeSerializer(RULES.link_secret, salt="reset").dumps(payload),
        "expired": token(user_id, at=NOW - timedelta(days=365)),
        "nobody's": token(10**9),
    }


@pytest.mark.parametrize("fault", bad(1))
def test_bad_link_is_refused_and_changes_nothing(session, school, fault):
    with pytest.raises(InvalidInput, match="does not work"):
        redeem(session, bad(school.ids["ann"])[fault])
    assert flags(session, school.ids["ann"]) == {
        "mail_events": True,
        "mail_reviews": True,
        "mail_digest": False,
    }


@pytest.mark.parametrize(
    "payload",
    [
        1,
        None,
        "abc",
        {},
        [],
        [1],
        [1, 0],
        [1, 0, 1e12, 0],
        [1, 0, None],
        [1, 0, "soon"],
        [[1], 0, 10**12],
        [10**30, 0, 10**12],
        [-1, 0, 10**12],
        [1.5, 0, 10**12],
        [1, -1, 10**12],
        [1, 99, 10**12],
        [1, 0, 10**400],
    ],
)
def test_link_that_says_something_odd_is_refused(session, school, payload):
    signed = URLSafeSerializer(RULES.link_secret, salt="unsubscribe").dumps(payload)
    with pytest.raises(InvalidInput, match="does not work"):
        redeem(session, signed)


def test_link_lasts_a_year(session, school):
    assert (
        redeem(session, token(school.ids["ann"]), now=NOW + timedelta(days=364)) == Locale.ENGLISH
    )


def test_without_a_secret_no_link_is_made():
    with pytest.raises(InvalidInput, match="LINK_SECRET"):
        token(1, rules=replace(RULES, link_secret=""))


def test_secret_is_not_shown():
    assert "a secret" not in repr(RULES)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("event_changed", "mail_events"),
        ("review_requested", "mail_reviews"),
        ("digest", "mail_digest"),
        ("welcome", None),
        ("of another program", None),
    ],
)
@pytest.mark.parametrize("names_reader", [True, False])
def test_complaint_turns_off_what_the_letter_is_sent_for(session, school, kind, flag, names_reader):
    fred, ann = school.ids["fred"], school.ids["ann"]
    for user_id in (fred, ann):
        session.get_one(User, user_id).mail_digest = True
    session.flush()
    address = session.get_one(User, fred).email
    complaint = Mail(kind=kind, recipient=address.upper(), reader_id=fred if names_reader else None)

    unsubscribe.turn_off_after_complaint(session, complaint)

    everything = dict.fromkeys(unsubscribe.FLAGS, True)
    assert flags(session, fred) == everything | ({flag: False} if flag else {})
    assert flags(session, ann) == everything
