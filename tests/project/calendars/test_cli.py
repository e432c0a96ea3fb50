"""`feeds url`, `rotate` and `revoke`."""

import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import UUID

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url, select

from project.calendars.cli import feeds
from project.settings import WEB_PORT
from services.calendars.feeds import add_missing
from services.calendars.models import EventStamp, Feed
from services.school.models import Department, Role, SchoolClass, User

ADDRESS = re.compile(rf"http://127\.0\.0\.1:{WEB_PORT}/f/([A-Za-z0-9_-]{{32}})\.ics\n")


@pytest.fixture
def school(job_app):
    with job_app.runtime.unit_of_work() as session:
        person = {
            "first_name": "Anna",
            "last_name": "Keller",
            "role": Role.STUDENT,
            "created_at": job_app.runtime.now(),
        }
        session.add_all(
            [
                Department(name="Gymnasium"),
                SchoolClass(name="27Ga"),
                User(email="anna@school.example", untis_id="1", **person),
            ]
        )
        session.flush()
        add_missing(session)
        session.add(User(email="kim@school.example", **person))
    return job_app


@pytest.fixture
def run(school):
    """Return a function that runs a command and returns its exit code and outputs."""

    def call(*words):
        ran = CliRunner().invoke(feeds, words, obj=SimpleNamespace(app=school))
        return ran.exit_code, ran.stdout, ran.stderr

    return call


def tokens(app):
    with app.runtime.read_only() as session:
        return {feed.kind.value: feed.token for feed in session.execute(select(Feed)).scalars()}


OWNERS = [("user", "anna@school.example"), ("class", "27Ga"), ("department", "Gymnasium")]


@pytest.mark.parametrize(("kind", "owner"), OWNERS)
def test_url_is_printed_and_nothing_else(school, run, kind, owner):
    assert run("url", kind, owner) == (
        0,
        f"http://127.0.0.1:{WEB_PORT}/f/{tokens(school)[kind]}.ics\n",
        "",
    )


@pytest.mark.parametrize(("kind", "owner"), OWNERS)
def test_rotate_prints_the_new_url_and_touches_no_other(school, run, kind, owner):
    before = tokens(school)
    code, said, _ = run("rotate", kind, owner)
    (new,) = ADDRESS.fullmatch(said).groups()
    assert (code, tokens(school)) == (0, before | {kind: new})
    assert new != before[kind]


def test_revoked_feed_has_no_url_until_it_is_rotated(run):
    assert run("revoke", "class", "27Ga") == (
        0,
        "the feed of class 27Ga has no address any more\n",
        "",
    )
    refusal = "the feed of class 27Ga was revoked; `feeds rotate` gives it a new address\n"
    assert run("url", "class", "27Ga") == (1, "", refusal)
    _, said, _ = run("rotate", "class", "27Ga")
    assert run("url", "class", "27Ga") == (0, said, "")


@pytest.mark.parametrize("command", ["url", "rotate", "revoke"])
@pytest.mark.parametrize(
    ("owner", "refusal"),
    [
        (
            "nobody@school.example",
            (
                "there is no user 'nobody@school.example'; `feeds list --kind user` shows those"
                " with a feed"
            ),
        ),
        (
            "kim@school.example",
            (
                "user kim@school.example has no feed; `feeds sync` makes those of all who are"
                " entitled to one"
            ),
        ),
    ],
)
def test_owner_without_a_feed_is_refused(school, run, command, owner, refusal):
    before = tokens(school)
    assert run(command, "user", owner) == (1, "", f"{refusal}\n")
    assert tokens(school) == before


def test_take_stamps_reads_the_database_that_a_restore_has_replaced(run, school, tmp_path):
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    engine = school.runtime.engine
    former = tmp_path / "former.db"
    with closing(sqlite3.connect(make_url(school.runtime.settings.database_url).database)) as own:
        own.execute("VACUUM INTO ?", [str(former)])
    with closing(sqlite3.connect(former)) as copy, copy:
        copy.execute(
            "INSERT INTO event_stamp VALUES (?, 3, '2026-11-01', '2026-11-01')",
            [UUID(int=1).hex],
        )

    assert run("take-stamps", str(former)) == (
        0, "1 of 1 events had been changed since the backup\n", "",
    )  # fmt: skip

    with engine.connect() as connection:
        kept = connection.execute(select(EventStamp.sequence, EventStamp.modified_at)).all()
    assert kept == [(3, moment)]


def test_take_stamps_from_a_database_of_before_stamps_takes_none(run, tmp_path):
    (tmp_path / "empty.db").touch()
    assert run("take-stamps", f"{tmp_path}/empty.db")[:2] == (
        0, "0 of 0 events had been changed since the backup\n",
    )  # fmt: skip
