"""The school's letters by real workers: from what happens to the mails in a folder."""

import re
from email import message_from_bytes
from email.policy import default

import pytest
from nightshift.database import Base, utc_now
from nightshift.jobs.models import Job
from sqlalchemy import select, update

from services.letters import accounts
from services.letters.jobs import NoticeEvent
from services.school import events, users
from services.school.models import KeyPurpose, SchoolClass, User
from tests.conftest import ZONE
from tests.reading import read_bodies

pytestmark = pytest.mark.worker

ANNA = {
    "email": "anna@school.example",
    "first_name": "Anna",
    "last_name": "Müller",
    "role": "teacher",
    "locale": "en",
}
# Where a person's address belongs.
WITH_ADDRESSES = ("user_account", "user_key", "mail")

PEOPLE = {"anna": "teacher", "ben": "student", "cleo": "student"}


def read_mails(folder):
    return [message_from_bytes(file.read_bytes(), policy=default) for file in folder.glob("*.eml")]


def read_tables(runtime, names=None):
    tables = [table for name, table in Base.metadata.tables.items() if name in (names or [name])]
    with runtime.read_only() as session:
        return {table.name: repr(session.execute(select(table)).all()) for table in tables}


def read_files(folder, *, but):
    """Return what the broker and the logs have written down.

    Not the database's own files: it keeps what was erased until it needs the room.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    others = [path for path in files if not path.name.startswith("nightshift.db")]
    return {
        path.name: path.read_text(errors="replace") for path in others if but not in path.parents
    }


@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_keys_and_addresses_are_in_the_mail_only(install, kind, tmp_path):
    folder = tmp_path / "mail"
    with install(kind, tmp_path, log_level="DEBUG") as installation:
        runtime = installation.runtime
        with runtime.unit_of_work() as session:
            user_id = users.register(session, users.read_details(ANNA), now=runtime.now())
            for purpose in KeyPurpose:
                users.request_key(session, ANNA["email"], purpose, now=runtime.now())
        installation.worker()
        installation.until(lambda: len(list(folder.glob("*.eml"))) == 3)
        installation.until(lambda: installation.open_jobs() == 0)

        mails = read_mails(folder)
        texts = "\n".join(read_bodies(mail)[0] for mail in mails)
        keys = {path: re.search(rf"/u/{path}\?key=(\S+)", texts)[1] for path in ("verify", "reset")}
        written = read_files(tmp_path, but=folder)
        assert len(written) >= 1
        for name, content in {**read_tables(runtime), **written}.items():
            assert [key for key in keys.values() if key in content] == [], name
            assert name in WITH_ADDRESSES or ANNA["email"] not in content, name
        assert {mail["To"] for mail in mails} == {"Anna Müller <anna@school.example>"}
        with runtime.unit_of_work() as session:
            redeemed = [
                accounts.redeem(session, keys[path], purpose, now=runtime.now())
                for path, purpose in (
                    ("verify", KeyPurpose.VERIFY_ADDRESS),
                    ("reset", KeyPurpose.RESET_PASSWORD),
                )
            ]
        assert redeemed == [user_id, user_id]


def register_people(session, now):
    session.add(SchoolClass(name="27Ga"))
    session.flush()
    for name, role in PEOPLE.items():
        given = {
            "email": f"{name}@school.example",
            "first_name": name.title(),
            "last_name": "Muster",
            "role": role,
            "locale": "en",
        }
        class_name = {"class": "27Ga"} if role == "student" else {}
        users.register(session, users.read_details(given | class_name), now=now)


def publish_trip(session, now):
    said = {
        "title": "Trip",
        "starts": "2090-12-01T08:00",
        "ends": "2090-12-01T12:00",
        "classes": ["27Ga"],
        "users": ["cleo@school.example"],
    }
    new = events.read_details(said, zone=ZONE)
    event = events.create(session, new, author="anna@school.example", zone=ZONE, now=now)
    events.submit(session, event.id, now=now)
    events.publish(session, event.id, now=now)
    # The test does not wait until the event has settled.
    settled = update(Job).where(Job.kind == NoticeEvent.policy.kind).values(run_at=utc_now())
    session.execute(settled)


def test_published_event_arrives_as_mail(installation):
    folder, runtime = installation.folder / "mail", installation.runtime
    with runtime.unit_of_work() as session:
        register_people(session, runtime.now())
        addresses = session.execute(select(User.email)).scalars().all()
        publish_trip(session, runtime.now())
    installation.worker()
    installation.until(lambda: len(list(folder.glob("*.eml"))) == 6)
    installation.until(lambda: installation.open_jobs() == 0)

    found = [(mail["To"].addresses[0].username, mail["Subject"]) for mail in read_mails(folder)]
    assert sorted(found) == [
        ("anna", "Published: Trip"),
        ("anna", "Welcome to Probe"),
        ("ben", "New event: Trip"),
        ("ben", "Welcome to Probe"),
        ("cleo", "Invitation: Trip"),
        ("cleo", "Welcome to Probe"),
    ]
    for name, content in read_tables(runtime, ("job", "event_notice")).items():
        assert [address for address in addresses if address in content] == [], name
