"""What is kept about a person is written out, and removed: nothing is left but what is listed."""

import json
import re
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from types import SimpleNamespace

import pytest
from nightshift.database import Base
from nightshift.jobs import enqueue
from nightshift.jobs.models import Job
from nightshift.testing import run_due
from sqlalchemy import select, text, update

from project.school.settings import SchoolSettings
from services.calendars.jobs import SyncCalendars
from services.calendars.models import Feed, FeedKind
from services.calendars.store import FeedStore
from services.letters.models import EventNotice
from services.mail import outbox
from services.mail.jobs import DeliverMail
from services.mail.models import Mail
from services.mail.runtime import Mailer
from services.school import loading, users
from services.school.models import Event, KeyPurpose, User

EXAMPLE = Path(__file__).parents[4] / "examples" / "school"


@pytest.fixture
def runtime(job_app):
    runtime = job_app.runtime
    now = runtime.now()
    with runtime.unit_of_work() as session:
        zone = runtime[SchoolSettings].school_timezone
        loading.load(session, EXAMPLE, zone=zone, now=now)
        enqueue(session, SyncCalendars(), now=now)
    run_due(job_app)
    return runtime


def work(app):
    """Run what is due, and the delivery that waits for more mails."""
    run_due(app)
    with app.runtime.unit_of_work() as session:
        waiting = update(Job).where(Job.kind == DeliverMail.policy.kind, Job.finished_at.is_(None))
        session.execute(waiting.values(run_at=app.runtime.now()))
    run_due(app)


@pytest.fixture
def person(runtime, job_app):
    """Return a teacher who was welcomed, asked for a key, and is named by an event."""
    now = runtime.now()
    with runtime.unit_of_work() as session:
        user = session.execute(
            select(User).where(User.role == "teacher", User.untis_id.is_not(None)).limit(1)
        ).scalar_one()
        email, user_id = user.email, user.id
        users.welcome(session, email, now=now)
        users.request_key(session, email, KeyPurpose.VERIFY_ADDRESS, now=now)
        outbox.suppress(session, email, now=now)
        outbox.unsuppress(session, email)
        event = session.execute(
            select(Event).where(Event.state == "published", Event.version_of_id.is_(None)).limit(1)
        ).scalar_one()
        event.author_id = user_id
        session.add(
            EventNotice(
                event_id=event.id,
                version=99,
                readers=[user_id, 1_000],
                invited=[user_id],
                told_at=now,
            )
        )
    work(job_app)
    return SimpleNamespace(email=email, id=user_id, event=str(event.id))


def find_traces(runtime, *words):
    """Return the tables and files that hold one of these words."""
    found = set()
    with runtime.read_only() as session:
        for name in Base.metadata.tables:
            for row in session.execute(text(f'select * from "{name}"')):
                shown = " ".join(
                    value.decode(errors="replace") if isinstance(value, bytes) else str(value)
                    for value in row
                )
                if any(word in shown for word in words):
                    found.add(name)
    for folder in (Path(runtime[FeedStore].locate(FeedKind.USER, 1)).parents[1], mails(runtime)):
        for file in folder.rglob("*"):
            if file.is_file() and any(word.encode() in file.read_bytes() for word in words):
                found.add(file.name)
    return found


def mails(runtime):
    return runtime[Mailer].transport.folder


def test_person_is_written_out(runtime, run, person, tmp_path):
    code, said = run("user", "export", person.email, str(tmp_path / "out"))
    assert code == 0
    rows = json.loads((tmp_path / "out" / "person.json").read_bytes())
    assert {
        "user_account",
        "user_key",
        "subscription",
        "feed",
        "mail",
        "event",
        "job",
    } <= rows.keys()
    assert rows["user_account"][0]["email"] == person.email
    assert rows["event_notice"][0]["event_id"] == person.event
    assert "hash" not in rows["user_key"][0]
    calendar = (tmp_path / "out" / "calendar.ics").read_bytes()
    assert calendar.startswith(b"BEGIN:VCALENDAR")
    assert "user_account" in said
    for file in (tmp_path / "out").iterdir():
        assert file.stat().st_mode & 0o077 == 0
        if file.suffix == ".eml":
            assert person.email in message_from_bytes(file.read_bytes(), policy=default)["To"]
    assert run("user", "export", person.email, str(tmp_path / "out")) == (
        2,
        f"{tmp_path / 'out'} is not empty; name a new folder\n",
    )


def test_forgotten_person_leaves_no_trace_but_what_is_listed(runtime, run, person):
    with runtime.read_only() as session:
        token = session.execute(
            select(Feed.token).where(Feed.kind == FeedKind.USER, Feed.owner_id == person.id)
        ).scalar_one()
    assert find_traces(runtime, person.email, token) >= {"user_account", "mail", "feed"}
    assert list(mails(runtime).glob("*.eml"))

    code, said = run("user", "forget", person.email, "--yes")

    assert code == 0
    assert find_traces(runtime, person.email, token) == set()
    assert runtime[FeedStore].read(FeedKind.USER, person.id) is None
    assert re.search(r"- \d+ events that they wrote, without an author: readers have them", said)
    assert "letters on disk" in said
    with runtime.read_only() as session:
        notice = session.get_one(EventNotice, (Event.id.type.python_type(person.event), 99))
        assert (notice.readers, notice.invited) == ([1_000], [])
    assert run("user", "forget", person.email, "--yes") == (1, "nobody has this address\n")


def test_letters_to_an_address_in_another_form_are_forgotten_too(runtime, run, person, job_app):
    """A row has the letters of its domain, and a mail the form that servers know."""
    with runtime.unit_of_work() as session:
        session.get_one(User, person.id).email = "anna@schüle.example"
        users.welcome(session, "anna@schüle.example", now=runtime.now())
        outbox.record_refusal(session, outbox.normalise("anna@schüle.example"), now=runtime.now())
    work(job_app)
    assert find_traces(runtime, "anna@xn--") >= {"mail", "mail_suppression"}

    assert run("user", "forget", "Anna@SCHU\u0308LE.example", "--yes")[0] == 0

    assert find_traces(runtime, "anna@", person.email) == set()


def test_event_whose_text_names_a_forgotten_person_is_listed(runtime, run, person):
    with runtime.unit_of_work() as session:
        session.execute(
            update(Event)
            .where(Event.id == Event.id.type.python_type(person.event))
            .values(description=f"Ask {person.email}.")
        )
    _, said = run("user", "forget", person.email, "--yes")
    assert f"- 1 events whose text names them: {person.event}; edit or delete them" in said


def test_forgetting_has_to_be_meant(runtime, run, person):
    assert run("user", "forget", person.email) == (
        2,
        "nothing was removed: there is no way back; repeat this with --yes\n",
    )
    with runtime.read_only() as session:
        assert session.get(User, person.id) is not None


def test_letters_to_others_stay(runtime, run, person, job_app):
    with runtime.unit_of_work() as session:
        other = session.execute(
            select(User.email).where(User.id != person.id).limit(1)
        ).scalar_one()
        users.welcome(session, other, now=runtime.now())
    work(job_app)
    run("user", "forget", person.email, "--yes")
    with runtime.read_only() as session:
        assert session.execute(select(Mail.recipient).distinct()).scalars().all() == [other]
    assert len(list(mails(runtime).glob("*.eml"))) == 1
