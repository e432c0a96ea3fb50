"""After any changes, by services and by SQL, a refresh leaves what a full sync would write.

Each change is one of a service, or one statement of another program: of every kind, on every table
that feeds read. After a few of them the feeds are refreshed, and compared with a full sync. No
event's SEQUENCE or LAST-MODIFIED ever falls, and two feeds show an event with the same stamps.
"""

import json
import random
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import icalendar
import pytest
from nightshift.database import Base, Session
from nightshift.errors import ServiceError
from nightshift.jobs.models import Job
from sqlalchemy import (
    Connection,
    Engine,
    String,
    Table,
    create_engine,
    delete,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from services.calendars import revisions
from services.calendars.models import ChangeLog
from services.school import events
from services.school.loading import load
from services.school.models import Event, EventUser
from tests.conftest import NOW, ZONE
from tests.ical_js import require_ical_js
from tests.services.calendars.conftest import LONG_AGO, Calendars
from tests.services.calendars.writes import TABLES, key_of, other_value

# Not the log, what the calendars only record, and the memory of deleted events' stamps: who lowers
# those makes them fall.
WRITTEN = sorted(TABLES.keys() - {"change_log", "own_write", "sync_run", "event_stamp"})
SCHOOL = {
    model.__tablename__ for model in Base.__subclasses__() if model.__module__ == Event.__module__
}
TIMES = ("starts_at", "ends_at", "starts_on", "ends_on")
TRUNCATED = ("event_class", "event_user", "ignored_event", "event_rendering", "event_revision")


class OtherProgram:
    """Write one row with values that others of the table have, or with other values.

    On SQLite it has neither foreign keys nor recursive triggers, as `sqlite3` opens a database.
    """

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self.engine = create_engine(engine.url, poolclass=NullPool)
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.rng = rng
        self.done: Counter[str] = Counter()
        self.said: list[str] = []

    def write(self, number: int) -> None:
        table = TABLES[self.rng.choice(WRITTEN)]
        with self.engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(select(table)).mappings()]
        if not rows:
            return
        kinds = ["insert", "update", "update", "upsert", "delete"]
        kinds += ["insert or replace", "update or replace"] if self.is_sqlite else ["truncate"]
        kind = self.rng.choice(kinds)
        statement = self._make(kind, table, rows, number)
        # What the database refuses changes nothing.
        with suppress(DBAPIError), self.engine.begin() as connection:
            self._execute(connection, statement)
            self.done[kind] += 1
            self.said.append(f"{statement} {statement.compile().params}")

    def _execute(self, connection: Connection, statement: Any) -> None:
        if not self.is_sqlite:
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(statement)

    def _make(self, kind: str, table: Table, rows: list[dict[str, Any]], number: int) -> Any:
        row = self.rng.choice(rows)
        change = self._change(table, row, rows, number)
        primary = table.primary_key.columns.keys()
        if kind == "truncate":
            return text(f"TRUNCATE {self.rng.choice(TRUNCATED)} CASCADE")
        if kind == "delete":
            return delete(table).where(key_of(table, row))
        if kind.startswith("update"):
            prefix = ("OR REPLACE",) if kind == "update or replace" else ()
            where = update(table).where(key_of(table, row)).values(change)
            return where.prefix_with(*prefix) if prefix else where
        if kind == "insert":
            return insert(table).values(row | change | self._new(table, row, number))
        unique = {c: v for c, v in (row | change).items() if c in primary}
        if kind == "insert or replace":
            # Also with a unique key of one row and the primary key of another.
            key = unique if self.rng.random() < 0.7 else self._new(table, row, number)
            return insert(table).prefix_with("OR REPLACE").values(row | change | key)
        upsert = (sqlite if self.is_sqlite else postgresql).insert(table).values(row | change)
        changed = {c: v for c, v in change.items() if c not in primary}
        return upsert.on_conflict_do_update(
            index_elements=primary, set_=changed or {primary[0]: row[primary[0]]}
        )

    def _change(
        self, table: Table, row: dict[str, Any], rows: list[dict[str, Any]], number: int
    ) -> dict[str, Any]:
        """Return other values for one column, or for a few that belong together."""
        other = self.rng.choice(rows)
        if table.name == "event" and self.rng.random() < 0.5:
            return self.rng.choice(
                [
                    {name: other[name] for name in TIMES},
                    {"title": f"Neu {number}"},
                    {"cancelled_at": LONG_AGO},
                    {"cancelled_at": None, "deleted_at": None},
                    {"state": "published", "version_of_id": None},
                ]
            )
        column = table.c[self.rng.choice([*row])]
        if column.unique and isinstance(column.type, String):
            return {column.name: f"{number}"}
        if self.rng.random() < 0.5 and not column.primary_key:
            return {column.name: other_value(column, row, rows)}
        return {column.name: other[column.name]}

    def _new(self, table: Table, row: dict[str, Any], number: int) -> dict[str, Any]:
        """Return a primary key that no row has, for tables that have one of their own."""
        if "id" not in row:
            return {}
        is_number = isinstance(row["id"], int)
        unique = {
            column.name: f"{number}"
            for column in table.columns
            if column.unique and isinstance(column.type, String)
        }
        new = 100_000 + number if is_number else UUID(int=self.rng.getrandbits(128), version=4)
        return unique | {"id": new}


class Services:
    """Change an event as people do, and as the letters do when they invite."""

    def __init__(self, calendars: Calendars, rng: random.Random) -> None:
        self.calendars, self.rng = calendars, rng
        self.done = 0

    def change(self, number: int) -> None:
        make: dict[str, Callable[[Session, UUID], object]] = {
            "title": lambda session, one: events.edit(
                session, one, {"title": f"Titel {number}"}, zone=ZONE, now=NOW
            ),
            "nobody": lambda session, one: events.edit(
                session, one, {"users": (), "classes": ("27Ga",)}, zone=ZONE, now=NOW
            ),
            "submit": lambda session, one: events.submit(session, one, now=NOW),
            "publish": lambda session, one: events.publish(session, one, now=NOW),
            "cancel": lambda session, one: events.cancel(session, one, now=NOW),
            "delete": lambda session, one: events.delete(session, one, now=NOW),
            "restore": lambda session, one: events.restore(session, one, now=NOW),
            "uninvite": self._uninvite,
        }
        with self.calendars.runtime.read_only() as session:
            ids = session.scalars(select(Event.id).order_by(Event.id)).all()
        act = self.rng.choice([*make])
        with suppress(ServiceError, DBAPIError, ValueError):
            with self.calendars.runtime.unit_of_work() as session:
                make[act](session, self.rng.choice(ids))
                session.execute(delete(Job))  # The letters are another's.
            self.done += 1

    def _uninvite(self, session: Session, event_id: UUID) -> None:
        session.execute(delete(EventUser).where(EventUser.event_id == event_id))
        raised = self.rng.random() < 0.5
        domain = self.calendars.rules.domain
        revisions.revise(session, event_id, domain=domain, zone=ZONE, raised=raised, now=NOW)


class Subscriber:
    """What a calendar program remembers of all feeds."""

    def __init__(self) -> None:
        self.stamps: dict[bytes, tuple[int, bytes]] = {}
        self.bodies: defaultdict[tuple[bytes, int], set[bytes]] = defaultdict(set)

    def read(self, files: dict[str, bytes]) -> None:
        """Compare with what is remembered, and remember."""
        now: dict[bytes, tuple[int, bytes]] = {}
        for name, content in files.items():
            # A repeated event is several VEVENTs with the same stamps.
            whole: defaultdict[bytes, bytes] = defaultdict(bytes)
            for vevent in re.findall(rb"BEGIN:VEVENT\r\n.*?END:VEVENT\r\n", content, re.DOTALL):
                (uid,) = re.findall(rb"\r\nUID:(.*)\r\n", vevent)
                (sequence,) = re.findall(rb"\r\nSEQUENCE:(\d+)\r\n", vevent)
                modified, stamped = re.findall(rb"(?:DTSTAMP|LAST-MODIFIED):(\w+)\r\n", vevent)
                stamps = (int(sequence), modified)
                assert modified == stamped
                assert now.setdefault(uid, stamps) == stamps, f"{name}: {uid!r} has two stamps"
                whole[uid] += vevent
            for uid, vevents in whole.items():
                self.bodies[uid, now[uid][0]].add(vevents)
        for uid, stamps in now.items():
            last = self.stamps.get(uid, stamps)
            assert stamps >= last, f"{uid!r} went back"
            assert stamps[1] >= last[1], f"LAST-MODIFIED of {uid!r} went back"
            # One in each language.
            assert len(self.bodies[uid, stamps[0]]) <= 3, f"{uid!r} changed without new stamps"
        self.stamps |= now


def find_spoilt(calendars: Calendars) -> list[UUID]:
    """Return the events whose stored renderings are not what they say."""
    rules = calendars.rules
    with calendars.runtime.read_only() as session:
        window = rules.window(calendars.runtime.now())
        outdated = revisions.find_outdated(session, window, domain=rules.domain, doubted=None)
        return [one.event_id for one in outdated if one.error is None]


def change_at_random(
    calendars: Calendars, subscriber: Subscriber, seed: int, changes: int
) -> Iterator[int]:
    """Make changes, and compare after each few. Yield how many there were."""
    rng = random.Random(seed)
    other, services = OtherProgram(calendars.runtime.engine, rng), Services(calendars, rng)
    number = 0
    calendars.sync()
    calendars.change(delete(ChangeLog))
    while other.done.total() + services.done < changes:
        for _ in range(rng.choice([1, 2, 4, 8, 16])):
            number += 1
            if rng.random() < 0.3:
                services.change(number)
            else:
                other.write(number)
        if rng.random() < 0.2:
            # A sync may come first.
            calendars.sync()
            subscriber.read(calendars.files())
        calendars.refresh()
        subscriber.read(calendars.files())
        assert calendars.has_right_bytes(), "\n".join(other.said[-16:])
        assert find_spoilt(calendars) == [], "\n".join(other.said[-16:])
        yield other.done.total() + services.done
    assert services.done > changes // 20
    assert len(other.done) >= (6 if changes > 100 else 3)


@pytest.mark.parametrize("seed", range(2))
def test_refresh_after_any_changes_is_a_full_sync(calendars: Calendars, seed: int) -> None:
    assert max(change_at_random(calendars, Subscriber(), seed, 60)) >= 60


@pytest.mark.oracles
@pytest.mark.timeout(3600)
def test_refresh_after_two_thousand_changes_is_a_full_sync(
    calendars: Calendars, example_school: Path
) -> None:
    subscriber, done = Subscriber(), 0
    for seed in range(100, 120):
        *_, last = change_at_random(calendars, subscriber, seed, 100)
        done += last
        assert any(read_stamps(calendars.files()).values())
        # Write the same events again: much has been deleted by now, and calendars remember it.
        with calendars.runtime.unit_of_work() as session:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name in SCHOOL:
                    session.execute(table.delete())
            load(session, example_school, zone=ZONE, now=NOW)
    assert done >= 2_000


def read_stamps(files: dict[str, bytes]) -> dict[str, list[list[Any]]]:
    """Return UID and SEQUENCE of each file's events, as icalendar reads them."""
    return {
        name: [
            [str(one["UID"]), int(one["SEQUENCE"])]
            for one in icalendar.Calendar.from_ical(content).walk("VEVENT")
        ]
        for name, content in files.items()
    }


ICAL_JS = """
const ICAL = require("ical.js"), found = {};
for (const [name, text] of Object.entries(JSON.parse(require("fs").readFileSync(0, "utf8")))) {
  const calendar = new ICAL.Component(ICAL.parse(text));
  found[name] = calendar.getAllSubcomponents("vevent").map((event) => [
    event.getFirstPropertyValue("uid"), event.getFirstPropertyValue("sequence"),
  ]);
}
console.log(JSON.stringify(found));
"""


@pytest.mark.oracles
def test_ical_js_reads_the_stamps_that_icalendar_reads(calendars: Calendars) -> None:
    environment = require_ical_js()
    list(change_at_random(calendars, Subscriber(), 3, 60))
    files = calendars.files()

    run = subprocess.run(
        ["node", "-e", ICAL_JS],
        input=json.dumps({name: content.decode() for name, content in files.items()}),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    assert json.loads(run.stdout) == read_stamps(files)
