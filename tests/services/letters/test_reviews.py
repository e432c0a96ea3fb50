"""Who is told what of a review, on both databases."""

from uuid import uuid4

import pytest
from nightshift.jobs import Discard
from nightshift.testing import assert_enqueued
from sqlalchemy import select, update

from services.letters import reviews
from services.letters.jobs import NoticeReview
from services.mail.models import Mail
from services.school import events
from services.school.models import User
from tests.conftest import NOW, ZONE
from tests.services.letters.conftest import RULES


def queue(school, event, step, request_id=None):
    """Do the job and return who got what."""
    before = set(school.session.execute(select(Mail.id)).scalars())
    args = NoticeReview(event_id=event.id, step=step)
    outcome = reviews.queue_reviews(
        school.session, args, RULES, request_id=request_id or uuid4(), now=NOW
    )
    return school.since(before) if isinstance(outcome, dict) else outcome


def in_review(school, **values):
    return events.submit(
        school.session, school.draft(author="teacher@school.example", **values).id, now=NOW
    )


def test_request_goes_to_the_administrators_who_want_it(school):
    event = in_review(school)
    assert queue(school, event, "requested") == {"admin": "review_requested"}
    assert (
        school.text("admin").splitlines()[0] == "Teacher Muster asks for an event to be reviewed."
    )
    assert (
        school.text("admin").splitlines()[-1]
        == f"Publish it, or refuse it with a reason, by its id: {event.id}"
    )
    assert school.mail("admin")["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_request_for_a_version_says_what_would_change(session, school):
    event = school.published()
    version = events.edit(session, event.id, {"location": "Aula"}, zone=ZONE, now=NOW)
    events.submit(session, version.id, now=NOW)
    assert queue(school, version, "requested") == {"admin": "review_requested"}
    assert "Where: Aula\n    before: –\n" in school.text("admin")
    assert school.text("admin").splitlines()[0] == "An event is to be reviewed."


def test_answer_goes_to_the_author(session, school):
    event = in_review(school)
    events.publish(session, event.id, now=NOW)
    assert queue(school, event, "accepted") == {"teacher": "review_accepted"}


def test_refusal_carries_the_reason(session, school):
    event = in_review(school)
    events.refuse(session, event.id, "The bus <is> taken.\nTry another day.", now=NOW)
    assert queue(school, event, "refused") == {"teacher": "review_refused"}
    assert (
        "The reason:\n\nThe bus <is> taken.\nTry another day.\n\nYou may change it"
        in school.text("teacher")
    )
    assert "The bus &lt;is&gt; taken." in school.mail("teacher").get_body(("html",)).get_content()
    assert school.mail("teacher")["List-Unsubscribe"] is None


def test_event_without_an_author_is_answered_to_nobody(session, school):
    event = school.published()
    assert queue(school, event, "accepted") == {}


@pytest.mark.parametrize("step", ["requested", "refused"])
def test_last_step_is_told_instead_of_those_before(session, school, step):
    event = in_review(school)
    events.publish(session, event.id, now=NOW)
    assert queue(school, event, step) == {"teacher": "review_accepted"}


def test_steps_that_nobody_was_told_are_one_mail_about_the_last(session, school):
    event = in_review(school)
    events.refuse(session, event.id, "no bus", now=NOW)
    events.edit(session, event.id, {"title": "Tour"}, zone=ZONE, now=NOW)
    events.submit(session, event.id, now=NOW)
    assert_enqueued(session, NoticeReview, event_id=event.id, step="requested")
    assert queue(school, event, "requested") == {"admin": "review_requested"}
    assert school.mail("admin")["Subject"] == "To review: Tour"


def test_step_withdraws_the_mails_about_those_before(session, school):
    event = in_review(school)
    queue(school, event, "requested")
    events.refuse(session, event.id, "no bus", now=NOW)
    assert queue(school, event, "refused") == {"teacher": "review_refused"}
    assert session.execute(select(Mail.kind, Mail.state).order_by(Mail.id)).all() == [
        ("review_requested", "cancelled"),
        ("review_refused", "queued"),
    ]


def test_request_names_the_people_whom_the_event_names(school):
    event = in_review(school, users=("ann@school.example", "guest@school.example"))
    queue(school, event, "requested")
    assert "People: Ann Muster, Guest Muster\n" in school.text("admin")


def test_deleted_request_is_not_told(session, school):
    event = in_review(school)
    events.delete(session, event.id, now=NOW)
    assert queue(school, event, "requested") == Discard("the event has moved on")


def test_job_that_runs_twice_queues_nothing_twice_and_a_second_request_does(session, school):
    event, request_id = in_review(school), uuid4()
    assert queue(school, event, "requested", request_id) == {"admin": "review_requested"}
    assert queue(school, event, "requested", request_id) == {}
    assert queue(school, event, "requested") == {"admin": "review_requested"}


def test_nobody_who_lost_the_role_is_asked(session, school):
    session.execute(update(User).where(User.id == school.ids["admin"]).values(role="teacher"))
    assert queue(school, in_review(school), "requested") == {}
