"""A school's letters by real workers, which are killed, through a mail server that is killed.

What the server took is compared with the outbox and the school: message by message, in order.
"""

import json
import random
import time
from collections import defaultdict
from datetime import datetime, timedelta

from fault_processes import kill_something
from fault_servers import free_port
from sqlalchemy import select, text, update

from services.mail.models import ENDED, Mail, MailState
from services.school import events
from services.school.models import Role, SchoolClass, Subscription, User
from services.translation import Locale
from tests.conftest import ZONE
from tests.installing import install
from tests.mail_accounting import mail_settings
from tests.smtp import ServerProcess

READERS = 30
EVENTS = 3
CHANGES = 60

# No refusals: then every reader is to be told in the end.
FATES = {
    "4xx": 0.15,
    "432": 0.01,
    "data 4xx": 0.05,
    "drop": 0.03,
    "hang": 0.01,
    "data drop": 0.03,
    "data hang": 0.01,
    "kept, then drop": 0.05,
    "kept, then hang": 0.02,
}
FIRST_DAY = datetime(2027, 3, 1, 9, tzinfo=ZONE)

# Nobody waits three minutes here.
HURRY = text("UPDATE job SET run_at = now() WHERE state = 'scheduled' AND kind <> 'calendars.sync'")
NOTHING_LEFT = text(
    "SELECT NOT EXISTS (SELECT 1 FROM mail WHERE ended_at IS NULL) AND NOT EXISTS"
    " (SELECT 1 FROM job WHERE finished_at IS NULL AND kind LIKE 'mail.%')"
)


def fill(session, now):
    """Write a class, its students, and a teacher; return the students' ids."""
    school_class = SchoolClass(name="27Ga")
    session.add(school_class)
    session.flush()
    students = [
        User(
            email=f"s{number}@school.example",
            first_name="S",
            last_name=str(number),
            role=Role.STUDENT,
            locale=Locale.ENGLISH,
            class_id=school_class.id,
            created_at=now,
        )
        for number in range(READERS)
    ]
    session.add_all(students)
    session.flush()
    session.add_all(Subscription(user_id=one.id) for one in students)
    return [one.id for one in students]


def publish(session, number, now):
    said = {
        "title": f"Event {number}.0",
        "starts": FIRST_DAY.isoformat(),
        "ends": (FIRST_DAY + timedelta(hours=3)).isoformat(),
        "classes": ["27Ga"],
        # Some are invited.
        "users": [f"s{one}@school.example" for one in range(5)],
    }
    event = events.create(
        session, events.read_details(said, zone=ZONE), author=None, zone=ZONE, now=now
    )
    events.submit(session, event.id, now=now)
    events.publish(session, event.id, now=now)
    return event.id


def change(session, event_id, number, state, now):
    """Change one event at random; `state` is its title, and whether it takes place."""
    title, off = state[event_id]
    if off:
        events.restore(session, event_id, now=now)
        state[event_id] = (title, False)
    elif random.random() < 0.3:
        events.cancel(session, event_id, now=now)
        state[event_id] = (title, True)
    else:
        title = f"{title.partition('.')[0]}.{number}"
        version = events.edit(session, event_id, {"title": title}, zone=ZONE, now=now)
        events.submit(session, version.id, now=now)
        events.publish(session, version.id, now=now)
        state[event_id] = (title, False)


def count_sent(runtime):
    with runtime.read_only() as session:
        return session.execute(text("SELECT count(*) FROM mail WHERE state = 'sent'")).scalar_one()


def random_sleep():
    time.sleep(random.random() / 5)


def account(runtime, server, state, students):
    """Compare what the server took with what the outbox and the school say."""
    with runtime.read_only() as session:
        rows = {row.message_id: row for row in session.execute(select(*Mail.__table__.columns))}
        addresses = dict(session.execute(select(User.id, User.email)).all())
    told = defaultdict(list)
    times = defaultdict(int)
    for line in server.journal.read_text().splitlines():
        taken = json.loads(line)
        mail = rows[taken["message_id"]]
        assert taken["recipient"] == mail.recipient
        times[mail.id] += 1
        told[mail.reader_id, mail.about].append(mail)
    for mail in rows.values():
        assert mail.state in ENDED, mail
        assert mail.state != MailState.FAILED, mail
        assert times[mail.id] <= 1 + mail.repeats, f"doubled: {mail}"
        assert mail.state != MailState.SENT or times[mail.id], f"missing: {mail}"
    for (reader_id, about), mails in told.items():
        # One that is sent again keeps its id; no other follows a later one.
        numbers = [mail.id for mail in mails]
        assert numbers == sorted(numbers), f"overtaken: {reader_id} {about} {mails}"
    for event_id, (title, off) in state.items():
        for reader_id in students:
            mails = told[reader_id, f"event:{event_id}"]
            last = mails[-1] if mails else None
            what = f"missing: {addresses[reader_id]} of {title}, off: {off}; told {mails}"
            if off:
                assert last is None or last.kind.endswith("_cancelled"), what
            else:
                assert last is not None, what
                assert title in last.subject, what
                assert not last.kind.endswith("_cancelled"), what
    return {
        "mails": len(rows),
        "taken": sum(times.values()),
        "taken twice": sum(one > 1 for one in times.values()),
        "withdrawn": sum(mail.state == MailState.CANCELLED for mail in rows.values()),
    }


def test_no_letter_is_missing_doubled_overtaken_or_false(tmp_path):
    port, journal = free_port(), tmp_path / "journal"
    server = ServerProcess(port, journal, FATES)
    settings = mail_settings(server, mail_concurrency="2")
    killed = defaultdict(int)
    try:
        with install("servers", tmp_path, **settings) as installation:
            runtime = installation.runtime
            worker = installation.worker()
            with runtime.unit_of_work() as session:
                students = fill(session, runtime.now())
            state = {}
            with runtime.unit_of_work() as session:
                for number in range(EVENTS):
                    event_id = publish(session, number, runtime.now())
                    state[event_id] = (f"Event {number}.0", False)
            for number in range(1, CHANGES + 1):
                with runtime.unit_of_work() as session:
                    change(session, random.choice(list(state)), number, state, runtime.now())
                    if number % 7 == 0:
                        # Not one of those whom the events name.
                        mover = random.choice(students[5:])
                        email = f"moved{number}@school.example"
                        session.execute(update(User).where(User.id == mover).values(email=email))
                if random.random() < 0.7:
                    with runtime.unit_of_work() as session:
                        session.execute(HURRY)
                # Some way into the work, wherever it is then.
                wait = random.random() * 40
                goal = count_sent(runtime) + wait
                for _ in range(int(wait) * 2):
                    if count_sent(runtime) >= goal:
                        break
                    random_sleep()
                if number % 4 == 0:
                    what, worker = kill_something(installation, worker)
                    killed[what] += 1
                if number % 10 == 0:
                    server.stop()
                    random_sleep()
                    server.start()
                    killed["mail server"] += 1
            server.stop()
            server = ServerProcess(port, journal)

            def is_over():
                time.sleep(0.5)
                with runtime.unit_of_work() as session:
                    session.execute(HURRY)
                    session.execute(text("UPDATE mail SET due_at = now() WHERE state = 'queued'"))
                    session.execute(text("UPDATE mail_server SET paused_until = NULL"))
                    return session.execute(NOTHING_LEFT).scalar_one()

            installation.until(is_over, seconds=900)
            figures = account(runtime, server, state, students)
    finally:
        server.stop()
    print(f"\n{CHANGES} changes, killed {dict(killed)}")
    for name, number in figures.items():
        print(f"  {name:<26}{number:>8}")
