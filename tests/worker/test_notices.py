"""From an event that is published to the mails in a folder, by real workers."""

from email import message_from_bytes
from email.policy import default

import pytest
from sqlalchemy import select, update

from services.database import Base, utc_now
from services.jobs.models import Job
from services.mail.jobs import NoticeEvent
from services.school import events, users
from services.school.models import SchoolClass, User
from tests.conftest import ZONE
from tests.worker.conftest import any_installation

pytestmark = pytest.mark.worker

PEOPLE = {"anna": "teacher", "ben": "student", "cleo": "student"}


@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_published_event_arrives_as_mail(kind, tmp_path):
    folder = tmp_path / "mail"
    with any_installation(kind, tmp_path, mail_url=f"folder://{folder}", relay_interval="PT0.2S") as installation:
        boot = installation.boot
        with boot.unit_of_work() as session:
            session.add(SchoolClass(name="27Ga"))
            session.flush()
            for name, role in PEOPLE.items():
                given = {"email": f"{name}@school.example", "first_name": name.title(), "last_name": "Muster", "role": role}
                class_name = {"class": "27Ga"} if role == "student" else {}
                users.register(session, users.details(given | class_name | {"locale": "en"}), now=boot.now())
            addresses = session.execute(select(User.email)).scalars().all()
            said = {"title": "Trip", "starts": "2090-12-01T08:00", "ends": "2090-12-01T12:00", "classes": ["27Ga"]}
            new = events.details(said | {"users": ["cleo@school.example"]}, zone=ZONE)
            event = events.create(session, new, author="anna@school.example", now=boot.now())
            events.submit(session, event.id, now=boot.now())
            events.publish(session, event.id, now=boot.now())
            # So that nobody has to wait until the event has settled.
            session.execute(update(Job).where(Job.kind == NoticeEvent.policy.kind).values(run_at=utc_now()))
        installation.worker()
        installation.until(lambda: len(list(folder.glob("*.eml"))) == 6)
        installation.until(lambda: installation.open_jobs() == 0)

        mails = [message_from_bytes(file.read_bytes(), policy=default) for file in folder.glob("*.eml")]
        assert sorted((mail["To"].addresses[0].username, mail["Subject"]) for mail in mails) == [
            ("anna", "Published: Trip"),
            ("anna", "Welcome to Probe"),
            ("ben", "New event: Trip"),
            ("ben", "Welcome to Probe"),
            ("cleo", "Invitation: Trip"),
            ("cleo", "Welcome to Probe"),
        ]
        with boot.read_only() as session:
            tables = {name: repr(session.execute(select(Base.metadata.tables[name])).all()) for name in ("job", "event_notice")}
        for name, content in tables.items():
            assert [address for address in addresses if address in content] == [], name
