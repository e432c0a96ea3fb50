"""Users one by one, and the mail that is asked for them, on both databases."""

import pytest
from nightshift.errors import Conflict, InvalidInput, NotFound
from nightshift.jobs.models import Job
from sqlalchemy import select

from services.school import users
from services.school.models import KeyPurpose, Role, SchoolClass, Subscription, User
from services.translation import Locale
from tests.conftest import NOW

ANNA = {
    "email": "Anna@School.example",
    "first_name": "Anna",
    "last_name": "Müller",
    "role": "student",
    "class": "27Ga",
}


def add(session, **changes):
    return users.register(session, users.read_details(ANNA | changes), now=NOW)


def jobs(session):
    found = [(job.kind, job.args) for job in session.scalars(select(Job))]
    return sorted(found, key=str)


@pytest.fixture(autouse=True)
def school(session):
    session.add(SchoolClass(name="27Ga"))
    session.flush()


def test_registered_user_has_a_calendar_and_is_welcomed(session):
    user_id = add(session, locale="fr", untis_id="")

    user = session.get(User, user_id)
    assert (user.email, user.first_name, user.role, user.locale) == (
        "anna@school.example",
        "Anna",
        Role.STUDENT,
        Locale.FRENCH,
    )
    assert (user.class_id, user.untis_id, user.created_at) == (
        session.scalar(select(SchoolClass.id)),
        None,
        NOW,
    )
    assert session.get(Subscription, user_id).follows_me
    assert jobs(session) == [("mail.send_welcome", {"user_id": user_id})]


@pytest.mark.parametrize("changes", [{}, {"email": "other@school.example"}])
def test_address_or_untis_id_of_somebody_else_is_refused(session, changes):
    add(session, untis_id="U1")
    with pytest.raises(Conflict):
        add(session, untis_id="U1", **changes)
    assert len(jobs(session)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "27GA"}, "class: there is no class '27GA'; add it or correct the name"),
        (
            {"role": "teacher"},
            "class: only a student has a class; what a teacher teaches stands in lessons.csv",
        ),
        ({"email": "anna"}, "email: 'anna' is no address; write it as anna.muster@schule.example"),
    ],
)
def test_wrong_user_is_refused_with_what_is_wrong(session, changes, message):
    with pytest.raises(InvalidInput) as raised:
        add(session, **changes)
    assert str(raised.value) == message
    assert jobs(session) == []


def test_welcoming_gives_a_calendar_and_keeps_what_it_shows(session):
    session.add_all(
        User(
            email=f"{name}@school.example",
            first_name=name,
            last_name="",
            role=Role.TEACHER,
            created_at=NOW,
        )
        for name in "ab"
    )
    session.flush()
    first, second = session.scalars(select(User.id).order_by(User.email))
    session.add(Subscription(user_id=first, follows_me=False))
    session.flush()

    for name in "ab":
        users.welcome(session, f"{name}@school.example", now=NOW)

    rows = session.execute(
        select(Subscription.user_id, Subscription.follows_me).order_by(Subscription.user_id)
    ).all()
    assert rows == [(first, False), (second, True)]


def test_requests_for_a_user_wait_as_one_job_for_each_purpose(session):
    user_id = add(session)
    for _ in range(2):
        for purpose in KeyPurpose:
            users.request_key(session, " ANNA@school.example", purpose, now=NOW)
    users.welcome(session, "anna@school.example", now=NOW)

    assert jobs(session) == [
        ("mail.send_key", {"user_id": user_id, "purpose": "reset_password"}),
        ("mail.send_key", {"user_id": user_id, "purpose": "verify_address"}),
        ("mail.send_welcome", {"user_id": user_id}),
    ]


def test_address_is_found_however_its_accents_are_typed(session):
    user_id = add(session, email="Zoë@school.example")
    users.request_key(
        session, " zoe\N{COMBINING DIAERESIS}@SCHOOL.example", KeyPurpose.RESET_PASSWORD, now=NOW
    )
    assert user_id in [args["user_id"] for kind, args in jobs(session) if kind == "mail.send_key"]


def test_request_for_an_unknown_address_is_refused(session):
    with pytest.raises(NotFound):
        users.request_key(session, "nobody@school.example", KeyPurpose.RESET_PASSWORD, now=NOW)
    with pytest.raises(NotFound):
        users.welcome(session, "nobody@school.example", now=NOW)
