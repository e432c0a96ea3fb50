"""A school whose events change at random, and whose readers keep account of their mail.

The rules here are plain ones of their own: what a reader was told stands in the mails that the
server took, as their text says it, and the school is a few dictionaries. Only the services, the
jobs and the outbox's rows are the real ones. The clock is the database's, moved on.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import icalendar
from nightshift.celery.app import App
from nightshift.database import Base
from nightshift.jobs import Backoff, enqueue
from nightshift.jobs.models import Job, JobState
from nightshift.testing import run_due
from servers import postgres_database
from sqlalchemy import delete, event as sa_event, inspect, select, text, update

from services.calendars.models import EventRevision
from services.mail.jobs import SweepMail
from services.mail.models import Mail
from services.mail.runtime import Mailer
from services.mail.transport import Answer, Verdict
from services.school import events
from services.school.models import (
    Event,
    EventClass,
    EventState,
    IgnoredEvent,
    Role,
    SchoolClass,
    Subscription,
    User,
)
from services.translation import Locale
from tests.conftest import COMPOSITION, ZONE, migrate
from tests.reading import read_bodies

CLASSES = ("27Ga", "27Gb", "28Ma")
TITLES = ("Trip", "Tour", "Hike", "Concert", "Museum")
PLACES = ("", "Aula", "Bern")
# Events are far ahead, so that none passes while the simulation runs.
FIRST_DAY = datetime(2027, 3, 1, 9, tzinfo=ZONE)

OK = Answer(Verdict.SENT, "250 OK")
MOODS: dict[str, tuple[float, ...]] = {
    # Of each answer: taken, put off, lost after it was taken, lost before, away, the sender dies
    # after it was taken, or before.
    "well": (1, 0, 0, 0, 0, 0, 0),
    "busy": (0.2, 0.8, 0, 0, 0, 0, 0),
    "shut": (0, 1, 0, 0, 0, 0, 0),
    "dying": (0.4, 0.1, 0.1, 0.1, 0, 0.15, 0.15),
    "away": (0.1, 0, 0, 0, 0.9, 0, 0),
}
ANSWERS = ("taken", "put off", "kept, then lost", "lost", "away", "kept, then killed", "killed")


MOVED = """
CREATE OR REPLACE FUNCTION clock.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS
'SELECT pg_catalog.statement_timestamp()
    + make_interval(secs => (SELECT seconds FROM clock.ahead))'
"""


class Killed(Exception):
    """The process that sends a mail dies."""


class Untrue(AssertionError):
    """A mail that should not have been sent, or one that is missing."""


# --- The clock ---


class Clock:
    """The database's clock, which a test moves on."""

    def __init__(self, app: App) -> None:
        self.ahead = timedelta()
        self._engine = app.runtime.engine
        self._postgres = self._engine.dialect.name == "postgresql"
        if self._postgres:
            with self._engine.begin() as connection:
                for statement in (
                    "CREATE SCHEMA IF NOT EXISTS clock",
                    "CREATE TABLE IF NOT EXISTS clock.ahead (seconds double precision)",
                    "DELETE FROM clock.ahead",
                    "INSERT INTO clock.ahead VALUES (0)",
                    MOVED,
                ):
                    connection.execute(text(statement))
                name = self._engine.url.database
                path = "clock, pg_catalog, public"
                connection.execute(text(f'ALTER DATABASE "{name}" SET search_path = {path}'))
            self._engine.dispose()
        else:
            sa_event.listen(self._engine, "connect", self._replace_strftime)
            self._engine.dispose()

    def _replace_strftime(self, connection: Any, _record: Any) -> None:
        def strftime(_format: str, _now: str, *moved: str) -> str:
            seconds = sum(float(one.removesuffix(" seconds")) for one in moved)
            at = self.now() + timedelta(seconds=seconds)
            return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}"

        connection.create_function("strftime", -1, strftime)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def move(self, by: timedelta) -> None:
        self.ahead += by
        if self._postgres:
            with self._engine.begin() as connection:
                connection.execute(
                    text("UPDATE clock.ahead SET seconds = :s"), {"s": self.ahead.total_seconds()}
                )


# --- The school as it is, and what readers know of it ---


@dataclass
class Person:
    id: int
    email: str
    role: str
    class_name: str | None
    wants: bool = True
    exists: bool = True


@dataclass
class Happening:
    """An event as it is now.

    `quiet`: another program changed it, and nobody need be told. `touched`: it is ours, or we have
    changed it.
    """

    id: UUID
    title: str
    place: str
    starts: datetime
    classes: set[str]
    people: set[int]
    # Whom it named, also those who were deleted since.
    names_anybody: bool
    cancelled: bool = False
    deleted: bool = False
    quiet: bool = False
    touched: bool = True

    @property
    def off(self) -> bool:
        return self.cancelled or self.deleted

    def affects(self, person: Person) -> bool:
        return person.id in self.people or (
            person.role == "student" and person.class_name in self.classes
        )

    def facts(self) -> dict[str, str]:
        ends = self.starts + timedelta(hours=3)
        day = f"{self.starts:%A}, {self.starts.day} {self.starts:%B %Y}"
        whom = ", ".join(sorted(self.classes))
        return {
            "Title": self.title,
            "When": f"{day}, {self.starts:%H:%M}–{ends:%H:%M}",
            **({"Where": self.place} if self.place else {}),
            "For": f"Students ({whom})" if whom else "Those whom it names",
            "Teaching affected": "no",
        }


@dataclass(frozen=True)
class Snapshot:
    """What a reader was told: the facts, and whether it affects, invites, and takes place."""

    facts: tuple[tuple[str, str], ...]
    affects: bool
    invited: bool
    off: bool
    by_mail: bool = True


@dataclass
class Account:
    """What one reader may know of one event: what was told last, and what may have arrived."""

    may_know: list[Snapshot | None] = field(default_factory=lambda: [None])
    sequence: int = -1
    # The reader did not want mail for a while: then a missing one is none.
    excused: bool = False
    was_affected: bool = False

    @property
    def known(self) -> list[Snapshot]:
        return [one for one in self.may_know if one is not None]


@dataclass
class Draft:
    """An event in review, and what reviewers and the author were told last."""

    id: UUID
    title: str
    state: str
    reason: str = ""
    told: dict[int, tuple[str, str, str]] = field(default_factory=dict)


def read_facts(body: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the facts that a mail shows, and the earlier texts of some of them."""
    facts: dict[str, str] = {}
    before: dict[str, str] = {}
    name = ""
    for line in body.splitlines():
        if found := re.fullmatch(r"    before: (.*)", line):
            before[name] = found[1]
        elif found := re.fullmatch(
            r"(Title|When|Where|For|People|Teaching affected|Description|State): (.*)", line
        ):
            name = found[1]
            facts[name] = found[2]
    return facts, before


class Simulation:
    """One school. `run` takes random steps and raises Untrue at the first untrue mail."""

    def __init__(self, app: App, clock: Clock, seed: int) -> None:
        self.app, self.clock, self.random = app, clock, random.Random(seed)
        self.runtime = app.runtime
        self.people: dict[int, Person] = {}
        self.events: dict[UUID, Happening] = {}
        self.drafts: dict[UUID, Draft] = {}
        self.accounts: defaultdict[tuple[int, UUID], Account] = defaultdict(Account)
        self.mood = "well"
        self.in_doubt: defaultdict[str, int] = defaultdict(int)
        self.arrived: defaultdict[str, int] = defaultdict(int)
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.history: list[str] = []
        mailer = self.runtime[Mailer]
        terms = replace(
            mailer.terms,
            backoff=Backoff(first=timedelta(minutes=2)),
            away=Backoff(first=timedelta(seconds=10), cap=timedelta(minutes=5)),
        )
        self.runtime._made[Mailer] = replace(mailer, transport=self, terms=terms)
        self.name = "simulated"
        self._fill()

    # --- the server ---

    def close(self) -> None: ...

    def send(self, _sender: str, recipient: str, content: bytes) -> Answer:
        mail = message_from_bytes(content, policy=default)
        (what,) = self.random.choices(ANSWERS, MOODS[self.mood])
        self.counts[what] += 1
        self.note(f"  {mail['Message-ID']} to {recipient}, {mail['Subject']}: {what}")
        if what == "put off":
            return Answer(Verdict.LATER, "451 later")
        if what == "away":
            return Answer(Verdict.AWAY, "refused", pause=True)
        number = str(mail["Message-ID"])
        arrives = what in ("taken", "kept, then lost", "kept, then killed")
        self.receive(recipient, mail, certain=what == "taken", arrives=arrives)
        if what != "taken":
            self.in_doubt[number] += 1
        if what.endswith("killed"):
            raise Killed
        return OK if what == "taken" else Answer(Verdict.UNKNOWN, "the connection was lost")

    def receive(self, recipient: str, mail: Any, *, certain: bool, arrives: bool) -> None:
        """Compare a mail with the school, as its reader would who knows everything."""
        number = str(mail["Message-ID"])
        with self.runtime.read_only() as session:
            row = session.execute(
                select(
                    Mail.id,
                    Mail.kind,
                    Mail.dedupe_key,
                    Mail.message_id,
                    Mail.attempt,
                    Mail.repeats,
                    Mail.reply,
                ).where(Mail.message_id == number)
            ).one()
        body, _page = read_bodies(mail)
        body = body.partition("\n-- \n")[0]
        if arrives:
            self.arrived[number] += 1
            self.require(self.arrived[number] <= 1 + self.in_doubt[number], "doubled", row, body)
        person = next((one for one in self.people.values() if one.email == recipient), None)
        self.require(person is not None and person.exists, "foreign", row, body)
        assert person is not None
        self.counts[row.kind] += 1
        if row.kind.startswith("review"):
            self.receive_review(person, row, body)
        elif row.kind.startswith(("event", "invitation")):
            repeated = self.in_doubt[number] > 0
            event = self.events[UUID(row.dedupe_key.split(":")[1])]
            self.receive_notice(person, event, row, mail, body, certain=certain, repeated=repeated)

    def receive_notice(
        self,
        person: Person,
        event: Happening,
        row: Any,
        mail: Any,
        body: str,
        *,
        certain: bool,
        repeated: bool,
    ) -> None:
        account = self.accounts[person.id, event.id]
        facts, before = read_facts(body)
        shown = {name: value for name, value in facts.items() if name != "State" and value != "–"}
        said = {name: before.get(name, value) for name, value in facts.items() if name != "State"}
        said = {name: value for name, value in said.items() if value != "–"}
        self.require(shown == event.facts(), "false: it does not say what is so", row, body)
        kind = row.kind
        if kind.startswith("event"):
            self.require(person.wants, "not wanted", row, body)
        off = "does not take place" in body
        self.require(off == event.off, "false: whether it takes place", row, body)
        invited = person.id in event.people and not event.off
        if kind == "invitation":
            self.require(invited, "false: is not invited", row, body)
        if kind == "invitation_cancelled":
            self.require(not invited, "false: is invited", row, body)
            self.require(any(one.invited for one in account.known), "nobody invited", row, body)
        if kind == "event_published":
            self.require(event.affects(person), "foreign: it does not affect", row, body)
        now = Snapshot(
            tuple(sorted(event.facts().items())), event.affects(person), invited, event.off
        )
        # Who wants no mail gets invitations, and is told no changes between them.
        if person.wants and not account.excused and not repeated:
            self.require_difference(event, account, now, said, row=row, body=body)
        if kind.startswith("invitation"):
            self.receive_calendar(event, account, row, mail, body, repeated=repeated)
        account.excused = False
        account.may_know = [now] if certain else [*account.may_know, now]

    def require_difference(
        self,
        event: Happening,
        account: Account,
        now: Snapshot,
        said: dict[str, str],
        *,
        row: Any,
        body: str,
    ) -> None:
        """Require that a mail tells what is new to its reader, compared with what they know."""
        (first, *others) = account.may_know
        self.require(others or first != now, "doubled: it is known", row, body)
        new = first is None and not others
        if row.kind == "event_published":
            self.require(not account.known or bool(others), "not new", row, body)
            self.require(said == event.facts(), "false: what was before", row, body)
        elif row.kind == "event_cancelled":
            self.require(
                any(one.affects and not one.off for one in account.known),
                "false: never heard of it",
                row,
                body,
            )
        elif row.kind == "event_changed":
            was = any(one.affects for one in account.known)
            status = (
                "It still affects you."
                if was and now.affects
                else "It affects you now. It did not before."
                if now.affects
                else "It no longer affects you."
            )
            if not others:
                self.require(status in body, f"false: not {status!r}", row, body)
            self.require(was or now.affects, "foreign", row, body)
        if others or new:
            self.require(said == event.facts(), "false: what was before is not known", row, body)
        elif first is not None:
            self.require(said == dict(first.facts), "false: what was before", row, body)

    def receive_calendar(
        self, event: Happening, account: Account, row: Any, mail: Any, body: str, *, repeated: bool
    ) -> None:
        (calendar,) = (
            icalendar.Calendar.from_ical(part.get_payload(decode=True))
            for part in mail.walk()
            if part.get_content_type() == "text/calendar"
        )
        (vevent,) = calendar.events
        with self.runtime.read_only() as session:
            feed = session.scalar(
                select(EventRevision.sequence).where(EventRevision.event_id == event.id)
            )
        sequence = int(vevent["SEQUENCE"])
        self.require(sequence == feed, f"SEQUENCE {sequence} is not {feed}", row, body)
        rises = sequence > account.sequence or (repeated and sequence == account.sequence)
        doubtful = len(account.may_know) > 1 and sequence == account.sequence
        self.require(rises or doubtful, "SEQUENCE does not rise", row, body)
        account.sequence = sequence

    def receive_review(self, person: Person, row: Any, body: str) -> None:
        facts, _ = read_facts(body)
        found = [one for one in self.drafts.values() if one.title == facts["Title"]]
        self.require(len(found) == 1, "false: no such title", row, body)
        (draft,) = found
        step = row.kind.removeprefix("review_")
        self.require(step == draft.state, f"false: it is {draft.state}", row, body)
        if step == "refused":
            self.require(draft.reason in body, "false: the reason", row, body)
        draft.told[person.id] = (step, draft.title, draft.reason)

    def require(self, so: object, what: str, row: Any, body: str) -> None:
        if not so:
            history = "\n".join(self.history[-150:])
            raise Untrue(f"{what}\n{row}\n{body}\n{history}")

    # --- the school ---

    def _fill(self) -> None:
        with self.runtime.unit_of_work() as session:
            ids = {}
            for name in CLASSES:
                school_class = SchoolClass(name=name)
                session.add(school_class)
                session.flush()
                ids[name] = school_class.id
            self.class_ids = ids
            roles = [("student", name) for name in CLASSES for _ in range(3)]
            for number, (role, class_name) in enumerate(
                [*roles, ("admin", None), ("teacher", None)]
            ):
                user = User(
                    email=f"{role}{number}@school.example",
                    first_name=role.title(),
                    last_name=str(number),
                    role=Role(role),
                    locale=Locale.ENGLISH,
                    class_id=None if class_name is None else ids[class_name],
                    created_at=self.clock.now(),
                )
                session.add(user)
                session.flush()
                session.add(Subscription(user_id=user.id))
                self.people[user.id] = Person(user.id, user.email, role, class_name)

    def any_person(self) -> Person | None:
        found = [one for one in self.people.values() if one.exists and one.role == "student"]
        return self.random.choice(found) if found else None

    def any_event(self, *, off: bool | None = None) -> Happening | None:
        found = [one for one in self.events.values() if off is None or one.off == off]
        return self.random.choice(found) if found else None

    def _make_up(self) -> dict[str, Any]:
        chosen = self.random
        people = [one for one in self.people.values() if one.exists and one.role == "student"]
        classes = set(chosen.sample(CLASSES, chosen.choice((1, 1, 2))))
        return {
            "title": chosen.choice(TITLES),
            "place": chosen.choice(PLACES),
            "starts": FIRST_DAY + timedelta(days=chosen.randrange(5)),
            "classes": classes,
            "people": {one.id for one in chosen.sample(people, chosen.choice((0, 0, 1, 2)))},
        }

    def _write(self, made: dict[str, Any]) -> dict[str, Any]:
        """Return what was made up in the words of `events.read_details`."""
        ends = made["starts"] + timedelta(hours=3)
        return {
            "title": made["title"],
            "location": made["place"],
            "starts": made["starts"].isoformat(),
            "ends": ends.isoformat(),
            "classes": sorted(made["classes"]),
            "users": sorted(self.people[one].email for one in made["people"]),
        }

    # --- steps ---

    def publish(self) -> None:
        made, now = self._make_up(), self.clock.now()
        with self.runtime.unit_of_work() as session:
            details = events.read_details(self._write(made), zone=ZONE)
            event = events.create(session, details, author=None, zone=ZONE, now=now)
            events.submit(session, event.id, now=now)
            events.publish(session, event.id, now=now)
        self.events[event.id] = Happening(
            event.id, names_anybody=bool(made["people"] or made["classes"]), **made
        )
        self.note(f"publish {event.id} {made}")

    def write_by_others(self) -> None:
        """Let another program write an event: its readers know it from their calendars."""
        made, event_id = self._make_up() | {"people": set()}, uuid4()
        with self.runtime.unit_of_work() as session:
            session.add(
                Event(
                    id=event_id,
                    state=EventState.PUBLISHED,
                    title=made["title"],
                    location=made["place"],
                    starts_at=made["starts"],
                    ends_at=made["starts"] + timedelta(hours=3),
                    addressed=True,
                    created_at=self.clock.now(),
                )
            )
            session.flush()
            session.add_all(
                EventClass(event_id=event_id, class_id=self.class_ids[name])
                for name in made["classes"]
            )
        event = Happening(event_id, names_anybody=True, quiet=True, touched=False, **made)
        self.events[event_id] = event
        for person in self.people.values():
            if event.affects(person):
                known = Snapshot(tuple(sorted(event.facts().items())), True, False, False, False)
                self.accounts[person.id, event_id].may_know = [known]
        self.note(f"others write {event_id} {made}")

    def edit(self) -> None:
        event = self.any_event(off=False)
        if event is None:
            return
        made = self._make_up()
        now_is = {
            "title": event.title,
            "place": event.place,
            "starts": event.starts,
            "classes": event.classes,
            "people": event.people,
        }
        fields = self.random.sample(sorted(made), self.random.choice((0, 1, 1, 2)))
        changed = now_is | {name: made[name] for name in fields}
        if not (changed["classes"] or changed["people"]):
            return
        written = self._write(changed)
        changes = {name: written[name] for name in written if self._differs(name, fields)}
        if not changes and self.random.random() < 0.5:
            # Half a minute that no mail shows.
            moved = changed["starts"] + timedelta(seconds=30)
            changes = {"starts": moved.isoformat()}
        now = self.clock.now()
        with self.runtime.unit_of_work() as session:
            version = events.edit(session, event.id, changes, zone=ZONE, now=now)
            events.submit(session, version.id, now=now)
            events.publish(session, version.id, now=now)
        for name, value in changed.items():
            setattr(event, name, value)
        event.quiet, event.touched = False, True
        self.note(f"edit {event.id} {changes}")

    @staticmethod
    def _differs(name: str, fields: list[str]) -> bool:
        own = {"location": "place", "users": "people", "ends": "starts"}.get(name, name)
        return own in fields

    def end(self) -> None:
        event = self.any_event(off=False)
        if event is not None:
            delete_it = self.random.random() < 0.3
            action = events.delete if delete_it else events.cancel
            with self.runtime.unit_of_work() as session:
                action(session, event.id, now=self.clock.now())
            event.cancelled, event.deleted = not delete_it, delete_it
            event.quiet, event.touched = False, True
            self.note(f"end {event.id}")

    def restore(self) -> None:
        event = self.any_event(off=True)
        if event is not None:
            with self.runtime.unit_of_work() as session:
                events.restore(session, event.id, now=self.clock.now())
            event.cancelled = event.deleted = False
            event.quiet, event.touched = False, True
            self.note(f"restore {event.id}")

    def change_by_sql(self) -> None:
        event = self.any_event()
        if event is not None:
            event.title = self.random.choice(TITLES)
            with self.runtime.unit_of_work() as session:
                session.execute(update(Event).where(Event.id == event.id).values(title=event.title))
            event.quiet = True
            for person in self.people.values():
                account = self.accounts[person.id, event.id]
                if any(not one.by_mail for one in account.known):
                    # The calendar shows it. Which of both a reader knows is not told here.
                    account.excused = event.touched
                    facts = tuple(sorted(event.facts().items()))
                    account.may_know = [replace(one, facts=facts) for one in account.known]
            self.note(f"sql {event.id} {event.title}")

    def toggle(self) -> None:
        person = self.any_person()
        if person is not None:
            person.wants = not person.wants
            with self.runtime.unit_of_work() as session:
                session.execute(
                    update(User).where(User.id == person.id).values(mail_events=person.wants)
                )
            self.excuse(person)
            self.note(f"toggle {person.email} {person.wants}")

    def excuse(self, person: Person) -> None:
        for event_id in self.events:
            self.accounts[person.id, event_id].excused = True

    def move_address(self) -> None:
        person = self.any_person()
        if person is not None:
            person.email = f"new{self.random.randrange(10**9)}@school.example"
            with self.runtime.unit_of_work() as session:
                session.execute(update(User).where(User.id == person.id).values(email=person.email))
            self.note(f"address {person.id} {person.email}")

    def leave(self) -> None:
        person = self.any_person()
        if person is not None and sum(one.exists for one in self.people.values()) > 6:
            person.exists = False
            with self.runtime.unit_of_work() as session:
                session.execute(delete(User).where(User.id == person.id))
            for event in self.events.values():
                event.people = event.people - {person.id}
            self.note(f"leave {person.email}")

    def ignore(self) -> None:
        person, event = self.any_person(), self.any_event()
        if person is not None and event is not None:
            with self.runtime.unit_of_work() as session:
                row = session.get(IgnoredEvent, (person.id, event.id))
                if row is None:
                    session.add(IgnoredEvent(user_id=person.id, event_id=event.id))
            self.ignored.add((person.id, event.id))
            self.note(f"ignore {person.email} {event.id}")

    ignored: set[tuple[int, UUID]]

    def review(self) -> None:
        """Take one step of a review."""
        now, chosen = self.clock.now(), self.random
        draft = chosen.choice(list(self.drafts.values())) if self.drafts else None
        with self.runtime.unit_of_work() as session:
            if draft is None or chosen.random() < 0.3:
                title = f"Draft {chosen.randrange(10**9)}"
                said = self._write(self._make_up() | {"people": set()}) | {"title": title}
                author = next(one for one in self.people.values() if one.role == "teacher")
                details = events.read_details(said, zone=ZONE)
                event = events.create(session, details, author=author.email, zone=ZONE, now=now)
                events.submit(session, event.id, now=now)
                self.drafts[event.id] = Draft(event.id, title, "requested")
            elif draft.state == "requested":
                draft.reason = f"no {chosen.randrange(10**9)}"
                events.refuse(session, draft.id, draft.reason, now=now)
                draft.state = "refused"
            else:
                draft.title = f"Draft {chosen.randrange(10**9)}"
                events.edit(session, draft.id, {"title": draft.title}, zone=ZONE, now=now)
                events.submit(session, draft.id, now=now)
                draft.state, draft.reason = "requested", ""
        self.note("review")

    def note(self, what: str) -> None:
        self.history.append(f"{self.clock.now():%d %H:%M:%S} [{self.mood}] {what}")

    # --- time ---

    def work(self) -> None:
        with self.runtime.unit_of_work() as session:
            enqueue(session, SweepMail(), now=self.clock.now())
        run_due(self.app, at_most=5000)
        self.raise_untrue()

    def raise_untrue(self) -> None:
        """Raise what was found in a job: a job records what its body raises."""
        if self.found:
            raise self.found[0]

    found: list[Exception]

    def settle(self) -> None:
        """Let the server recover, and all jobs and mails end; then compare what readers know."""
        self.mood = "well"
        for _ in range(12):
            self.clock.move(timedelta(minutes=20))
            self.work()
            if not self.is_working():
                break
        with self.runtime.read_only() as session:
            waiting = session.execute(
                select(Mail.id, Mail.kind, Mail.reply).where(Mail.ended_at.is_(None))
            ).all()
            failed = session.execute(
                select(Job.kind, Job.errors).where(Job.state == JobState.FAILED)
            ).all()
        if waiting or failed:
            self.miss(f"mails that wait: {waiting}; jobs that failed: {failed}")
        self.require_told()

    def is_working(self) -> bool:
        with self.runtime.read_only() as session:
            mail = session.scalar(select(Mail.id).where(Mail.ended_at.is_(None)).limit(1))
            jobs = select(Job.id).where(Job.state.in_([JobState.SCHEDULED, JobState.QUEUED]))
            return mail is not None or session.scalar(jobs.limit(1)) is not None

    def require_told(self) -> None:
        for event in self.events.values():
            if event.quiet:
                continue
            for person in self.people.values():
                account = self.accounts[person.id, event.id]
                skipped = account.excused or (person.id, event.id) in self.ignored
                if not person.exists or skipped:
                    continue
                self.require_told_one(person, event, account)
        for draft in self.drafts.values():
            role = "admin" if draft.state == "requested" else "teacher"
            for person in self.people.values():
                if person.role == role and draft.told.get(person.id) != (
                    draft.state,
                    draft.title,
                    draft.reason,
                ):
                    self.miss(f"{person.email} was not told {draft}")

    def require_told_one(self, person: Person, event: Happening, account: Account) -> None:
        known = account.known
        what = f"{person.email} of {event}: knows {account.may_know}"
        invited = person.id in event.people and not event.off
        if any(one.invited for one in known) and not invited:
            self.miss(f"no cancellation: {what}")
        if invited and not all(one is not None and one.invited for one in account.may_know):
            self.miss(f"no invitation: {what}")
        if not person.wants:
            return
        if event.off:
            if any(one.affects and not one.off for one in known):
                self.miss(f"not cancelled: {what}")
        elif event.affects(person):
            facts = tuple(sorted(event.facts().items()))
            if not any(one.facts == facts and one.affects and not one.off for one in known):
                self.miss(f"missing: {what}")
        elif any(one.affects and not one.off for one in known):
            self.miss(f"not told that it affects no longer: {what}")

    def miss(self, what: str) -> None:
        history = "\n".join(self.history[-150:])
        raise Untrue(f"{what}\n{history}")

    def run(self, steps: int) -> None:
        self.ignored, self.found = set(), []
        receive = self.receive

        def note_untrue(*args: Any, **options: Any) -> None:
            try:
                receive(*args, **options)
            except Exception as error:  # noqa: BLE001 - the job that sends would swallow it
                self.found.append(error)

        self.receive = note_untrue  # type: ignore[method-assign]
        chances = {
            self.publish: 8,
            self.write_by_others: 3,
            self.edit: 24,
            self.end: 8,
            self.restore: 7,
            self.change_by_sql: 2,
            self.toggle: 3,
            self.move_address: 3,
            self.leave: 1,
            self.ignore: 2,
            self.review: 10,
        }
        for number in range(1, steps + 1):
            (step,) = self.random.choices(list(chances), list(chances.values()))
            step()
            # Often nobody works for a while.
            if self.random.random() < 0.6:
                self.mood = self.random.choice(list(MOODS))
                self.clock.move(timedelta(seconds=self.random.choice((2, 30, 200, 240, 1500))))
                self.work()
            if number % 25 == 0:
                self.settle()
        self.settle()


@contextmanager
def make_app(url: str, folder: Path) -> Iterator[App]:
    """Yield an app on a migrated database, with empty tables."""
    app = App(
        "project.celery",
        COMPOSITION,
        _env_file=None,
        database_url=url,
        broker_url=f"filesystem://{folder}/broker",
        feed_store=str(folder / "feeds"),
    )
    app.composition.table_branches()
    try:
        there = inspect(app.runtime.engine).get_table_names()
        with app.runtime.unit_of_work() as session:
            for table in reversed(Base.metadata.sorted_tables):
                # Other tests may have declared more.
                if table.name in there:
                    session.execute(table.delete())
        yield app
    finally:
        app.runtime.close()


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a migrated database of a kind, which nothing else uses."""
    if kind == "sqlite":
        yield migrate(f"sqlite:///{folder}/simulated.db")
        return
    with postgres_database() as url:
        yield migrate(url)


def simulate(
    url: str, folder: Path, *, seed: int, steps: int, checked: bool = True
) -> dict[str, int]:
    """Simulate one school, and return how often each thing happened.

    `checked=False` leaves out the look at each mail before it is sent. Raises Untrue.
    """
    with make_app(url, folder) as app:
        clock = Clock(app)
        simulation = Simulation(app, clock, seed)
        if not checked:
            app.runtime._made[Mailer] = replace(app.runtime[Mailer], check=None)
        simulation.run(steps)
        return dict(simulation.counts)
